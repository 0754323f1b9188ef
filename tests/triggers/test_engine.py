"""What all triggers have in common, shown by the backup's and the restore's."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from airflow.providers.common.compat.sdk import BaseHook
from structlog.testing import capture_logs

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.proto.methods import BACKUP, IMPORT_DOWNLOAD
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.triggers import engine
from tests.support.deferral import defer, fire
from tests.support.front import connect, fill
from tests.support.waiting import until

CLASSES = pytest.mark.parametrize("cls", [BackupRawOperator, RestoreRawOperator, ChecksumSensor])
PEM = "-----BEGIN PRIVATE KEY-----\nMIIcanary\n-----END PRIVATE KEY-----\n"


def backup(tmp_path: Path, **options: Any) -> BackupRawOperator:
    given = {"task_id": "backup", "storage": f"local://{tmp_path / 'backup'}", "deferrable": True, **options}
    return BackupRawOperator(**given)


# --- what is told ---


def test_progress_is_told_at_the_configured_cadence(
    monkeypatch: pytest.MonkeyPatch, source: ThreadedCluster, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW__TIKVBR__PROGRESS_INTERVAL", "0.1")
    source.faults.fail(BACKUP, delay_s=1, times=None)
    file = tmp_path / "job.log"
    with capture_logs() as logs:
        event = asyncio.run(fire(defer(backup(tmp_path, log_file=str(file)))))
    told = [entry["event"] for entry in logs]
    assert len([line for line in told if line.startswith("Raw backup: 0/")]) >= 3
    assert told[-1].startswith("Raw backup: ")
    assert "(100 %)" in told[-1]
    assert event["progress"]["percent"] == 100
    lines = file.read_text().splitlines()
    assert len([line for line in lines if "[progress] [step=" in line]) >= 4
    assert '["Raw backup success summary"] [total-ranges=' in lines[-1]


def test_the_level_and_the_redaction_hold_there_too(tmp_path: Path) -> None:
    file = tmp_path / "job.log"
    given = {"log_file": str(file), "log_level": "warn", "start": "6b6579", "end": "6b657a", "redact_log": True}
    with capture_logs() as logs:
        event = asyncio.run(fire(defer(backup(tmp_path, **given))))
    assert logs == []
    assert (event["result"]["start"], event["result"]["end"]) == ("?", "?")
    assert "6b6579" not in file.read_text()


# --- being stopped ---


async def stuck_restore(target: ThreadedCluster, tmp_path: Path) -> tuple[engine.EngineTrigger, asyncio.Task[Any]]:
    """The trigger of a restore that hangs, and the task that runs it."""
    url = str(tmp_path / "backup")
    await asyncio.to_thread(lambda: backup(tmp_path, deferrable=False).execute({}))
    stuck = target.faults.fail(IMPORT_DOWNLOAD, delay_s=3600, times=None)
    task = RestoreRawOperator(task_id="r", storage=url, tikv_conn_id="tikv_target", ratelimit=100, deferrable=True)
    trigger = defer(task)
    running = asyncio.ensure_future(fire(trigger))
    await until(lambda: stuck.hits >= 1)
    assert target.apply(lambda c: c.pd.schedulers.paused())
    return trigger, running


def is_as_before(target: ThreadedCluster) -> bool:
    return target.apply(lambda c: c.pd.schedulers.paused()) == {} and not target.apply(
        lambda c: c.pd.config.ttl_values(after_s=1)
    )


async def test_a_cancelled_trigger_puts_the_cluster_back(target: ThreadedCluster, tmp_path: Path) -> None:
    _, running = await stuck_restore(target, tmp_path)
    # The triggerer asks once a second until the trigger has ended; here it is more impatient still.
    while not running.done():
        running.cancel()
        await asyncio.wait((running,), timeout=0.02)
    assert running.cancelled()
    assert is_as_before(target)


async def test_a_killed_trigger_puts_the_cluster_back(target: ThreadedCluster, tmp_path: Path) -> None:
    trigger, running = await stuck_restore(target, tmp_path)
    await trigger.on_kill()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert is_as_before(target)


def test_a_triggerer_that_ends_puts_the_cluster_back(target: ThreadedCluster, tmp_path: Path) -> None:
    async def triggerer() -> None:
        await stuck_restore(target, tmp_path)
        # asyncio.run cancels every task that there is now.

    asyncio.run(triggerer())
    assert is_as_before(target)


async def test_killing_a_trigger_that_does_not_run_does_nothing(tmp_path: Path) -> None:
    await defer(backup(tmp_path)).on_kill()


async def test_a_job_that_does_not_stop_in_time_is_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    over = asyncio.Event()
    begun: list[bool] = []

    async def stubborn(trigger: engine.EngineTrigger, prepared: Any, report: Any) -> Any:
        begun.append(True)
        try:
            await asyncio.sleep(3600)
        finally:
            await over.wait()

    monkeypatch.setattr(engine, "GRACE_S", 0.05)
    monkeypatch.setattr(engine.EngineTrigger, "work", stubborn)
    running = asyncio.ensure_future(fire(defer(backup(tmp_path))))
    await until(lambda: begun)
    with capture_logs() as logs:
        running.cancel()
        await asyncio.wait((running,))
    assert running.cancelled()
    assert [entry["event"] for entry in logs][-1].endswith("has not put the cluster back within 0.05 s.")
    over.set()
    await until(lambda: not engine._lingering)


# --- the triggerer's loop ---


_watched: dict[str, Any] = {"thread": None, "seen": []}
# What waits for a disk, a network, a process or a clock.
_BLOCKING = (
    "open",
    "socket.connect",
    "socket.getaddrinfo",
    "time.sleep",
    "subprocess.Popen",
    "os.listdir",
    "os.scandir",
)


def _audit(event: str, arguments: Any) -> None:
    if _watched["thread"] == threading.get_ident() and event in _BLOCKING:
        if event == "socket.connect" and arguments[0].gettimeout() == 0:
            return  # as asyncio does
        _watched["seen"].append((event, str(arguments)))


@contextmanager
def blocking_calls() -> Iterator[list[tuple[str, str]]]:
    """What this thread does that may block."""
    if "hooked" not in _watched:
        sys.addaudithook(_audit)  # for good: there is no way to take one away
        _watched["hooked"] = True
    _watched.update(thread=threading.get_ident(), seen=[])
    try:
        yield _watched["seen"]
    finally:
        _watched["thread"] = None


def test_blocking_calls_would_be_seen(tmp_path: Path) -> None:
    with blocking_calls() as seen:
        time.sleep(0)
        (tmp_path / "file").write_text("x")
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname()).close()
    assert {event for event, _ in seen} >= {"open", "socket.connect", "socket.getaddrinfo"}


def jobs(tmp_path: Path) -> list[engine.EngineTrigger]:
    """One trigger of each kind, with all that reads and writes files."""
    url, file = str(tmp_path / "backup"), str(tmp_path / "job.log")
    given: dict[str, Any] = {"storage": url, "tikv_conn_id": "tikv_target", "log_file": file, "deferrable": True}
    return [
        defer(backup(tmp_path, checksum=True, log_file=file)),
        defer(RestoreRawOperator(task_id="r", verify_files="sha256", checkpoint_storage=f"{url}-checkpoint", **given)),
        defer(ChecksumSensor(task_id="c", **given)),
    ]


async def test_nothing_that_blocks_is_called_on_the_loop(target: ThreadedCluster, tmp_path: Path) -> None:
    for trigger in jobs(tmp_path):
        with blocking_calls() as seen:
            event = await fire(trigger)
        assert event["status"] == "success"
        assert seen == []


async def test_nothing_holds_up_the_loop(
    monkeypatch: pytest.MonkeyPatch, target: ThreadedCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    real = BaseHook.get_connection.__func__  # type: ignore[attr-defined]

    def slow(cls: type[BaseHook], conn_id: str) -> Any:
        # A secrets backend far away.
        time.sleep(1.5)
        return real(cls, conn_id)

    triggers = jobs(tmp_path)
    monkeypatch.setattr(BaseHook, "get_connection", classmethod(slow))
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    # Generous, for the machine may have other things to do; less than the backend takes.
    loop.slow_callback_duration = 1.0
    with caplog.at_level(logging.WARNING, logger="asyncio"):
        for trigger in triggers:
            assert (await fire(trigger))["status"] == "success"
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


async def test_many_jobs_share_the_loop(source: ThreadedCluster, tmp_path: Path) -> None:
    source.faults.fail(BACKUP, code=grpc.StatusCode.UNAVAILABLE, times=3)
    triggers = [defer(backup(tmp_path, storage=str(tmp_path / str(at)), redact_log=at % 2 == 0)) for at in range(6)]
    events = await asyncio.gather(*(fire(trigger) for trigger in triggers))
    assert {event["result"]["total_kv"] for event in events} == {300}


async def test_another_triggerer_goes_on(target: ThreadedCluster, source: ThreadedCluster, tmp_path: Path) -> None:
    """The first triggerer ends when three of six files are restored; the second restores the others."""
    url = str(tmp_path / "backup")
    await asyncio.to_thread(lambda: backup(tmp_path, deferrable=False).execute({}))
    stuck = target.faults.add(Rule(kind=Kind.HANG, method=IMPORT_DOWNLOAD, after=3))
    task = RestoreRawOperator(task_id="r", storage=url, tikv_conn_id="tikv_target", concurrency=1, deferrable=True)
    first = defer(task)
    running = asyncio.ensure_future(fire(first))
    await until(lambda: stuck.hits)
    running.cancel()
    await asyncio.wait((running,))
    assert is_as_before(target)
    target.faults.clear()
    counted = target.faults.add(Rule(kind=Kind.DELAY, method=IMPORT_DOWNLOAD, delay_s=0.001))
    event = await fire(type(first)(**first.serialize()[1]))
    assert event["result"]["total_kv"] == 300
    assert counted.hits == 3
    assert await asyncio.to_thread(target.pairs) == await asyncio.to_thread(source.pairs)


@pytest.mark.parametrize(("message", "kept"), [("", True), ("user-action", False)])
async def test_gc_is_held_back_for_another_triggerer_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, message: str, kept: bool
) -> None:
    with ThreadedCluster(data_dir=tmp_path / "v2", api_version=ApiVersion.V2, stores=3) as cluster:
        connect(monkeypatch, "tikv_v2", cluster)
        fill(cluster)

        def services() -> set[str]:
            return {
                name for name in cluster.apply(lambda c: dict(c.pd.safe_points.services())) if name.startswith("br-")
            }

        stuck = cluster.faults.add(Rule(kind=Kind.HANG, method=BACKUP))
        first = defer(backup(tmp_path, tikv_conn_id="tikv_v2"))
        running = asyncio.ensure_future(fire(first))
        await until(lambda: stuck.hits)
        (held,) = services()
        running.cancel(message) if message else running.cancel()
        await asyncio.wait((running,))
        assert services() == ({held} if kept else set())
        cluster.faults.clear()
        event = await fire(type(first)(**first.serialize()[1]))
        assert event["result"]["total_kv"] == 300
        # It runs out by itself, as after any success.
        assert services() == {held}
