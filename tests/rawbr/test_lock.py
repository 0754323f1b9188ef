from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.exceptions import BackupExistsError, StorageLockedError, StorageUnavailableError
from airflow_provider_tikvbr.rawbr.lock import LOCK_NAME, BackupLock
from airflow_provider_tikvbr.rawbr.meta import META_NAME
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


async def content(storage: Storage) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await storage.read(LOCK_NAME))
    return found


async def names(storage: Storage) -> list[str]:
    return [info.name async for info in storage.list()]


async def test_the_lock_names_its_holder_and_goes(storage: Storage) -> None:
    async with BackupLock.acquire(storage, owner="dag.task.run1") as lock:
        found = await content(storage)
        assert (found["owner"], found["pid"]) == ("dag.task.run1", os.getpid())
        assert found["host"]
        assert found["started"] <= found["heartbeat"]
        await lock.confirm()
    assert lock.left_behind is None
    assert await names(storage) == []


async def test_another_run_is_refused(storage: Storage) -> None:
    async with BackupLock.acquire(storage, owner="run1"):
        before = await storage.read(LOCK_NAME)
        with pytest.raises(StorageLockedError, match=r"is being written by run1 \(host .*\): wait for it") as caught:
            async with BackupLock.acquire(storage, owner="run2"):
                pass
        assert caught.value.owner == "run1"
        assert caught.value.url == storage.display_url
        assert await storage.read(LOCK_NAME) == before


async def test_runs_without_a_name_never_share(storage: Storage) -> None:
    async with BackupLock.acquire(storage):
        with pytest.raises(StorageLockedError):
            async with BackupLock.acquire(storage):
                pass


async def test_of_many_runs_one_gets_it(storage: Storage) -> None:
    inside = refused = 0
    all_refused = asyncio.Event()

    async def run(number: int) -> None:
        nonlocal inside, refused
        try:
            async with BackupLock.acquire(storage, owner=f"run{number}"):
                inside += 1
                await all_refused.wait()
        except StorageLockedError:
            refused += 1
            if refused == 5:
                all_refused.set()

    await asyncio.gather(*(run(number) for number in range(6)))
    assert (inside, refused) == (1, 5)
    assert await names(storage) == []


async def test_the_same_run_takes_over(storage: Storage) -> None:
    async with BackupLock.acquire(storage, owner="run1") as dead:
        first = await content(storage)
        async with BackupLock.acquire(storage, owner="run1") as lock:
            second = await content(storage)
            assert second["owner"] == "run1"
            assert second["holder"] != first["holder"]
            await lock.confirm()
            with pytest.raises(StorageLockedError, match=r"was lost to run1 .*: this backup is not completed"):
                await dead.confirm()
        # The one that lost it must not remove what it does not hold, nor bring it back.
        assert await names(storage) == []
    assert await names(storage) == []


async def test_the_loser_leaves_the_lock_alone(storage: Storage) -> None:
    async with BackupLock.acquire(storage, owner="run1", heartbeat_s=0.01):
        foreign = b'{"owner": "run1", "holder": "x", "host": "h", "pid": 1, "started": "s", "heartbeat": "t"}'
        await storage.write(LOCK_NAME, foreign)
        await asyncio.sleep(0.1)
        assert await storage.read(LOCK_NAME) == foreign
    assert await storage.read(LOCK_NAME) == foreign


async def test_locks_of_other_tools_are_respected(storage: Storage) -> None:
    for text in (
        b"DO NOT DELETE\nThis file exists to remind other backup jobs",
        b"[]",
        b'{"owner": "run1"}',
        b"\xff\xfe",
    ):
        await storage.write(LOCK_NAME, text)
        with pytest.raises(StorageLockedError, match="is being written by another job: wait for it"):
            async with BackupLock.acquire(storage, owner="run1"):
                pass
        assert await storage.read(LOCK_NAME) == text


async def test_a_finished_backup_is_not_locked(storage: Storage) -> None:
    await storage.write(META_NAME, b"x")
    with pytest.raises(BackupExistsError, match="holds a backup already"):
        async with BackupLock.acquire(storage, owner="run1"):
            pass
    assert await names(storage) == [META_NAME]


async def test_a_backup_that_finishes_just_then(tmp_path: Path) -> None:
    class Racing(LocalStorage):
        async def create(self, name: str, data: bytes) -> bool:
            await super().write(META_NAME, b"another run's")
            return await super().create(name, data)

    storage = Racing(path=tmp_path)
    with pytest.raises(BackupExistsError):
        async with BackupLock.acquire(storage, owner="run1"):
            pass
    assert await names(storage) == [META_NAME]


async def test_the_heart_beats(tmp_path: Path) -> None:
    class Watched(LocalStorage):
        async def write(self, name: str, data: bytes) -> None:
            await super().write(name, data)
            beats.put_nowait((name, json.loads(data)))

    beats: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
    storage = Watched(path=tmp_path)
    async with BackupLock.acquire(storage, owner="run1", heartbeat_s=0.01):
        for _ in range(3):
            name, found = await beats.get()
            assert (name, found["owner"]) == (LOCK_NAME, "run1")
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

    async with BackupLock.acquire(Slow(path=tmp_path), owner="run1", heartbeat_s=0.01):
        await asyncio.wait_for(beaten.wait(), 30)


async def test_a_failed_job_gives_the_lock_back(storage: Storage) -> None:
    with pytest.raises(RuntimeError, match="the job failed"):
        async with BackupLock.acquire(storage, owner="run1"):
            raise RuntimeError("the job failed")
    assert await names(storage) == []


async def test_a_cancelled_job_gives_the_lock_back(storage: Storage) -> None:
    locked = asyncio.Event()

    async def job() -> None:
        async with BackupLock.acquire(storage, owner="run1"):
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
        async with BackupLock.acquire(storage, owner="run1"):
            pytest.fail("cancelled before")

    task = asyncio.create_task(job())
    await creating.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names(storage) == []


async def test_a_lock_that_cannot_be_removed_does_not_fail_the_job(tmp_path: Path) -> None:
    class Stuck(LocalStorage):
        async def delete(self, name: str) -> None:
            raise StorageUnavailableError("the disk is gone")

    storage = Stuck(path=tmp_path)
    async with BackupLock.acquire(storage, owner="run1") as lock:
        pass
    assert lock.left_behind == f"backup.lock is left behind in local://{tmp_path}: the disk is gone"


async def test_trouble_with_the_heartbeat_is_not_the_jobs(tmp_path: Path) -> None:
    failed = asyncio.Event()

    class Flaky(LocalStorage):
        async def write(self, name: str, data: bytes) -> None:
            failed.set()
            raise StorageUnavailableError("busy")

    storage = Flaky(path=tmp_path)
    async with BackupLock.acquire(storage, owner="run1", heartbeat_s=0.01) as lock:
        await failed.wait()
        await lock.confirm()
    assert await names(storage) == []


async def test_a_place_that_keeps_nothing_needs_no_lock() -> None:
    storage = open_storage("noop://")
    async with BackupLock.acquire(storage, owner="run1") as lock:
        await lock.confirm()
    assert lock.left_behind is None
