"""What earlier tries of a restore have brought into the cluster already, and what of its files is left.

The pieces that are done are kept beside the backup, or where the user wants them: a backup may be read-only. Restores of
one backup into several clusters have a checkpoint each.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from airflow_provider_tikvbr.exceptions import InvalidOptionError, StorageLockedError, TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.checkpoint import Checkpoint
from airflow_provider_tikvbr.rawbr.checkpoint_format import JobIdentity
from airflow_provider_tikvbr.rawbr.events import Listener, Note
from airflow_provider_tikvbr.rawbr.lock import StorageLock
from airflow_provider_tikvbr.rawbr.lock_record import RESTORE_LOCK
from airflow_provider_tikvbr.rawbr.options import RestoreOptions
from airflow_provider_tikvbr.rawbr.pieces import FileWork
from airflow_provider_tikvbr.rawbr.plan import PlannedFile, RestorePlan
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyCodec, KeyRange, RegionKey

T = TypeVar("T")

DIRECTORY = "restore.checkpoint"


class RestoreCheckpoint:
    """The checkpoint of one restore; made by :meth:`held` alone.

    :param checkpoint: where it is kept; None if it cannot be kept anywhere.
    :param lock: of that place.
    :param works: what is left to do of each file.
    """

    def __init__(
        self,
        *,
        checkpoint: Checkpoint | None,
        lock: StorageLock | None,
        works: tuple[FileWork, ...],
        codec: KeyCodec,
        listener: Listener,
    ) -> None:
        self._checkpoint = checkpoint
        self._lock = lock
        self._codec = codec
        self._listener = listener
        self.works = works

    @classmethod
    @asynccontextmanager
    async def held(
        cls,
        cluster: Cluster,
        meta: brpb_pb2.BackupMeta,
        plan: RestorePlan,
        options: RestoreOptions,
        *,
        beside: Storage,
        given: Storage | None,
        listener: Listener,
    ) -> AsyncIterator[RestoreCheckpoint]:
        """Begin a checkpoint, or go on with the one that is there, and hold its lock while the block runs.

        :param meta: the backup.
        :param plan: what is to be restored of it.
        :param beside: the backup's storage, where the checkpoint is kept if nothing else is given.
        :param given: where the user wants it.
        :param listener: told what is gone on with, and of a place where nothing can be written.
        :raises InvalidOptionError: an unfinished restore was begun with other options, or the given place keeps nothing.
        :raises StorageLockedError: another restore of the backup into the same cluster and keyspace is under way.
        :raises TikvBrError: the given place cannot be used.
        """
        async with AsyncExitStack() as locked:
            lock, checkpoint = await _open(
                cluster, meta, plan, options, locked, beside=beside, given=given, listener=listener
            )
            works = await _works(checkpoint, plan.files)
            _tell(checkpoint, works, listener)
            yield cls(checkpoint=checkpoint, lock=lock, works=works, codec=cluster.codec, listener=listener)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work for which the lock is needed; if the lock is lost, the work is cancelled.

        :raises StorageLockedError: the lock was lost to another job, or deleted.
        :raises StorageUnavailableError: the lock could not be kept for so long that others may take it over.
        """
        return await (work if self._lock is None else self._lock.guard(work))

    @property
    def resumed(self) -> bool:
        """Whether an earlier try is gone on with."""
        return self._checkpoint is not None and self._checkpoint.resumed

    @property
    def is_empty(self) -> bool:
        """Whether neither this try nor an earlier one has restored anything, as far as anybody will know."""
        return self._checkpoint is None or self._checkpoint.is_empty

    @property
    def left(self) -> tuple[FileWork, ...]:
        """The files that are not finished."""
        return tuple(work for work in self.works if work.todo)

    async def start_over(self) -> None:
        """Let go of what earlier tries have restored.

        :raises TikvBrError: the checkpoint's place does not let us.
        """
        if self._checkpoint is None:
            return
        await self._checkpoint.start_over()
        self.works = await _works(None, [work.planned for work in self.works])

    def add(self, planned: PlannedFile, keys: KeyRange[RegionKey]) -> None:
        """A part of a file is restored."""
        if self._checkpoint is None:
            return
        try:
            done = self._codec.api_range_of_regions(keys)
        except ValueError:
            # A region that begins at no key of ours: what it holds is restored once more if need be.
            return
        files = [brpb_pb2.File(name=planned.file.name)]
        self._checkpoint.add(brpb_pb2.BackupResponse(start_key=done.start, end_key=done.end, files=files))

    async def begin(self) -> None:
        """Save from now on every half minute."""
        if self._checkpoint is not None:
            await self._checkpoint.begin()

    async def stop(self) -> None:
        """Save what is finished, and no more from now on."""
        if self._checkpoint is not None:
            await self._checkpoint.stop()

    async def remove(self) -> None:
        """The restore is over, or nothing of it is of use to another try.

        :raises StorageLockedError: it is another job's by now.
        """
        if self._checkpoint is None or self._lock is None:
            return
        try:
            await self._lock.confirm()
        except StorageLockedError:
            raise
        except TikvBrError as err:
            message = (
                f"{self._checkpoint.place} was not deleted, so delete it: the same restore would take itself for done by"
                f" it: {err}"
            )
            self._listener(Note(level="warning", message=message))
        else:
            await self._checkpoint.retire()


def _tell(checkpoint: Checkpoint | None, works: tuple[FileWork, ...], listener: Listener) -> None:
    if checkpoint is None or not checkpoint.resumed:
        return
    left = sum(1 for work in works if work.todo)
    message = (
        f"going on with the restore that was begun at {checkpoint.started}: {len(works) - left} of {len(works)} files are"
        " restored already"
    )
    listener(Note(level="info", message=message))


async def _open(
    cluster: Cluster,
    meta: brpb_pb2.BackupMeta,
    plan: RestorePlan,
    options: RestoreOptions,
    locked: AsyncExitStack,
    *,
    beside: Storage,
    given: Storage | None,
    listener: Listener,
) -> tuple[StorageLock | None, Checkpoint | None]:
    """Open the checkpoint under its lock; neither of them if none can be kept beside the backup."""
    storage = beside if given is None else given
    if not storage.keeps:
        raise InvalidOptionError(
            f"checkpoint_storage {storage.display_url} keeps nothing: give a place that can be written to and read",
            parameter="checkpoint_storage",
        )
    directory = DIRECTORY if given is not None else f"{DIRECTORY}/{cluster.cluster_id}-{cluster.codec.keyspace_id}"
    identity = await asyncio.to_thread(_identity, cluster, meta, plan, options.owner)
    try:
        if given is not None:
            await storage.prepare()
        lock = await locked.enter_async_context(
            StorageLock.acquire(
                storage,
                f"{directory}/{RESTORE_LOCK}",
                owner=options.owner,
                listener=listener,
                otherwise="give another checkpoint_storage",
                flag="--storage" if given is None else "--checkpoint-storage",
            )
        )
        checkpoint = await Checkpoint.open(
            storage,
            directory=directory,
            identity=identity,
            cipher=options.cipher,
            resume=options.resume,
            listener=listener,
        )
        return lock, checkpoint
    except (InvalidOptionError, StorageLockedError):
        raise
    except TikvBrError as err:
        if given is not None:
            raise
        message = (
            f"no checkpoint can be kept beside the backup, so another try would restore all of it again; give"
            f" checkpoint_storage to have it elsewhere: {err}"
        )
        listener(Note(level="warning", message=message))
        return None, None


def _identity(cluster: Cluster, meta: brpb_pb2.BackupMeta, plan: RestorePlan, owner: str) -> JobIdentity:
    options = {
        "cluster": str(cluster.cluster_id),
        "keyspace": str(cluster.codec.keyspace_id),
        "start": plan.keys.start.hex(),
        "end": plan.keys.end.hex(),
        "backup": hashlib.sha256(meta.SerializeToString(deterministic=True)).hexdigest(),
    }
    return JobIdentity(kind="restore", owner=owner, options=options)


async def _works(checkpoint: Checkpoint | None, files: Iterable[PlannedFile]) -> tuple[FileWork, ...]:
    """What is left of each file."""
    planned = {each.file.name: each for each in files}
    whole: set[str] = set()
    parts: dict[str, list[KeyRange[ApiKey]]] = {}
    if checkpoint is not None and checkpoint.resumed:
        async for pieces in checkpoint.finished():
            for piece in pieces:
                for name in (file.name for file in piece.files):
                    if name in planned and piece.keys.covers(planned[name].keys):
                        whole.add(name)
                    elif name in planned:
                        parts.setdefault(name, []).append(piece.keys)

    def left() -> tuple[FileWork, ...]:
        return tuple(
            FileWork(planned=each, todo=(), resumed=True)
            if name in whole
            else FileWork(planned=each, todo=left_of(each.keys, parts.get(name, ())), resumed=name in parts)
            for name, each in planned.items()
        )

    # In a thread: there may be half a million.
    return await asyncio.to_thread(left)


def left_of(keys: KeyRange[ApiKey], done: Iterable[KeyRange[ApiKey]]) -> tuple[KeyRange[ApiKey], ...]:
    """The parts of a range that are not done, in key order.

    :param done: ranges in any order, which may overlap.
    """
    left: list[KeyRange[ApiKey]] = []
    at = keys.start
    for part in sorted(done, key=lambda one: one.start):
        gap = KeyRange(at, part.start).intersect(keys) if part.start > at else None
        if gap is not None:
            left.append(gap)
        if not part.end:
            return tuple(left)
        at = max(at, part.end)
        if keys.end and at >= keys.end:
            return tuple(left)
    left.append(KeyRange(at, keys.end))
    return tuple(left)
