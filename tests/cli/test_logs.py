from __future__ import annotations

import logging
import re
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from airflow_provider_tikvbr.cli.logs import (
    LOGGER,
    announce,
    logging_to,
    parse_level,
    quote,
    stamp,
    temporary_log_file,
)
from airflow_provider_tikvbr.exceptions import InvalidOptionError

HEAD = re.compile(
    r"^\[\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d\d:\d\d\] \[(?P<level>[A-Z]+)\] \[(?P<place>\w+\.py:\d+)\] (?P<parts>.*)$"
)


def test_a_line_has_the_format_of_tikv_br(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_to(log, logging.INFO):
        LOGGER.info("progress", extra={"fields": {"step": "Raw backup", "progress": "17.12%", "count": "3 / 12"}})
        LOGGER.warning("region %d has no leader", 4)
        LOGGER.debug("not this one")
    lines = log.read_text().splitlines()
    found = [HEAD.match(line) for line in lines]
    assert [m and (m["level"], m["parts"]) for m in found] == [
        ("INFO", '[progress] [step="Raw backup"] [progress=17.12%] [count="3 / 12"]'),
        ("WARN", '["region 4 has no leader"]'),
    ]
    assert all(m and m["place"].startswith("test_logs.py:") for m in found)


def test_the_log_of_the_process_is_as_before_afterwards(tmp_path: Path) -> None:
    before = (list(LOGGER.handlers), LOGGER.level, LOGGER.propagate)
    with pytest.raises(RuntimeError), logging_to(tmp_path / "log", logging.DEBUG):
        raise RuntimeError
    assert (list(LOGGER.handlers), LOGGER.level, LOGGER.propagate) == before


def test_a_traceback_stands_behind_its_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_to(log, logging.INFO):
        try:
            raise KeyError("lost")
        except KeyError:
            LOGGER.exception("failed")
    assert "[ERROR]" in log.read_text()
    assert log.read_text().rstrip().endswith("KeyError: 'lost'")


@pytest.mark.parametrize("level", ["info", "error"])
def test_the_summary_is_on_standard_output_at_any_level(
    level: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    with logging_to(log, parse_level(level)):
        announce('["Raw backup success summary"] [total-ranges=3]', to_log=True)
    match = HEAD.match(capsys.readouterr().out.rstrip("\n"))
    assert match
    assert match["parts"] == '["Raw backup success summary"] [total-ranges=3]'
    assert match["place"].startswith("test_logs.py:")
    assert ("success summary" in log.read_text()) is (level == "info")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ("[x]", '"[x]"'),
        ('say "x"', r'"say \"x\""'),
        ("back\\slash", r'"back\\slash"'),
        ("line\nbreak", r'"line\nbreak"'),
        ("", '""'),
        ("größe", "größe"),
    ],
)
def test_quoting(text: str, written: str) -> None:
    assert quote(text) == written


def test_times_are_local_with_their_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for zone, text in (
            ("UTC-8", "2022/09/20 18:01:10.125 +08:00"),
            ("UTC+3:30", "2022/09/20 06:31:10.125 -03:30"),
        ):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert stamp(datetime(2022, 9, 20, 10, 1, 10, 125_000, timezone.utc).timestamp()) == text
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("zone", "name"), [("UTC", "br.log.2022-09-20T10.01.10Z"), ("UTC-8", "br.log.2022-09-20T18.01.10+0800")]
)
def test_the_temporary_file_tells_the_time(zone: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert temporary_log_file(datetime(2022, 9, 20, 10, 1, 10, tzinfo=timezone.utc)).name == name
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_file_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidOptionError, match=r"log-file .* cannot be written") as caught,
        logging_to(tmp_path / "no" / "such" / "log", logging.INFO),
    ):
        pass
    assert caught.value.parameter == "log-file"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="'loud' is not known: give debug"):
        parse_level("loud")
