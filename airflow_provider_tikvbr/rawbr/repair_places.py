"""The places where a killed job has written: its locks there, and what of a cluster is still wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from airflow_provider_tikvbr.exceptions import StorageLockedError, StorageNotFoundError
from airflow_provider_tikvbr.rawbr import resume, takeover
from airflow_provider_tikvbr.rawbr.checkpoint import HEAD_NAME
from airflow_provider_tikvbr.rawbr.checkpoint_format import Head
from airflow_provider_tikvbr.rawbr.lock_record import (
    BACKUP_LOCK,
    RESTORE_LOCK,
    WATCH_S,
    LockRecord,
    Verdict,
    judge,
    lock_place,
    read_lock,
    remove_lock,
    why_abandoned,
)
from airflow_provider_tikvbr.rawbr.repair_steps import Repair, Step
from airflow_provider_tikvbr.storage.base import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where jobs have written.

    :param storage: of a backup.
    :param checkpoint_storage: of a restore's checkpoint.
    """

    storage: Storage | None = None
    checkpoint_storage: Storage | None = None

    async def locks(self, cluster_id: int) -> Sequence[Step]:
        """The locks that nobody holds any more, to be removed. One that may be held is watched for a while.

        :param cluster_id: a restore into another cluster keeps its lock: this one is not changed by it.
        :raises StorageLockedError: somebody holds one, or may.
        :raises TikvBrError: a place does not let us look.
        """
        ours = (f"{resume.DIRECTORY}/{cluster_id}-", f"{resume.DIRECTORY}/{RESTORE_LOCK}")
        found: list[tuple[Storage, str]] = []
        for storage in (self.storage, self.checkpoint_storage):
            if storage is not None and storage.keeps:
                names = await _names(storage)
                found += (
                    (storage, name) for name in names if name.startswith(ours) and name.endswith(f"/{RESTORE_LOCK}")
                )
        if self.storage is not None and self.storage.keeps:
            found.append((self.storage, BACKUP_LOCK))
        steps = await asyncio.gather(*(_lock_step(storage, name) for storage, name in found))
        return [step for step in steps if step is not None]

    async def wanted_safepoints(self) -> Mapping[str, str]:
        """The service that an unfinished backup goes on with, and where that backup is.

        :raises TikvBrError: the storage does not let us look.
        """
        if self.storage is None or not self.storage.keeps:
            return {}
        try:
            head = Head.parse(await self.storage.read(f"{takeover.DIRECTORY}/{HEAD_NAME}"))
        except StorageNotFoundError:
            return {}
        if head is None or "service_id" not in head.state:
            return {}
        return {str(head.state["service_id"]): self.storage.display_url}


async def _names(storage: Storage) -> list[str]:
    """What the checkpoints of restores in a place consist of.

    :raises StorageNotFoundError: there is no such place.
    """
    try:
        return [info.name async for info in storage.list(f"{resume.DIRECTORY}/")]
    except StorageNotFoundError:
        message = f"there is nothing at {storage.display_url}: give the place where the job wrote"
        raise StorageNotFoundError(message, url=storage.display_url) from None


async def _lock_step(storage: Storage, name: str) -> Step | None:
    record = await read_lock(storage, name)
    if record is None:
        return None
    why = await why_abandoned(storage, name, record, watch_s=WATCH_S)
    if not why:
        raise _held(storage, name, record, await asyncio.to_thread(judge, record))
    short = name.rpartition("/")[2]
    return Step(
        found=Repair(what=f"{short} in {lock_place(storage, name)}", before=f"of {record}: {why}", after="removed"),
        act=_removal(storage, name, record),
        otherwise="the next try of that job takes it over",
    )


def _removal(storage: Storage, name: str, record: LockRecord) -> Callable[[], Awaitable[None]]:
    async def act() -> None:
        if not await remove_lock(storage, name, record):
            raise StorageLockedError(
                f"another job has taken over the lock of {lock_place(storage, name)} meanwhile",
                url=storage.display_url,
            )

    return act


def _held(storage: Storage, name: str, record: LockRecord, verdict: Verdict) -> StorageLockedError:
    place = lock_place(storage, name)
    if record.is_foreign:
        said = f"{name} in {storage.display_url} does not say who holds it: delete it if no job is running"
    elif verdict is Verdict.LIVES:
        said = f"{place} is locked by {record}, which runs on this machine: let it end, or stop it"
    else:
        said = f"{place} is locked by {record}, which may live: let it end, or try again two minutes after it has died"
    return StorageLockedError(f"{said}; nothing was changed", url=storage.display_url, owner=record.owner or None)
