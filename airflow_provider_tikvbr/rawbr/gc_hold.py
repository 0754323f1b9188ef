"""Garbage collection, held back over all tries of one backup: who registers where, and who leaves what to whom."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from airflow_provider_tikvbr.exceptions import TikvBrError, TransientError
from airflow_provider_tikvbr.rawbr.checkpoint import Checkpoint
from airflow_provider_tikvbr.rawbr.events import Listener, Note
from airflow_provider_tikvbr.rawbr.gates import has_backup_ts
from airflow_provider_tikvbr.rawbr.lock import StorageLock
from airflow_provider_tikvbr.rawbr.options import BackupOptions
from airflow_provider_tikvbr.rawbr.safepoint import SafepointLease
from airflow_provider_tikvbr.rawbr.tasks import is_handover
from airflow_provider_tikvbr.tikv.cluster import Cluster


class GcHold:
    """The hold of one try; it does nothing on a cluster that knows no backup-ts.

    :param cluster: the source.
    :param options: of the backup.
    :param lock: of the backup's place; whoever has it has the safepoint too.
    :param keeps: whether that place keeps anything for another try.
    :param listener: told what becomes of the safepoint of an earlier try.
    """

    def __init__(
        self, cluster: Cluster, options: BackupOptions, *, lock: StorageLock, keeps: bool, listener: Listener
    ) -> None:
        self._options = options
        self._has_retry = options.resume and keeps
        self._listener = listener
        self._safepoint: SafepointLease | None = None
        if has_backup_ts(cluster):
            self._safepoint = SafepointLease(
                cluster,
                safe_interval_s=options.safe_interval_s,
                gc_ttl_s=options.gc_ttl_s,
                gcttl_from=options.gcttl_from,
                listener=listener,
                passed_on=lock.has_passed_on,
            )

    @property
    def backup_ts(self) -> int | None:
        """From when on change capture may go on; None if nobody knows."""
        return self._safepoint.backup_ts if self._safepoint is not None else None

    @contextlib.asynccontextmanager
    async def held(self, checkpoint: Checkpoint, *, complete: bool) -> AsyncIterator[None]:
        """Hold GC back while the block runs, and until the next try if there is to be one.

        :param complete: whether an earlier try has done all of the backup but its last steps.
        :raises InvalidOptionError: GC has already passed backup-ts.
        """
        safepoint = self._safepoint
        if safepoint is None:
            yield
            return
        try:
            await self._begin(safepoint, checkpoint, complete=complete)
            yield
        except (TikvBrError, asyncio.CancelledError) as err:
            if isinstance(err, TransientError) and self._has_retry:
                await safepoint.leave_for_retry(self._options.retry_in_s)
            elif is_handover():
                await safepoint.leave_for_retry(None)
            raise
        finally:
            await safepoint.stop()

    async def _begin(self, safepoint: SafepointLease, checkpoint: Checkpoint, *, complete: bool) -> None:
        """Register a safepoint: where the first try did, if GC has not passed that."""
        state = checkpoint.state
        if checkpoint.resumed and "backup_ts" in state:
            service_id, backup_ts = str(state["service_id"]), int(state["backup_ts"])
            if await safepoint.take_over(service_id=service_id, backup_ts=backup_ts):
                return
            passed = (
                f"garbage collection has passed backup-ts {backup_ts} of the try that began at {checkpoint.started}"
            )
            if complete:
                self._safepoint = None
                message = f"{passed}: the backup is complete, but change capture cannot go on from it"
                self._listener(Note(level="warning", message=message))
                return
            message = f"{passed}, so that change capture could not go on from there: the backup starts over"
            self._listener(Note(level="warning", message=message))
            await checkpoint.start_over()
        await safepoint.choose()
        # First: if the job dies in between, the next try registers at that backup-ts.
        await checkpoint.remember(service_id=safepoint.service_id, backup_ts=safepoint.backup_ts)
        await safepoint.begin()

    @contextlib.contextmanager
    def let_go_if_stopped(self) -> Iterator[None]:
        """Remove the safepoint beside everything else that is undone: a job that is stopped has about five seconds."""
        try:
            yield
        except asyncio.CancelledError:
            if self._safepoint is not None and not is_handover():
                self._safepoint.stop_soon()
            raise

    def check(self) -> None:
        """Make sure that GC has not passed backup-ts meanwhile.

        :raises PDUnavailableError: PD could not be reached for so long that it may have.
        """
        if self._safepoint is not None:
            self._safepoint.check()

    async def leave(self) -> None:
        """Let the safepoint run out by itself at the time that the user asked for."""
        if self._safepoint is not None:
            await self._safepoint.leave()
