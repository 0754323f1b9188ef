from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.exceptions import (
    BackupExistsError,
    BudgetExceededError,
    StorageLockedError,
    StorageUnavailableError,
)
from airflow_provider_tikvbr.rawbr import lock as module
from airflow_provider_tikvbr.rawbr.events import Note
from airflow_provider_tikvbr.rawbr.lock import LockTimes, StorageLock
from airflow_provider_tikvbr.rawbr.lock_record import BACKUP_LOCK, LockRecord
from airflow_provider_tikvbr.rawbr.tasks import is_handover
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from tests.support.waiting import several_times, until

FAST = LockTimes(heartbeat_s=0.02, stale_s=60, watch_s=0.3, settle_s=0.2, patience_s=1)
OTHER = LockRecord(owner="run2", holder="other", host="h2", pid=1, started="s", heartbeat="t")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


async def content(storage: Storage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await storage.read(BACKUP_LOCK))
    return found


async def names(storage: Storage) -> list[str]:
    return [info.name async for info in storage.list()]


def silent_since(seconds: float) -> LockRecord:
    beat = datetime.now(timezone.utc) - timedelta(seconds=seconds)
    return replace(OTHER, heartbeat=beat.isoformat(timespec="seconds"))


class Failing(LocalStorage):
    """Fails at what is named, until told otherwise."""

    def __init__(self, *, path: Path) -> None:
        super().__init__(path=path)
        self.failing: set[str] = set()
        self.failed = 0

    async def _act(self, what: str, work: Awaitable[Any]) -> Any:
        result = await work
        if what in self.failing:
            self.failed += 1
            raise StorageUnavailableError("the disk is gone")
        return result

    async def read(self, name: str) -> bytes:
        data: bytes = await self._act("read", super().read(name))
        return data

    async def create(self, name: str, data: bytes) -> bool:
        made: bool = await self._act("create", super().create(name, data))
        return made

    async def write(self, name: str, data: bytes) -> None:
        await self._act("write", super().write(name, data))

    async def delete(self, name: str) -> None:
        if "delete" in self.failing:
            raise StorageUnavailableError("the disk is gone")
        await super().delete(name)


# --- one holder ---


async def test_the_lock_names_its_holder_and_goes(storage: Storage) -> None:
    told: list[Any] = []
    async with StorageLock.acquire(storage, owner="dag.task.run1", listener=told.append) as lock:
        found = await content(storage)
        assert (found["owner"], found["pid"]) == ("dag.task.run1", os.getpid())
        assert found["host"]
        assert found["started"] <= found["heartbeat"]
        await lock.confirm()
    assert told == []
    assert await names(storage) == []


async def test_a_lock_has_a_name(storage: Storage) -> None:
    async with StorageLock.acquire(storage, "of/a/restore.lock"):
        assert await names(storage) == ["of/a/restore.lock"]
        async with StorageLock.acquire(storage, "of/another/restore.lock"):
            assert len(await names(storage)) == 2
        with pytest.raises(StorageLockedError, match=r"/of/a is being written by .*: wait for it, go away, or if"):
            async with StorageLock.acquire(storage, "of/a/restore.lock", otherwise="go away"):
                pass
    assert await names(storage) == []


async def test_another_run_is_refused(storage: Storage) -> None:
    async with StorageLock.acquire(storage, owner="run1"):
        before = await storage.read(BACKUP_LOCK)
        remedy = rf"run `tikvbr repair --storage {storage.display_url}`"
        with pytest.raises(StorageLockedError, match=rf"is being written by run1 \(host .*{remedy}") as caught:
            async with StorageLock.acquire(storage, owner="run2"):
                pass
        assert caught.value.owner == "run1"
        assert caught.value.url == storage.display_url
        assert await storage.read(BACKUP_LOCK) == before


async def test_runs_without_a_name_never_share(storage: Storage) -> None:
    async with StorageLock.acquire(storage):
        with pytest.raises(StorageLockedError):
            async with StorageLock.acquire(storage):
                pass


async def one_of(storage: Storage, owners: list[str]) -> None:
    """Of many takers one gets the lock."""
    inside = refused = 0
    all_refused = asyncio.Event()

    async def run(owner: str) -> None:
        nonlocal inside, refused
        try:
            async with StorageLock.acquire(storage, owner=owner, times=FAST):
                inside += 1
                await all_refused.wait()
        except StorageLockedError:
            refused += 1
            if refused == len(owners) - 1:
                all_refused.set()

    await asyncio.wait_for(asyncio.gather(*(run(owner) for owner in owners)), 60)
    assert (inside, refused) == (1, len(owners) - 1)
    assert await names(storage) == []


async def test_of_many_runs_one_gets_it(storage: Storage) -> None:
    await one_of(storage, [f"run{number}" for number in range(6)])


async def test_of_many_who_take_over_one_gets_it(storage: Storage) -> None:
    await storage.write(BACKUP_LOCK, silent_since(100).dump())
    await one_of(storage, [f"run{number}" for number in range(10, 16)])


async def test_locks_of_other_tools_are_respected(storage: Storage) -> None:
    for text in (
        b"DO NOT DELETE\nThis file exists to remind other backup jobs",
        b"[]",
        b'{"owner": "run1"}',
        b"\xff\xfe",
    ):
        await storage.write(BACKUP_LOCK, text)
        with pytest.raises(StorageLockedError, match=r"is being written by another job, .*delete backup\.lock in"):
            async with StorageLock.acquire(storage, owner="run1"):
                pass
        assert await storage.read(BACKUP_LOCK) == text


async def test_there_may_be_a_reason_not_to_lock(storage: Storage) -> None:
    async def check() -> None:
        raise BackupExistsError("there is a backup")

    with pytest.raises(BackupExistsError):
        async with StorageLock.acquire(storage, owner="run1", check=check):
            pass
    assert await names(storage) == []


async def test_the_reason_may_come_up_just_then(storage: Storage) -> None:
    async def check() -> None:
        if await storage.exists(BACKUP_LOCK):
            raise BackupExistsError("there is a backup by now")

    with pytest.raises(BackupExistsError, match="by now"):
        async with StorageLock.acquire(storage, owner="run1", check=check):
            pass
    assert await names(storage) == []


async def test_a_lost_answer_is_no_other_job(tmp_path: Path) -> None:
    storage = Failing(path=tmp_path)
    storage.failing = {"create"}
    loop = asyncio.get_running_loop()
    loop.call_later(0.05, storage.failing.clear)
    async with StorageLock.acquire(storage, owner="run1", times=FAST) as lock:
        await lock.confirm()
    assert storage.failed > 0
    assert await names(storage) == []


async def test_a_storage_that_stays_away(tmp_path: Path) -> None:
    storage = Failing(path=tmp_path)
    storage.failing = {"create", "read"}
    with pytest.raises(BudgetExceededError, match="the disk is gone"):
        async with StorageLock.acquire(storage, times=replace(FAST, patience_s=0.1)):
            pass


async def test_a_place_that_keeps_nothing_needs_no_lock() -> None:
    async def work() -> int:
        return 3

    told: list[Any] = []
    async with StorageLock.acquire(open_storage("noop://"), owner="run1", listener=told.append) as lock:
        await lock.confirm()
        assert await lock.guard(work()) == 3
    assert told == []


# --- locks of jobs that are gone ---


async def test_the_same_run_takes_over(storage: Storage) -> None:
    async with StorageLock.acquire(storage, owner="run1", times=replace(FAST, heartbeat_s=60)) as dead:
        first = await content(storage)
        async with StorageLock.acquire(storage, owner="run1", times=FAST) as lock:
            second = await content(storage)
            assert second["owner"] == "run1"
            assert second["holder"] != first["holder"]
            await lock.confirm()
            with pytest.raises(StorageLockedError, match=r"was lost to run1 .*: this job stops"):
                await dead.confirm()
        # The one that lost it must not remove what it does not hold, nor bring it back.
        assert await names(storage) == []
    assert await names(storage) == []


HOLD = """
import asyncio, sys
from airflow_provider_tikvbr.rawbr.lock import StorageLock
from airflow_provider_tikvbr.storage.factory import open_storage

async def main():
    async with StorageLock.acquire(open_storage(sys.argv[1]), owner="dead"):
        print("locked", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="only a system with /proc tells of its processes")
async def test_the_lock_of_a_killed_process_is_taken_over_at_once(storage: Storage, tmp_path: Path) -> None:
    told: list[Any] = []
    # With times that a test would not survive: nothing is waited for.
    times = replace(FAST, stale_s=6000, watch_s=6000)
    command = (sys.executable, "-c", HOLD, str(tmp_path))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"locked\n"
        with pytest.raises(StorageLockedError, match=rf"by dead \(host .*, pid {process.pid}, started "):
            async with StorageLock.acquire(storage, owner="alive", times=times):
                pass
    finally:
        process.kill()
        await process.wait()
    async with StorageLock.acquire(storage, owner="alive", times=times, listener=told.append):
        assert (await content(storage))["owner"] == "alive"
    (note,) = told
    assert note.level == "warning"
    assert note.message.startswith(f"took over the lock of {storage.display_url} from dead (host ")
    assert note.message.endswith("): its process is gone")
    assert await names(storage) == []


async def test_a_lock_without_a_sign_of_life_is_watched_and_taken_over(storage: Storage) -> None:
    told: list[Any] = []
    await storage.write(BACKUP_LOCK, silent_since(100).dump())
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with StorageLock.acquire(storage, owner="run1", times=FAST, listener=told.append) as lock:
        assert loop.time() - began >= FAST.watch_s
        await lock.confirm()
    (note,) = told
    assert re.search(r"it has shown no sign of life for 10[0-9] s$", note.message)


async def test_a_lock_that_shows_a_sign_of_life_while_it_is_watched(storage: Storage) -> None:
    """The clock of another machine may be wrong."""
    await storage.write(BACKUP_LOCK, silent_since(100).dump())

    async def beat() -> None:
        await asyncio.sleep(0.1)
        await storage.write(BACKUP_LOCK, silent_since(99).dump())

    beating = asyncio.create_task(beat())
    with pytest.raises(StorageLockedError, match="run2"):
        async with StorageLock.acquire(storage, owner="run1", times=FAST):
            pass
    await beating
    assert LockRecord.parse(await storage.read(BACKUP_LOCK)).holder == OTHER.holder


@pytest.mark.parametrize("heartbeat", ["", "yesterday", "2026-01-01T00:00:00"])
async def test_a_lock_that_tells_no_time_is_not_taken_over(storage: Storage, heartbeat: str) -> None:
    await storage.write(BACKUP_LOCK, replace(OTHER, heartbeat=heartbeat).dump())
    with pytest.raises(StorageLockedError, match="run2"):
        async with StorageLock.acquire(storage, owner="run1", times=FAST):
            pass


async def test_a_young_lock_is_not_taken_over(storage: Storage) -> None:
    await storage.write(BACKUP_LOCK, silent_since(50).dump())
    with pytest.raises(StorageLockedError, match="run2"):
        async with StorageLock.acquire(storage, owner="run1", times=FAST):
            pass


# --- signs of life ---


async def test_the_heart_beats(tmp_path: Path) -> None:
    class Watched(LocalStorage):
        async def write(self, name: str, data: bytes) -> None:
            await super().write(name, data)
            beats.put_nowait((name, json.loads(data)))

    beats: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
    storage = Watched(path=tmp_path)
    async with StorageLock.acquire(storage, owner="run1", times=FAST):
        for _ in range(3):
            name, found = await beats.get()
            assert (name, found["owner"]) == (BACKUP_LOCK, "run1")
            assert found["heartbeat"] >= found["started"]
    assert await names(storage) == []


async def test_the_heart_beats_however_long_it_took_to_lock(tmp_path: Path) -> None:
    beaten = asyncio.Event()

    class Slow(LocalStorage):
        async def create(self, name: str, data: bytes) -> bool:
            await asyncio.sleep(0.1)
            return await super().create(name, data)

        async def write(self, name: str, data: bytes) -> None:
            await super().write(name, data)
            beaten.set()

    async with StorageLock.acquire(Slow(path=tmp_path), owner="run1", times=FAST):
        await asyncio.wait_for(beaten.wait(), 30)


async def test_the_loser_leaves_the_lock_alone(storage: Storage) -> None:
    async with StorageLock.acquire(storage, owner="run1", times=FAST):
        await storage.write(BACKUP_LOCK, OTHER.dump())
        await asyncio.sleep(0.1)
        assert await storage.read(BACKUP_LOCK) == OTHER.dump()
    assert await storage.read(BACKUP_LOCK) == OTHER.dump()


async def test_a_heartbeat_may_fail_for_a_while(tmp_path: Path) -> None:
    storage = Failing(path=tmp_path)

    async def work() -> str:
        storage.failing = {"write"}
        await until(lambda: storage.failed >= 3)
        storage.failing = set()
        await asyncio.sleep(0.1)
        return "done"

    async with StorageLock.acquire(storage, owner="run1", times=FAST) as lock:
        assert await lock.guard(work()) == "done"
    assert await names(storage) == []


# --- work that needs the lock ---


async def forever(stopped: list[bool]) -> None:
    try:
        await asyncio.sleep(600)
    finally:
        stopped.append(is_handover())


async def steal(storage: Storage) -> None:
    await storage.write(BACKUP_LOCK, OTHER.dump())


async def drop(storage: Storage) -> None:
    await storage.delete(BACKUP_LOCK)


@pytest.mark.parametrize(
    ("lose", "sentence", "owner"),
    [
        (steal, r"was lost to run2 \(host h2, pid 1, .*: this job stops", "run2"),
        # Its successor may have ended well.
        (drop, r"was deleted: this job stops", None),
    ],
)
async def test_work_ends_when_its_lock_is_lost(
    lose: Callable[[Storage], Awaitable[None]], sentence: str, owner: str | None, storage: Storage
) -> None:
    stopped: list[bool] = []

    async def job() -> None:
        async with StorageLock.acquire(storage, owner="run1", times=FAST) as lock:
            losing = asyncio.create_task(several_times(lambda: lose(storage)))
            try:
                await lock.guard(forever(stopped))
            finally:
                await losing

    with pytest.raises(StorageLockedError, match=sentence) as caught:
        await asyncio.wait_for(job(), 30)
    # What is held for the successor is left to it.
    assert stopped == [True]
    assert caught.value.owner == owner
    assert await names(storage) == ([BACKUP_LOCK] if owner else [])


@pytest.mark.parametrize("lose", [steal, drop])
async def test_a_lock_that_has_passed_on_is_confirmed_to_nobody(
    lose: Callable[[Storage], Awaitable[None]], storage: Storage
) -> None:
    told: list[bool] = []

    async def work(lock: StorageLock) -> None:
        told.append(await lock.has_passed_on())
        await lock.confirm()
        await lose(storage)
        told.append(await lock.has_passed_on())
        told.append(is_handover())
        try:
            await lock.confirm()
        finally:
            told.append(is_handover())

    async with StorageLock.acquire(storage, owner="run1", times=replace(FAST, heartbeat_s=60)) as lock:
        with pytest.raises(StorageLockedError, match="this job stops"):
            await lock.guard(work(lock))
    assert told == [False, True, False, True]


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_storage_that_does_not_tell_leaves_the_lock_to_its_holder(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    storage = Failing(path=tmp_path)
    async with StorageLock.acquire(storage, owner="run1", times=replace(FAST, heartbeat_s=60)) as lock:
        await storage.write(BACKUP_LOCK, OTHER.dump())
        if how == "fails":
            storage.failing = {"read"}
        else:
            monkeypatch.setattr(storage, "read", lambda name: asyncio.sleep(60))
        assert not await lock.has_passed_on()
        monkeypatch.undo()
        storage.failing = set()
        assert await lock.has_passed_on()


async def test_work_ends_when_its_lock_cannot_be_kept(tmp_path: Path) -> None:
    storage = Failing(path=tmp_path)
    stopped: list[bool] = []

    async def job() -> None:
        async with StorageLock.acquire(storage, owner="run1", times=replace(FAST, stale_s=0.3)) as lock:
            storage.failing = {"write"}
            await lock.guard(forever(stopped))

    with pytest.raises(StorageUnavailableError, match=r"could not be written for 0\.3 s, .* the disk is gone"):
        await asyncio.wait_for(job(), 30)
    assert stopped == [True]


async def test_work_does_not_begin_without_the_lock(storage: Storage) -> None:
    async with StorageLock.acquire(storage, owner="run1", times=FAST) as lock:
        await several_times(lambda: steal(storage))
        with pytest.raises(StorageLockedError, match="was lost to run2"):
            await lock.guard(forever([]))


async def test_work_keeps_its_own_end(storage: Storage) -> None:
    async def fails() -> None:
        raise RuntimeError("the job failed")

    async with StorageLock.acquire(storage, owner="run1", times=FAST) as lock:
        with pytest.raises(RuntimeError, match="the job failed"):
            await lock.guard(fails())
        stopped: list[bool] = []
        job = asyncio.ensure_future(lock.guard(forever(stopped)))
        await asyncio.sleep(0.05)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert stopped == [False]
    assert await names(storage) == []


# --- its end ---


async def test_a_failed_job_gives_the_lock_back(storage: Storage) -> None:
    with pytest.raises(RuntimeError, match="the job failed"):
        async with StorageLock.acquire(storage, owner="run1"):
            raise RuntimeError("the job failed")
    assert await names(storage) == []


async def test_a_cancelled_job_gives_the_lock_back(storage: Storage) -> None:
    locked = asyncio.Event()

    async def job() -> None:
        async with StorageLock.acquire(storage, owner="run1"):
            locked.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(job())
    await locked.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(storage) == []


async def test_a_job_that_is_cancelled_while_it_takes_the_lock(tmp_path: Path) -> None:
    creating = asyncio.Event()

    class Slow(LocalStorage):
        async def create(self, name: str, data: bytes) -> bool:
            creating.set()
            await asyncio.sleep(0.05)
            return await super().create(name, data)

    storage = Slow(path=tmp_path)

    async def job() -> None:
        async with StorageLock.acquire(storage, owner="run1"):
            pytest.fail("cancelled before")

    task = asyncio.create_task(job())
    await creating.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(storage) == []


@pytest.mark.parametrize("at", ["create", "read"])
async def test_a_storage_that_hangs_does_not_hold_a_job_that_is_stopped(at: str, tmp_path: Path) -> None:
    hanging = asyncio.Event()
    told: list[Any] = []

    class Hanging(LocalStorage):
        async def create(self, name: str, data: bytes) -> bool:
            if at == "create":
                hanging.set()
                await asyncio.sleep(600)
            return await super().create(name, data)

        async def read(self, name: str) -> bytes:
            if at == "read":
                await asyncio.sleep(600)
            return await super().read(name)

    async def job() -> None:
        async with StorageLock.acquire(Hanging(path=tmp_path), owner="run1", listener=told.append):
            hanging.set()
            await asyncio.sleep(600)

    task = asyncio.create_task(job())
    await hanging.wait()
    loop = asyncio.get_running_loop()
    began = loop.time()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop.time() - began < 5


async def test_a_lock_that_cannot_be_removed_does_not_fail_the_job(tmp_path: Path) -> None:
    storage = Failing(path=tmp_path)
    told: list[Any] = []
    async with StorageLock.acquire(storage, owner="run1", listener=told.append, times=replace(FAST, patience_s=0.1)):
        storage.failing = {"delete"}
    (note,) = told
    assert isinstance(note, Note)
    assert note.message.startswith(
        f"backup.lock may be left behind in local://{tmp_path}, so delete it, or run `tikvbr repair --storage"
        f" local://{tmp_path}`: gave up after 0.1 s"
    ) or note.message.endswith("no answer in time")
