"""Hold garbage collection back while a V2 backup runs, so that change capture can go on where the backup began.

The backup registers a service safepoint just below its backup-ts. tikv-br sets it once and lets it expire, so a backup
that takes longer than the TTL loses it; this one is set again every third of the TTL. A backup that succeeds leaves it
behind for as long as its user asked, so that a changefeed can be made from backup-ts on; every other one removes it.
Source: tikv-br, ``pkg/backup/client.go`` and ``pkg/utils/safe_point.go``; PD, ``server/grpc_service.go``.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable, Mapping

from airflow_provider_tikvbr.exceptions import InvalidOptionError, PDUnavailableError, TerminalError, TikvBrError
from airflow_provider_tikvbr.rawbr.events import Listener, Note, ignore
from airflow_provider_tikvbr.rawbr.humanize import human_duration
from airflow_provider_tikvbr.rawbr.leases import UNDO_S, Lease
from airflow_provider_tikvbr.rawbr.options import DEFAULT_GC_TTL_S, GcTtlFrom
from airflow_provider_tikvbr.rawbr.tasks import settle
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.pd import LOGICAL_BITS
from airflow_provider_tikvbr.timelimit import within

# What the names of backups' services begin with; tikv-br's and TiDB's BR's are the same.
SERVICE_PREFIX = "br-"
# How much shorter the pause between two renewals is than the TTL.
RENEWALS_PER_TTL = 3
# Least TTL while the backup runs, in seconds, however short the user wants it held: PD may be busy or change its leader.
LEAST_TTL_S = 30
# How much longer than until the next try it is held for that try: it has to be given a worker first.
RETRY_MARGIN_S = 300


def backup_ts_of(now: int, safe_interval_s: float) -> int:
    """The timestamp that lies an interval before another.

    Writes that began before it are all applied by then: a store may still be working on a write with a timestamp just
    before ``now``.
    """
    return max(1, now - (round(safe_interval_s * 1000) << LOGICAL_BITS))


class SafepointLease(Lease):
    """A service safepoint at ``backup_ts - 1``.

    :param cluster: the cluster whose garbage collection is held back.
    :param safe_interval_s: seconds by which backup-ts lies in the past.
    :param gc_ttl_s: seconds for which it stays if the job succeeds; while the job runs it stays in any case.
    :param gcttl_from: whether these count from the registration or from the end of the job.
    :param listener: told what could not be renewed or removed.
    :param passed_on: whether another try of the backup has begun: it holds the same safepoint, so that it stays.
    """

    name = "the GC safepoint of the backup"

    def __init__(
        self,
        cluster: Cluster,
        *,
        safe_interval_s: float,
        gc_ttl_s: int = DEFAULT_GC_TTL_S,
        gcttl_from: GcTtlFrom = GcTtlFrom.START,
        listener: Listener = ignore,
        passed_on: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._passed_on = passed_on
        self._running_ttl_s = max(gc_ttl_s, LEAST_TTL_S)
        super().__init__(cluster, renew_s=self._running_ttl_s / RENEWALS_PER_TTL, listener=listener)
        self.service_id = f"{SERVICE_PREFIX}{uuid.uuid4()}"
        self.backup_ts = 0
        self._gc_ttl_s = gc_ttl_s
        self._gcttl_from = gcttl_from
        self._safe_interval_s = safe_interval_s
        self._registered_at = 0.0
        self._lost: str | None = None
        self._left = False
        self._stopping: asyncio.Task[None] | None = None

    async def choose(self) -> None:
        """Choose backup-ts.

        :raises InvalidOptionError: garbage collection has already passed it.
        """
        pd = self.cluster.pd
        self.backup_ts = backup_ts_of(await pd.tso(), self._safe_interval_s)
        gc_safe_point = await pd.gc_safe_point()
        if self.backup_ts <= gc_safe_point:
            raise self._passed(gc_safe_point)

    async def take_over(self, *, service_id: str, backup_ts: int) -> bool:
        """Go on with what an earlier try has registered, or would register again.

        :return: False if garbage collection has passed it meanwhile; then another one has to be chosen.
        """
        self.service_id, self.backup_ts = service_id, backup_ts
        if backup_ts > await self.cluster.pd.gc_safe_point():
            try:
                await self.start()
            except InvalidOptionError:
                # The next one begins afresh.
                self._lost, self._stopping = None, None
            else:
                return True
        self.backup_ts = 0
        return False

    async def begin(self) -> None:
        """Register, at a backup-ts that is chosen now if there is none yet.

        :raises InvalidOptionError: garbage collection has already passed backup-ts.
        """
        if not self.backup_ts:
            await self.choose()
        self._registered_at = asyncio.get_running_loop().time()
        await super().begin()

    async def arm(self) -> None:
        """Register, or make it last longer."""
        await self._register(self._running_ttl_s)

    async def leave(self) -> None:
        """Let it run out by itself at the time that the user asked for: the last thing of a job that succeeds.

        If that time is over it is left to :meth:`stop`, which removes it.
        """
        await self.pause()
        elapsed_s = asyncio.get_running_loop().time() - self._registered_at
        ttl_s = self._gc_ttl_s
        if self._gcttl_from is GcTtlFrom.START:
            # PD counts whole seconds: rather one too many than one too few.
            ttl_s = math.ceil(ttl_s - elapsed_s)
        if ttl_s <= 0:
            return
        await settle(self._leave(ttl_s))
        # Not if the job is stopped meanwhile.
        self._left = True

    async def leave_for_retry(self, retry_in_s: float | None) -> None:
        """Let it be held until another try has taken it over; nothing if there is none yet.

        :param retry_in_s: in how many seconds that will be; None if nobody knows.
        """
        if not self.backup_ts:
            return
        await self.pause()
        if self._lost is None:
            again_s = 0 if retry_in_s is None else math.ceil(retry_in_s) + RETRY_MARGIN_S
            await settle(self._leave(max(self._running_ttl_s, again_s)))
        self._left = True

    async def _leave(self, ttl_s: int) -> None:
        try:
            await within(UNDO_S, self._register(ttl_s))
        except (TikvBrError, asyncio.TimeoutError) as err:
            # What was registered last holds for a while too.
            reason = str(err) or "PD does not answer"
            message = f"could not let {self.name} last for another {human_duration(ttl_s)}: {reason}"
            self.listener(Note(level="warning", message=message))

    def stop_soon(self) -> None:
        """Begin to remove it: :meth:`stop` waits until that is done."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())

    async def stop(self) -> None:
        """Remove it, unless it was left to run out."""
        if self._left or not self.backup_ts:
            return
        self.stop_soon()
        if self._stopping is not None:
            await settle(_wait_for(self._stopping))

    async def _stop(self) -> None:
        await self.pause()
        if self._passed_on is None or not await self._passed_on():
            await self._undo()

    async def _register(self, ttl_s: int) -> None:
        lowest = await self.cluster.pd.update_service_safe_point(
            service_id=self.service_id, ttl_s=ttl_s, safe_point=self.backup_ts - 1
        )
        # PD keeps a safepoint only if it is not below the lowest one, so this tells whether it is in force.
        if lowest > self.backup_ts - 1:
            error = self._passed(lowest)
            self._lost = str(error)
            raise error

    def undo_steps(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Remove it."""

        async def remove() -> None:
            await self.cluster.pd.update_service_safe_point(
                service_id=self.service_id, ttl_s=0, safe_point=self.backup_ts - 1
            )

        return {"PD": remove}

    def check(self) -> None:
        """Make sure that it was never lost.

        :raises PDUnavailableError: PD could not be reached for so long that it expired, and GC has passed backup-ts.
        """
        if self._lost is not None:
            raise PDUnavailableError(
                f"the GC safepoint of the backup expired because PD did not answer for {human_duration(self._running_ttl_s)}:"
                f" {self._lost}"
            )

    def _passed(self, safe_point: int) -> TerminalError:
        return InvalidOptionError(
            f"garbage collection has passed backup-ts {self.backup_ts}, it stands at {safe_point}: safe_interval"
            f" ({human_duration(self._safe_interval_s)}) has to be shorter than the cluster's GC life time",
            parameter="safe_interval",
        )


async def _wait_for(task: asyncio.Task[None]) -> None:
    await task
