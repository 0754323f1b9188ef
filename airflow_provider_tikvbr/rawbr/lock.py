"""One writer per place: ``backup.lock`` beside the backup names who writes there.

tikv-br refuses a place that holds a ``backup.lock`` together with SSTs, so the lock also keeps tikv-br away while a backup
runs, and has to be gone afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from airflow_provider_tikvbr.exceptions import StorageLockedError, StorageNotFoundError, TikvBrError
from airflow_provider_tikvbr.rawbr.meta import META_NAME, backup_exists
from airflow_provider_tikvbr.rawbr.tasks import settle
from airflow_provider_tikvbr.storage.base import Storage

LOCK_NAME = "backup.lock"
HEARTBEAT_S = 30.0
TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRecord:
    """What a lock says.

    :param owner: the run that writes; the same run may take over its own lock after a crash.
    :param holder: a random id, new for each process that takes the lock.
    :param started: when the lock was taken, ISO 8601, UTC.
    :param heartbeat: when the holder last wrote it.
    """

    owner: str
    holder: str
    host: str
    pid: int
    started: str
    heartbeat: str

    @classmethod
    def parse(cls, data: bytes) -> LockRecord:
        """Read a lock; other tools leave other texts, which belong to an unknown owner."""
        try:
            found: Any = json.loads(data)
            return cls(
                owner=str(found["owner"]),
                holder=str(found["holder"]),
                host=str(found["host"]),
                pid=int(found["pid"]),
                started=str(found["started"]),
                heartbeat=str(found["heartbeat"]),
            )
        except (ValueError, TypeError, KeyError):
            return cls(owner="", holder="", host="", pid=0, started="", heartbeat="")

    def dump(self) -> bytes:
        """Its text, with the time of now as heartbeat."""
        fields = {name: getattr(self, name) for name in self.__slots__} | {"heartbeat": _now()}
        return (json.dumps(fields, indent=1) + "\n").encode()


class BackupLock:
    """A lock that this process holds; made by :meth:`acquire` alone.

    :ivar left_behind: after the end: why the lock could not be removed; None if all went well.
    """

    def __init__(self, *, storage: Storage, record: LockRecord, heartbeat_s: float) -> None:
        self._storage = storage
        self._record = record
        self._heartbeat_s = heartbeat_s
        self._ended = asyncio.Event()
        self.left_behind: str | None = None

    @classmethod
    @asynccontextmanager
    async def acquire(
        cls,
        storage: Storage,
        *,
        owner: str = "",
        heartbeat_s: float = HEARTBEAT_S,
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncIterator[BackupLock]:
        """Hold the lock while the block runs.

        :param owner: the run; a retry of the same run takes its own lock over. Empty = nobody ever takes over.
        :param heartbeat_s: how often the lock is rewritten, so that people see that its holder lives.
        :param check: run before and after the lock is taken; what it raises is the reason not to hold it. By default a
            place that holds a finished backup is refused.
        :raises BackupExistsError: the place holds a finished backup.
        :raises StorageLockedError: another run holds the lock.
        """
        now = _now()
        record = LockRecord(
            owner=owner or f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}",
            holder=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=now,
            heartbeat=now,
        )
        lock = cls(storage=storage, record=record, heartbeat_s=heartbeat_s)
        if not storage.keeps:
            yield lock
            return
        beat: asyncio.Task[None] | None = None
        try:
            # Not left half-way when cancelled: the write could land after the release below looked for it.
            await (check or lock._refuse_finished)()
            await settle(lock._take())
            # Another run may have finished between the first look and the lock.
            await (check or lock._refuse_finished)()
            # Not before: it ends when it finds that the lock is not ours.
            beat = asyncio.create_task(lock._beat())
            yield lock
        finally:
            await settle(lock._release(beat))

    async def confirm(self) -> None:
        """Make sure that the lock is still ours: to be called right before the backup is declared complete.

        :raises StorageLockedError: somebody took it over or deleted it.
        """
        if not self._storage.keeps:
            return
        now = await self._read()
        if now is None or now.holder != self._record.holder:
            raise StorageLockedError(
                f"the lock of {self._storage.display_url} was lost to {_name(now)}: this backup is not completed",
                url=self._storage.display_url,
                owner=now.owner if now else None,
            )

    async def _take(self) -> None:
        found: LockRecord | None = None
        for _ in range(TRIES):
            if await self._storage.create(LOCK_NAME, self._record.dump()):
                return
            found = await self._read()
            if found is None:  # given back since
                continue
            # Ours already: the answer to a first try was lost. Or the same run's, from a try that died.
            if found.owner == self._record.owner:
                await self._storage.write(LOCK_NAME, self._record.dump())
                return
            break
        raise StorageLockedError(
            f"{self._storage.display_url} is being written by {_name(found)}: wait for it, give another place, or "
            f"delete {LOCK_NAME} there if that job is no longer running",
            url=self._storage.display_url,
            owner=found.owner if found else None,
        )

    async def _refuse_finished(self) -> None:
        if await self._storage.exists(META_NAME):
            raise backup_exists(self._storage)

    async def _read(self) -> LockRecord | None:
        try:
            return LockRecord.parse(await self._storage.read(LOCK_NAME))
        except StorageNotFoundError:
            return None

    async def _is_ours(self) -> bool:
        found = await self._read()
        return found is not None and found.holder == self._record.holder

    async def _beat(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._ended.wait(), self._heartbeat_s)
            except asyncio.TimeoutError:
                pass
            else:
                return
            try:
                if not await self._is_ours():
                    return
                await self._storage.write(LOCK_NAME, self._record.dump())
            except TikvBrError:
                # The heartbeat only informs people; the storage's troubles show where the backup itself meets them.
                continue

    async def _release(self, beat: asyncio.Task[None] | None) -> None:
        # Not cancelled but told to end: a write that is under way would put the lock back after we removed it.
        self._ended.set()
        if beat is not None:
            await beat
        try:
            if await self._is_ours():
                await self._storage.delete(LOCK_NAME)
        except TikvBrError as error:
            # The backup's own fate is more important than its lock's, so the caller is told, not stopped.
            self.left_behind = f"{LOCK_NAME} is left behind in {self._storage.display_url}: {error}"


def _name(record: LockRecord | None) -> str:
    if record is None or not record.owner:
        return "another job"
    return f"{record.owner} (host {record.host}, pid {record.pid}, last sign of life {record.heartbeat})"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
