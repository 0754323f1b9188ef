from __future__ import annotations

import json
import re
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from airflow_provider_tikvbr.cli.logs import announce, temporary_log_file
from airflow_provider_tikvbr.logfile import logging_to, parse_level

LINE = re.compile(r"^\[[^]]+\] \[INFO\] \[(?P<place>\w+\.py:\d+)\] (?P<parts>.*)$")


@pytest.mark.parametrize("level", ["info", "error"])
def test_the_summary_is_on_standard_output_at_any_level(
    level: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    with logging_to(log, parse_level(level), log_format="json"):
        announce("Raw backup success summary", {"total-ranges": 3}, to_stdout=True, to_log=True)
    match = LINE.match(capsys.readouterr().out.rstrip("\n"))
    assert match
    assert match["parts"] == '["Raw backup success summary"] [total-ranges=3]'
    assert match["place"].startswith("test_logs.py:")
    lines = log.read_text().splitlines()
    assert [json.loads(line)["total-ranges"] for line in lines] == ([3] if level == "info" else [])


def test_the_summary_is_written_where_it_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    with logging_to(log, parse_level("info")):
        announce("to neither", {}, to_stdout=False, to_log=False)
        announce("to the log", {}, to_stdout=False, to_log=True)
    assert capsys.readouterr().out == ""
    assert [line.split("] ", 3)[3] for line in log.read_text().splitlines()] == ['["to the log"]']


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
