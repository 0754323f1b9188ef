from __future__ import annotations

import json
import logging
import re
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.logfile import (
    LOGGER,
    logging_to,
    parse_level,
    parse_log_format,
    quote,
    stamp,
)

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
    assert all(m and m["place"].startswith("test_logfile.py:") for m in found)


def test_the_log_of_the_process_is_as_before_afterwards(tmp_path: Path) -> None:
    before = (list(LOGGER.handlers), LOGGER.level, LOGGER.propagate)
    with pytest.raises(RuntimeError), logging_to(tmp_path / "log", logging.DEBUG):
        raise RuntimeError
    assert (list(LOGGER.handlers), LOGGER.level, LOGGER.propagate) == before


def fail() -> None:
    try:
        raise KeyError("lost")
    except KeyError:
        LOGGER.exception("failed")


def test_a_traceback_is_the_last_part_of_its_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_to(log, logging.INFO):
        fail()
    (line,) = log.read_text().splitlines()
    assert "[ERROR] [test_logfile.py:" in line
    assert '[failed] [stack="Traceback (most recent call last):\\n' in line
    assert line.endswith("KeyError: 'lost'\"]")


def test_json_has_one_object_on_each_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_to(log, logging.DEBUG, log_format="JSON"):
        fields = {
            "total-ranges": 3,
            "total-kv-size": "108.7MB",
            "checksum": True,
            "at": Path("/größe"),
            "odd": "\udc80",
        }
        LOGGER.warning("Raw backup %s summary", "success", extra={"fields": fields})
        fail()
    first, second = log.read_text(encoding="utf-8").splitlines()
    # in the order and without the blanks of tikv-br
    assert first.startswith('{"level":"WARN","time":"2')
    said = json.loads(first)
    assert list(said)[:4] == ["level", "time", "caller", "message"]
    assert re.fullmatch(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d\d:\d\d", said["time"])
    assert said["caller"].startswith("test_logfile.py:")
    assert {name: said[name] for name in list(said)[3:]} == {
        "message": "Raw backup success summary",
        "total-ranges": 3,
        "total-kv-size": "108.7MB",
        "checksum": True,
        "at": "/größe",
        "odd": "\udc80",
    }
    assert json.loads(second)["stack"].startswith("Traceback (most recent call last):\n")


def test_a_log_can_go_to_a_file_besides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log"
    other = logging.getLogger("tests.besides")
    with caplog.at_level(logging.INFO):
        with logging_to(log, logging.WARNING, logger=other, alone=False):
            other.warning("for both")
            other.info("for the first alone")
            LOGGER.warning("of another log")
        other.warning("afterwards")
    assert [line.split("] ", 3)[3] for line in log.read_text().splitlines()] == ['["for both"]']
    assert [r.message for r in caplog.records if r.name == other.name] == [
        "for both",
        "for the first alone",
        "afterwards",
    ]
    assert (other.level, other.handlers) == (logging.NOTSET, [])


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
        ("", ""),
        ("\x01", '"\\u0001"'),
        ("\x7f", "\x7f"),
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


def test_a_file_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InvalidOptionError, match=r"log_file .* cannot be written") as caught,
        logging_to(tmp_path / "file" / "log", logging.INFO),
    ):
        pass
    assert caught.value.parameter == "log_file"


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="'loud' is not known: give debug"):
        parse_level("loud")


@pytest.mark.parametrize(("text", "name"), [("", "text"), ("text", "text"), (" JSON ", "json")])
def test_the_names_of_formats(text: str, name: str) -> None:
    assert parse_log_format(text) == name


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InvalidOptionError, match="log_format 'xml' is not known: give text or json"),
        logging_to(tmp_path / "log", logging.INFO, log_format="xml"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_a_log_is_made(tmp_path: Path) -> None:
    log = tmp_path / "a" / "b" / "log"
    for _ in range(2):
        with logging_to(log, logging.INFO):
            LOGGER.info("here")
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "level"), [("debug", 10), ("INFO", 20), ("warn", 30), ("error", 40), ("panic", 50), (" fatal ", 50)]
)
def test_the_names_of_levels(name: str, level: int) -> None:
    assert parse_level(name) == level
