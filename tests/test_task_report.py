from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from airflow_provider_tikvbr.exceptions import InvalidOptionError, JobCancelledError, StorageError
from airflow_provider_tikvbr.masking import mask
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.rawbr.events import Note, Progress
from airflow_provider_tikvbr.task_report import TaskState, reporting
from tests.support.front import Store

STATE = TaskState({}, None)
PROGRESS = Progress(step="Raw backup", done=1, total=4, kvs=10, bytes=2000, elapsed_s=2.0)


@pytest.fixture
def log() -> Any:
    return BackupRawOperator(task_id="task", storage="/x").log


def test_a_file_is_clean_of_secrets(log: Any, tmp_path: Path) -> None:
    mask("canaryOfTheReport")
    file = tmp_path / "log"
    with pytest.raises(StorageError), reporting(log, STATE, log_file=file) as report:  # noqa: PT012
        report.note(Note(level="warning", message="look at canaryOfTheReport"))
        raise StorageError("the store said canaryOfTheReport")
    text = file.read_text()
    assert "canary" not in text
    assert text.count("***") == 2
    assert '["look at ***"]' in text
    assert '[failed] [error="the store said ***"]' in text


def test_a_file_as_json(log: Any, tmp_path: Path) -> None:
    with reporting(log, STATE, log_file=str(tmp_path / "log"), log_format="JSON") as report:
        report.progress(PROGRESS)
    said = json.loads((tmp_path / "log").read_text())
    assert (said["message"], said["step"], said["progress"], said["remaining"]) == (
        "progress",
        "Raw backup",
        "25.00%",
        "6s",
    )
    assert said["caller"].startswith("test_task_report.py:")


def test_a_file_is_added_to_and_tells_of_a_stop(log: Any, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    with pytest.raises(JobCancelledError), reporting(log, STATE, log_file=str(tmp_path / "log")):
        raise JobCancelledError("somebody asked")
    before, stopped = (tmp_path / "log").read_text().splitlines()
    assert before == "before"
    assert "[WARN]" in stopped
    assert '[stopped] [error="somebody asked"]' in stopped


@pytest.mark.parametrize(
    ("level", "told"), [("", ["info", "warning"]), ("debug", ["info", "warning"]), ("warn", ["warning"]), ("error", [])]
)
def test_the_level_bounds_the_tasks_log_but_not_the_state(log: Any, level: str, told: list[str]) -> None:
    store = Store()
    context: Any = {"task_state_store": store}
    with capture_logs() as logs, reporting(log, TaskState(context, log), log_level=level) as report:
        report.progress(PROGRESS)
        report.note(Note(level="warning", message="look"))
    assert [entry["log_level"] for entry in logs] == told
    assert [value["percent"] for _, value in store.told] == [25]


def test_no_logger_of_the_process_is_touched(log: Any, tmp_path: Path) -> None:
    before = dict(logging.Logger.manager.loggerDict)
    with reporting(log, STATE, log_file=str(tmp_path / "log")):
        assert logging.Logger.manager.loggerDict == before


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"log_file": 5}, "log_file"),
        ({"log_level": "loud"}, "log_level"),
        ({"log_level": 5}, "log_level"),
        ({"log_format": "xml"}, "log_format"),
    ],
)
def test_what_is_wrong_is_named(log: Any, options: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidOptionError) as caught, reporting(log, STATE, **options):
        pass
    assert caught.value.parameter == parameter
