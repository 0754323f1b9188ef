"""One job per place: a small file, such as ``backup.lock`` beside a backup, names who writes there.

tikv-br refuses a place that holds a ``backup.lock`` together with SSTs, so the lock also keeps tikv-br away while a backup
runs, and has to be gone afterwards.

No storage can put a file in the place of another on the condition that this is still what it was. So whoever takes an
abandoned lock over looks once more right before it writes, waits until others who do the same must be through, and reads
what has come of it. Two may only both believe to have it if one of them needed longer for its write than the other waited;
then the first finds so at its next heartbeat and stops, and in any case before it declares a backup complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from airflow_provider_tikvbr.exceptions import StorageLockedError, StorageUnavailableError, TikvBrError
from airflow_provider_tikvbr.rawbr.events import Listener, Note, ignore
from airflow_provider_tikvbr.rawbr.lock_record import (
    BACKUP_LOCK,
    HEARTBEAT_S,
    STALE_S,
    WATCH_S,
    LockRecord,
    lock_place,
    read_lock,
    refusal,
    why_abandoned,
)
from airflow_provider_tikvbr.rawbr.tasks import Handover, current_handover, settle
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.tikv.retry import Backoff, retry
from airflow_provider_tikvbr.timelimit import within

T = TypeVar("T")

# After a takeover: longer than a look and a write of somebody else take.
SETTLE_S: Final = 2.0
TRIES: Final = 5
# A storage that stumbles is waited for so long, in seconds.
PATIENCE_S: Final = 30.0
RETRY_BASE_S: Final = 0.2
RETRY_CAP_S: Final = 3.0
# Of the five seconds that a job has which is told to stop, its leases need three.
AT_CANCEL_S: Final = 1.5
# What a look at the lock may take of them.
LOOK_S: Final = 0.5
# A heartbeat is given so long at least, however late it comes.
LEAST_TRY_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LockTimes:
    """How a lock is kept and taken over, in seconds.

    :param heartbeat_s: how often the holder writes it.
    :param stale_s: how old a heartbeat has to be before others may take the lock over. A holder that cannot write it for
        so long stops.
    :param watch_s: for how long others watch it before they take it over by its age.
    :param settle_s: for how long they wait afterwards to see who has it.
    :param patience_s: for how long a storage may fail while the lock is taken or removed.
    """

    heartbeat_s: float = HEARTBEAT_S
    stale_s: float = STALE_S
    watch_s: float = WATCH_S
    settle_s: float = SETTLE_S
    patience_s: float = PATIENCE_S


class StorageLock:
    """A lock that this process holds; made by :meth:`acquire` alone."""

    def __init__(
        self,
        *,
        storage: Storage,
        name: str,
        record: LockRecord,
        times: LockTimes,
        listener: Listener,
        otherwise: str,
        flag: str,
    ) -> None:
        self._storage = storage
        self._name = name
        self._record = record
        self._times = times
        self._listener = listener
        self._otherwise = otherwise
        self._flag = flag
        self._place = lock_place(storage, name)
        self._ended = asyncio.Event()
        self._beat: asyncio.Task[None] | None = None
        self._written_at = 0.0
        self._has_tried = False
        self._lost: TikvBrError | None = None
        self._work: asyncio.Task[Any] | None = None
        self._handover: Handover | None = None

    @classmethod
    @asynccontextmanager
    async def acquire(
        cls,
        storage: Storage,
        name: str = BACKUP_LOCK,
        *,
        owner: str = "",
        listener: Listener = ignore,
        check: Callable[[], Awaitable[None]] | None = None,
        otherwise: str = "give another place",
        flag: str = "--storage",
        times: LockTimes | None = None,
    ) -> AsyncIterator[StorageLock]:
        """Hold the lock while the block runs. What the block does belongs into :meth:`guard`.

        A lock whose holder is gone is taken over, and the listener is told whose it was.

        :param name: of the lock; with its directory.
        :param owner: the run; another try of the same run takes its lock over at once. Empty = nobody else is this run.
        :param check: run before and after the lock is taken; what it raises is the reason not to hold it.
        :param otherwise: what the user can do instead of waiting for another job.
        :param flag: of ``tikvbr repair``, for this storage.
        :param times: for tests.
        :raises StorageLockedError: another job holds the lock.
        :raises TikvBrError: the storage does not let us.
        """
        lock = cls(
            storage=storage,
            name=name,
            record=await asyncio.to_thread(LockRecord.of_this_process, owner),
            times=times or LockTimes(),
            listener=listener,
            otherwise=otherwise,
            flag=flag,
        )
        if not storage.keeps:
            yield lock
            return
        at_end_s = lock._times.patience_s
        try:
            if check is not None:
                await check()
            await lock._take(bool(owner))
            if check is not None:
                # Another run may have finished between the first look and the lock.
                await check()
            # Not before: it ends when it finds that the lock is not ours.
            lock._beat = asyncio.create_task(lock._keep())
            yield lock
        except asyncio.CancelledError:
            at_end_s = AT_CANCEL_S
            raise
        finally:
            await settle(lock._release(at_end_s), limit_s=AT_CANCEL_S)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work for which the lock is needed; if the lock is lost, the work is cancelled.

        :raises StorageLockedError: the lock was lost to another job, or deleted.
        :raises StorageUnavailableError: the lock could not be kept for so long that others may take it over.
        """
        if self._lost is not None:
            work.close()
            raise self._lost
        # Found by the work too: its context is a copy of this one.
        self._handover = current_handover()
        task: asyncio.Task[T] = asyncio.ensure_future(work)
        self._work = task
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as err:
                cancelled = err
                task.cancel()
        self._work = None
        failed = None if task.cancelled() else task.exception()
        # Asked through a method: it has changed since the beginning.
        lost = self._why_lost()
        if lost is not None and (task.cancelled() or failed is not None) and cancelled is None:
            raise lost from failed
        if failed is not None:
            raise failed
        if cancelled is not None:
            raise cancelled
        return task.result()

    async def confirm(self) -> None:
        """Make sure that the lock is still ours: to be called right before a backup is declared complete.

        :raises StorageLockedError: somebody took it over or deleted it.
        """
        if not self._storage.keeps:
            return
        found = await self._patiently(lambda: read_lock(self._storage, self._name))
        if not self._is_ours(found):
            self._hand_over()
            raise self._lost_to(found)

    async def has_passed_on(self) -> bool:
        """Whether the lock is not ours any more, as far as the storage tells at once."""
        if not self._storage.keeps:
            return False
        try:
            return not self._is_ours(await within(LOOK_S, read_lock(self._storage, self._name)))
        except (TikvBrError, asyncio.TimeoutError):
            return False

    def _is_ours(self, found: LockRecord | None) -> bool:
        return found is not None and found.holder == self._record.holder

    def _why_lost(self) -> TikvBrError | None:
        return self._lost

    # --- taking it ---

    async def _take(self, named: bool) -> None:
        """Take the lock.

        :param named: whether there may be another try of the same run.
        """
        found: LockRecord | None = None
        tried: LockRecord | None = None
        for _ in range(TRIES):
            if await self._put(self._storage.create):
                return
            found = await self._patiently(lambda: read_lock(self._storage, self._name))
            if found is None:  # given back since
                continue
            if found.holder == self._record.holder:  # the answer to a first try was lost
                return
            # Somebody else was faster: that one is no job of the past.
            if tried is not None and tried.holder != found.holder:
                break
            tried = found
            why = (
                "it is of the same run" if named and found.owner == self._record.owner else await self._abandoned(found)
            )
            if not why:
                break
            if await self._overwrite(found):
                message = f"took over the lock of {self._place} from {found}: {why}"
                self._listener(Note(level="warning", message=message))
                return
        if found is None:
            raise StorageUnavailableError(
                f"the lock of {self._place} comes and goes: jobs begin and end there all the time; wait for their end,"
                f" or {self._otherwise}",
                url=self._storage.display_url,
            )
        raise refusal(self._storage, self._name, found, otherwise=self._otherwise, flag=self._flag)

    async def _abandoned(self, found: LockRecord) -> str:
        times = self._times
        return await self._patiently(
            lambda: why_abandoned(self._storage, self._name, found, stale_s=times.stale_s, watch_s=times.watch_s),
            more_s=times.watch_s,
        )

    async def _overwrite(self, found: LockRecord) -> bool:
        """Put our record in the place of an abandoned one; False if somebody else was there."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        if await self._patiently(lambda: read_lock(self._storage, self._name)) != found:
            return False
        await self._put(self._storage.write)
        # Somebody who wrote meanwhile may have waited in vain for ours: that one finds out at a heartbeat.
        in_time = loop.time() - before < self._times.settle_s
        await asyncio.sleep(self._times.settle_s if in_time else self._times.watch_s)
        return self._is_ours(await self._patiently(lambda: read_lock(self._storage, self._name)))

    async def _put(self, put: Callable[[str, bytes], Awaitable[T]]) -> T:
        """Write our record; not left half-way: it could land after the release looked for it."""

        async def work() -> T:
            return await self._patiently(lambda: put(self._name, self._record.beaten().dump()))

        self._written_at = asyncio.get_running_loop().time()
        self._has_tried = True
        return await settle(work(), limit_s=AT_CANCEL_S)

    async def _patiently(self, call: Callable[[], Awaitable[T]], *, more_s: float = 0.0) -> T:
        """Ask a storage that may stumble.

        :param more_s: how long one call takes by itself.
        """
        budget_s = self._times.patience_s + more_s
        return await retry(call, Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=budget_s))

    # --- keeping it ---

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        pause = self._times.heartbeat_s
        while not await self._has_ended_within(pause):
            over_at = self._written_at + self._times.stale_s
            try:
                found = await within(max(over_at - loop.time(), LEAST_TRY_S), self._renew())
            except (TikvBrError, asyncio.TimeoutError) as err:
                pause = self._times.heartbeat_s / 4
                if loop.time() >= over_at:
                    self._lose(self._not_kept(err))
                    return
            else:
                pause = self._times.heartbeat_s
                if not self._is_ours(found):
                    self._lose(self._lost_to(found))
                    return

    async def _has_ended_within(self, pause: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            return await within(pause, self._ended.wait())
        return False

    async def _renew(self) -> LockRecord | None:
        """Write the lock if it is still ours; what it said."""
        now = asyncio.get_running_loop().time()
        found = await read_lock(self._storage, self._name)
        if self._is_ours(found):
            await self._storage.write(self._name, self._record.beaten().dump())
            self._written_at = now
        return found

    def _lose(self, why: TikvBrError) -> None:
        """Stop the work."""
        self._lost = why
        self._hand_over()
        if self._work is not None:
            self._work.cancel()

    def _hand_over(self) -> None:
        """Leave what is held for the work, such as GC: another try may be at work with it, or have ended well."""
        if self._handover is not None:
            self._handover.announced = True

    def _lost_to(self, found: LockRecord | None) -> StorageLockedError:
        how = "was deleted" if found is None else f"was lost to {found}"
        return StorageLockedError(
            f"the lock of {self._place} {how}: this job stops",
            url=self._storage.display_url,
            owner=found.owner or None if found else None,
        )

    def _not_kept(self, error: Exception) -> StorageUnavailableError:
        return StorageUnavailableError(
            f"the lock of {self._place} could not be written for {self._times.stale_s:g} s, so that another job may take"
            f" it over and this one stops: {str(error) or 'no answer in time'}",
            url=self._storage.display_url,
        )

    # --- giving it back ---

    async def _release(self, limit_s: float) -> None:
        if not self._has_tried:
            return
        problem = ""
        try:
            await within(limit_s, self._remove())
        except asyncio.TimeoutError:
            problem = "no answer in time"
        except TikvBrError as err:
            # The job's own fate is more important than its lock's.
            problem = str(err)
        if problem:
            message = (
                f"{self._name} may be left behind in {self._storage.display_url}, so delete it, or run `tikvbr repair"
                f" {self._flag} {self._storage.display_url}`: {problem}"
            )
            self._listener(Note(level="warning", message=message))

    async def _remove(self) -> None:
        # Not cancelled but told to end: a write that is under way would put the lock back after we removed it.
        self._ended.set()
        if self._beat is not None:
            await self._beat
        if self._is_ours(await self._patiently(lambda: read_lock(self._storage, self._name))):
            await self._patiently(lambda: self._storage.delete(self._name))
