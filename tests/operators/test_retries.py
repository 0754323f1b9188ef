"""What a task knows of its own tries: when the next one comes, and what the one before has left."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.exceptions import TransientError
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.proto.methods import IMPORT_DOWNLOAD
from airflow_provider_tikvbr.rawbr import options
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from tests.support.deferral import defer
from tests.support.front import Store, connect


class TaskInstance:
    dag_id, task_id, run_id, map_index = "dag", "task", "manual__1", -1

    def __init__(self, try_number: int = 1, max_tries: int = 2) -> None:
        self.try_number, self.max_tries = try_number, max_tries


def context(store: Store | None = None, **tries: int) -> Any:
    found: dict[str, Any] = {"ti": TaskInstance(**tries)}
    return found if store is None else {**found, "task_state_store": store}


@pytest.mark.parametrize(
    ("retries", "try_number", "seconds"),
    [
        ({"retry_delay": timedelta(minutes=5)}, 1, 300),
        ({"retry_delay": timedelta(minutes=5)}, 2, 300),
        ({"retry_delay": timedelta(minutes=5)}, 3, None),
        # Airflow adds up to as much again.
        ({"retry_delay": timedelta(minutes=5), "retry_exponential_backoff": 2}, 1, 600),
        ({"retry_delay": timedelta(minutes=5), "retry_exponential_backoff": 2}, 2, 1200),
        ({"retry_delay": timedelta(minutes=5), "retry_exponential_backoff": 5}, 2, 3000),
        ({"retry_delay": 60, "retry_exponential_backoff": 2, "max_retry_delay": timedelta(seconds=90)}, 2, 90),
        ({"retry_delay": timedelta(hours=20), "retry_exponential_backoff": 2}, 2, 86400),
    ],
)
def test_the_engine_knows_when_the_next_try_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, retries: dict[str, Any], try_number: int, seconds: float | None
) -> None:
    seen: list[float | None] = []
    real = options.BackupOptions

    def record(**given: Any) -> Any:
        seen.append(given["retry_in_s"])
        return real(**given)

    monkeypatch.setattr(options, "BackupOptions", record)
    task = BackupRawOperator(task_id="task", storage=str(tmp_path / "b"), **retries)
    task.execute(context(try_number=try_number))
    assert seen == [seconds]
    trigger = defer(
        BackupRawOperator(task_id="task", storage=str(tmp_path / "c"), deferrable=True, **retries),
        context(try_number=try_number),
    )
    assert (trigger.retry_in_s, trigger.owner) == (seconds, "Airflow dag.task manual__1")


def test_nobody_knows_without_an_airflow(tmp_path: Path) -> None:
    assert BackupRawOperator(task_id="task", storage="/x").retry_in_s({}) is None


@pytest.mark.parametrize("cls", [BackupRawOperator, RestoreRawOperator])
def test_every_try_has_the_same_owner(monkeypatch: pytest.MonkeyPatch, cls: type[Any]) -> None:
    task = cls(task_id="task", storage="/x")
    owners = {task.prepare(context(try_number=at)).job._options.owner for at in (1, 2, 3)}
    assert owners == {"Airflow dag.task manual__1"}


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ThreadedCluster]:
    """An empty V1 cluster."""
    with ThreadedCluster(data_dir=tmp_path / "target", api_version=ApiVersion.V1, stores=2) as cluster:
        connect(monkeypatch, "tikv_target", cluster)
        yield cluster


@pytest.mark.parametrize("deferrable", [False, True])
@pytest.mark.parametrize("resume", [True, False])
def test_another_try_says_what_it_goes_on_from(tmp_path: Path, resume: bool, deferrable: bool) -> None:
    store = Store()
    left = {"place": "s3://bucket/p/backup.checkpoint", "pieces": 17, "at": "2026-11-24T01:00:00+00:00"}
    store.set("checkpoint", left)
    task = BackupRawOperator(task_id="task", storage=str(tmp_path / "b"), resume=resume, deferrable=deferrable)
    given = context(store, try_number=2)
    with capture_logs() as logs:
        if deferrable:
            defer(task, given)
        else:
            task.execute(given)
    (said,) = (entry["event"] for entry in logs if entry["event"].startswith("Try 2 "))
    assert ("goes on" in said) is resume
    assert said.endswith("17 finished pieces saved in s3://bucket/p/backup.checkpoint at 2026-11-24T01:00:00+00:00.")


def test_a_first_try_says_nothing_of_others(tmp_path: Path) -> None:
    store = Store()
    with capture_logs() as logs:
        BackupRawOperator(task_id="task", storage=str(tmp_path / "b")).execute(context(store))
    assert not [entry for entry in logs if "Try" in entry["event"]]


def test_a_success_leaves_nothing_to_go_on_from(tmp_path: Path) -> None:
    store = Store()
    store.set("checkpoint", {"place": "s3://bucket/p/backup.checkpoint", "pieces": 17, "at": "then"})
    task = BackupRawOperator(task_id="task", storage=str(tmp_path / "b"))
    task.execute(context(store, try_number=2))
    assert store.get("checkpoint") is None


def test_a_retry_of_a_restore_goes_on(target: ThreadedCluster, source: ThreadedCluster, tmp_path: Path) -> None:
    """Three of six files are restored by the first try, and the others by the second."""
    url = str(tmp_path / "backup")
    BackupRawOperator(task_id="backup", storage=url).execute({})
    store = Store()
    place = tmp_path / "checkpoints"
    task = RestoreRawOperator(
        task_id="task",
        storage=url,
        tikv_conn_id="tikv_target",
        checkpoint_storage=str(place),
        budget="1s",
        concurrency=1,
    )
    away = target.faults.add(Rule(kind=Kind.STATUS, method=IMPORT_DOWNLOAD, after=3))
    with pytest.raises(TransientError):
        task.execute(context(store))
    assert away.hits
    kept = store.get("checkpoint")
    assert kept["pieces"] >= 1
    assert kept["place"].startswith(f"local://{place}")
    target.faults.clear()
    counted = target.faults.add(Rule(kind=Kind.DELAY, method=IMPORT_DOWNLOAD, delay_s=0.001))
    with capture_logs() as logs:
        result = task.execute(context(store, try_number=2))
    assert [(p.key, p.value) for p in target.pairs()] == [(p.key, p.value) for p in source.pairs()]
    assert result["total_kv"] == 300
    assert any("finished pieces" in str(entry) or "goes on" in str(entry) for entry in logs)
    assert store.get("checkpoint") is None
    assert counted.hits == 3
