"""Two tries of one backup at the same time: one that everybody takes for dead, and its successor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import StorageLockedError
from airflow_provider_tikvbr.rawbr import backup as module
from airflow_provider_tikvbr.rawbr import lock
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.finished import back_up_whole
from airflow_provider_tikvbr.rawbr.leases import SchedulerLease
from airflow_provider_tikvbr.rawbr.lock import LockTimes
from airflow_provider_tikvbr.rawbr.lock_record import BACKUP_LOCK, LockRecord
from airflow_provider_tikvbr.rawbr.meta import META_NAME, build_meta
from airflow_provider_tikvbr.rawbr.options import backup_options
from airflow_provider_tikvbr.rawbr.summary import BackupSummary
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyCodec
from tests.rawbr.jobs import Events, checksum_of, cluster, make_pairs, names
from tests.support.waiting import until

V1, V1TTL, V2 = ApiVersion


@pytest.fixture(autouse=True)
def _quick_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats come too late to tell who has the lock."""
    monkeypatch.setattr(lock, "LockTimes", partial(LockTimes, settle_s=0.3))


async def run(client: Cluster, place: Path, **options: Any) -> BackupSummary:
    async with open_storage(f"local://{place}") as storage:
        return await backup(client, storage, backup_options(**{"owner": "run", **options}), Events())


class Gate:
    """Stops the first try at some point, until it is opened."""

    def __init__(self) -> None:
        self.there, self.opened = threading.Event(), threading.Event()
        self.visits = 0

    def first(self) -> bool:
        self.visits += 1
        return self.visits == 1

    async def pass_through(self) -> None:
        if self.first():
            self.there.set()
            await until(self.opened.is_set)


@asynccontextmanager
async def overtaken(
    client: Cluster, place: Path, gate: Gate, **options: Any
) -> AsyncIterator[tuple[asyncio.Task[BackupSummary], asyncio.Task[BackupSummary]]]:
    """A try that stands at a gate while another one has taken its lock over and is at work."""
    first = asyncio.ensure_future(run(client, place, **options))
    await until(gate.there.is_set)
    held = (place / BACKUP_LOCK).read_bytes()
    second = asyncio.ensure_future(run(client, place, **options))
    await until(lambda: (place / BACKUP_LOCK).read_bytes() != held)
    try:
        yield first, second
    finally:
        gate.opened.set()
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def check(place: Path, summary: BackupSummary, version: ApiVersion) -> None:
    assert summary.checksum == checksum_of(make_pairs(), KeyCodec(version).prefix)
    assert {name for name in names(place) if not name.endswith(".sst")} == {META_NAME}


def points(embedded: EmbeddedCluster) -> dict[str, int]:
    return {name: service.safe_point for name, service in embedded.pd.safe_points.services().items()}


@pytest.mark.parametrize("end", ["finds out", "is cancelled"])
async def test_the_safepoint_is_its_successors(end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, gates = tmp_path / "place", (Gate(), Gate())

    async def gated(*args: Any, **options: Any) -> Any:
        files = await back_up_whole(*args, **options)
        await gates[0].pass_through()
        if gates[0].visits > 1 and not gates[1].there.is_set():
            await gates[1].pass_through()
        return files

    monkeypatch.setattr(module, "back_up_whole", gated)
    async with cluster(tmp_path, V2) as (embedded, client), overtaken(client, place, gates[0]) as (first, second):
        await until(lambda: len(points(embedded)) == 1)
        held = points(embedded)
        if end == "is cancelled":
            first.cancel()
        gates[0].opened.set()
        with pytest.raises(asyncio.CancelledError if end == "is cancelled" else StorageLockedError):
            await first
        assert points(embedded) == held
        gates[1].opened.set()
        summary = await second
        assert points(embedded) == held
        assert {(summary.backup_ts or 0) - 1} == set(held.values())
    await check(place, summary, V2)


async def test_a_backup_is_not_declared_complete_over_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one has its files and is about to write backupmeta, which takes seconds to be made."""
    place, gate = tmp_path / "place", Gate()

    def slow(**parts: Any) -> Any:
        if gate.first():
            gate.there.set()
            gate.opened.wait(30)
        return build_meta(**parts)

    monkeypatch.setattr(module, "build_meta", slow)
    async with cluster(tmp_path) as (_, client), overtaken(client, place, gate) as (first, second):
        gate.opened.set()
        with pytest.raises(StorageLockedError, match="was lost to run"):
            await first
        assert META_NAME not in names(place)
        await check(place, await second, V1)


class Stolen(LocalStorage):
    """A directory where another try takes the lock just before, or just after, backupmeta is there."""

    def __init__(self, place: Path, when: str) -> None:
        super().__init__(path=place)
        self.when = when
        self.thief = LockRecord.of_this_process("run")

    async def create(self, name: str, data: bytes) -> bool:
        if name == META_NAME and self.when == "meanwhile":
            await self.write(BACKUP_LOCK, self.thief.dump())
        return await super().create(name, data)


async def test_a_lock_that_is_lost_while_backupmeta_is_written_is_no_success(tmp_path: Path) -> None:
    """The successor may have deleted files by then."""
    storage = Stolen(tmp_path / "place", "meanwhile")
    async with cluster(tmp_path) as (_, client):
        with pytest.raises(StorageLockedError, match="was lost to run"):
            await backup(client, storage, backup_options(owner="run"), Events())
    # Which of the two goes first is for the successor to find.
    assert names(tmp_path / "place") >= {META_NAME, BACKUP_LOCK}


async def test_what_a_successor_has_told_to_be_complete_is_not_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, gate = tmp_path / "place", Gate()
    undo: Callable[[SchedulerLease], Any] = SchedulerLease._undo

    async def slow(self: SchedulerLease) -> None:
        await gate.pass_through()
        await undo(self)

    monkeypatch.setattr(SchedulerLease, "_undo", slow)
    async with cluster(tmp_path) as (_, client):
        async with overtaken(client, place, gate, remove_schedulers=True) as (first, second):
            assert META_NAME in names(place)
            summary = await second
            first.cancel()
            gate.opened.set()
            with pytest.raises(asyncio.CancelledError):
                await first
        await check(place, summary, V1)
