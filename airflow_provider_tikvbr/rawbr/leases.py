"""What a job changes on a cluster for its time, held so that a crash lets it expire and everything else undoes it.

Import mode ends by itself ten minutes after it was last asked for (TiKV, ``import.import-mode-timeout``); paused
schedulers and temporary PD settings end after the seconds they were given. The download speed limit does not expire,
but a store forgets it when it restarts.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from airflow_provider_tikvbr.exceptions import TikvBrError, TransientError
from airflow_provider_tikvbr.rawbr.events import Listener, Note, ignore
from airflow_provider_tikvbr.rawbr.tasks import settle
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.retry import Backoff, retry
from airflow_provider_tikvbr.tikv.store import StoreClient
from airflow_provider_tikvbr.timelimit import within

# All of an undo, with its retries: a job that is told to stop has about five seconds.
UNDO_S = 3.0
UNDO_PAUSE_S = 0.2
# After a renewal that failed somewhere.
RENEW_AGAIN_S = 10.0
# A store needs no time for these calls; one that does not answer is not waited for by all the others.
STORE_TIMEOUT_S = 5.0
# How long to insist on the first request before the job fails.
ARM_BUDGET_S = 30.0

PAUSE_S = 300
RENEW_PAUSE_S = 100.0
SPEED_LIMIT_RENEW_S = 60.0

# What moves or merges regions, if PD runs it (the same six as tikv-br).
SCHEDULERS = frozenset(
    {
        "balance-leader-scheduler",
        "balance-hot-region-scheduler",
        "balance-region-scheduler",
        "shuffle-leader-scheduler",
        "shuffle-region-scheduler",
        "shuffle-hot-region-scheduler",
    }
)

# PD's own types: it writes booleans of this page as text.
FIXED_SETTINGS: Mapping[str, int | str] = {
    "max-merge-region-keys": 0,
    "max-merge-region-size": 0,
    "enable-location-replacement": "false",
    "max-pending-peer-count": (1 << 31) - 1,
}
SETTINGS_PER_STORE = ("leader-schedule-limit", "region-schedule-limit", "max-snapshot-count")
MAX_SETTING_PER_STORE = 40


class Lease(ABC):
    """One temporary change of a cluster, as an asynchronous context manager.

    :param cluster: the cluster to change.
    :param renew_s: seconds between renewals; 0 for none.
    :param listener: told what could not be renewed or undone.
    """

    #: What is held, for messages.
    name: str
    #: What becomes of it if it cannot be undone.
    expiry: str = "it ends by itself"

    def __init__(self, cluster: Cluster, *, renew_s: float, listener: Listener = ignore) -> None:
        self.cluster = cluster
        self.renew_s = renew_s
        self.listener = listener
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def arm(self) -> None:
        """Make the change, or make it last longer.

        :raises TikvBrError: it could not be made everywhere.
        """

    @abstractmethod
    def undo_steps(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """What takes the change back: independent steps by what they touch, each safe to be tried twice."""

    async def start(self) -> None:
        """Make the change and keep it.

        :raises TikvBrError: it could not be made; what was done of it is undone.
        """
        try:
            await self.begin()
        except BaseException:
            await self.stop()
            raise

    async def begin(self) -> None:
        """Make the change and keep it; whoever calls this has to call :meth:`stop` whatever comes of it.

        :raises TikvBrError: it could not be made.
        """
        await retry(self.arm, Backoff(base_s=0.2, cap_s=2.0, budget_s=ARM_BUDGET_S))
        self._begin_to_keep()

    async def stop(self) -> None:
        """Take the change back, even if the caller is cancelled meanwhile. What cannot be undone is told."""
        await settle(self._stop())

    async def __aenter__(self) -> Lease:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def pause(self) -> None:
        """Renew no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _stop(self) -> None:
        await self.pause()
        await self._undo()

    def _begin_to_keep(self, *, told: bool = False) -> None:
        """Renew from now on.

        :param told: whether the first request failed and this was told.
        """
        if self.renew_s > 0:
            self._task = asyncio.create_task(self._keep(told))

    async def _keep(self, told: bool) -> None:
        pause = min(self.renew_s, RENEW_AGAIN_S) if told else self.renew_s
        while True:
            await asyncio.sleep(pause)
            try:
                await self.arm()
            except TikvBrError as err:
                pause = min(self.renew_s, RENEW_AGAIN_S)
                if not told:
                    self.listener(Note(level="warning", message=f"could not renew {self.name}: {err}"))
                told = True
            else:
                pause, told = self.renew_s, False

    async def _undo(self) -> None:
        steps = self.undo_steps()
        deadline = asyncio.get_running_loop().time() + UNDO_S
        failed = await asyncio.gather(*(self._undo_step(step, deadline) for step in steps.values()))
        left = [e if where in e else f"{where}: {e}" for where, e in zip(steps, failed, strict=True) if e]
        if left:
            message = f"could not end {self.name}; {self.expiry}: {'; '.join(left)}"
            self.listener(Note(level="warning", message=message))

    async def _undo_step(self, step: Callable[[], Awaitable[None]], deadline: float) -> str:
        """Try until it works or the time is up; the last error's text, or nothing."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await within(max(deadline - loop.time(), 0.1), step())
            except asyncio.TimeoutError:
                return "no answer in time"
            except TikvBrError as err:
                if not isinstance(err, TransientError) or loop.time() + UNDO_PAUSE_S >= deadline:
                    return str(err)
                await asyncio.sleep(UNDO_PAUSE_S)
            except Exception as err:  # whatever it is, the other steps must have their turn
                return f"{type(err).__name__}: {err}"
            else:
                return ""


class ClusterLease(Lease):
    """A change that can be taken back by whoever comes after one that was killed."""

    @abstractmethod
    async def claim(self) -> None:
        """Take for ours what somebody who is gone may have left, so that :meth:`stop` takes it back.

        :raises TikvBrError: the cluster does not tell what there is.
        """


class _StoresLease(ClusterLease):
    """A change of every store that may hold data, those that are being removed too: their peers take files in as well.

    One that does not answer now is told of, and gets it at a renewal.
    """

    def __init__(self, cluster: Cluster, *, renew_s: float, listener: Listener) -> None:
        super().__init__(cluster, renew_s=renew_s, listener=listener)
        self._touched: set[int] = set()

    @abstractmethod
    async def change(self, client: StoreClient) -> None:
        """Change one store."""

    @abstractmethod
    async def restore(self, client: StoreClient) -> None:
        """Take the change of one store back."""

    async def begin(self) -> None:
        """Change the stores and keep them so.

        :raises TerminalError: some store refuses.
        """
        told = False
        try:
            await self.arm()
        except TransientError as err:
            self.listener(Note(level="warning", message=f"{self.name} is not set on every store yet: {err}"))
            told = True
        self._begin_to_keep(told=told)

    async def claim(self) -> None:
        """Take every store for changed."""
        self._touched.update(store.id for store in await self.cluster.data_stores())

    async def arm(self) -> None:
        """Change all stores, each whatever becomes of the others."""
        stores = await self.cluster.data_stores()
        ids = [s.id for s in stores]
        done = await asyncio.gather(*(self._change(i) for i in ids), return_exceptions=True)
        errors = [e for e in done if isinstance(e, BaseException)]
        if errors:
            raise errors[0]

    async def _change(self, store_id: int) -> None:
        # Before the call: its answer may be lost while the change is made.
        self._touched.add(store_id)
        await self._with(store_id, self.change)

    async def _with(self, store_id: int, act: Callable[[StoreClient], Awaitable[None]]) -> None:
        await act(await self.cluster.client(store_id))

    def undo_steps(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """One step per store that was, or may have been, changed."""

        def step(store_id: int) -> Callable[[], Awaitable[None]]:
            return lambda: self._with(store_id, self.restore)

        return {f"store {i}": step(i) for i in sorted(self._touched)}


class ImportModeLease(_StoresLease):
    """Import mode: stores put up with bursts of ingested files instead of stalling writes.

    :param interval_s: seconds between requests; TiKV leaves the mode 600 s after the last one.
    """

    name = "import mode"
    expiry = "a store leaves it by itself after ten minutes"

    def __init__(self, cluster: Cluster, *, interval_s: float, listener: Listener = ignore) -> None:
        super().__init__(cluster, renew_s=interval_s, listener=listener)

    async def change(self, client: StoreClient) -> None:
        """Switch one store to import mode."""
        await client.switch_mode(import_mode=True, timeout_s=STORE_TIMEOUT_S)

    async def restore(self, client: StoreClient) -> None:
        """Switch one store to normal mode."""
        await client.switch_mode(import_mode=False)


class SpeedLimitLease(_StoresLease):
    """The speed at which each store may download.

    :param bytes_per_s: the limit; 0 takes away a limit that a crashed job left behind.
    """

    name = "the download speed limit"
    expiry = "a store forgets it when it restarts"

    def __init__(self, cluster: Cluster, *, bytes_per_s: int, listener: Listener = ignore) -> None:
        # Renewed for stores that restart meanwhile: they forget it.
        super().__init__(cluster, renew_s=SPEED_LIMIT_RENEW_S if bytes_per_s else 0, listener=listener)
        self.bytes_per_s = bytes_per_s
        self._may_be_limited = bytes_per_s > 0

    async def claim(self) -> None:
        """Take every store for limited."""
        await super().claim()
        self._may_be_limited = True

    def undo_steps(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """One step per store, if there is a limit at all."""
        return super().undo_steps() if self._may_be_limited else {}

    async def change(self, client: StoreClient) -> None:
        """Limit one store."""
        await client.set_download_speed_limit(self.bytes_per_s, timeout_s=STORE_TIMEOUT_S)

    async def restore(self, client: StoreClient) -> None:
        """Let one store download at full speed."""
        await client.set_download_speed_limit(0)


class SchedulerLease(ClusterLease):
    """PD neither balances nor merges regions meanwhile.

    Unlike tikv-br's, the changed settings are temporary ones (``POST /pd/api/v1/config?ttlSecond=``), so that PD
    forgets them by itself when the job dies.
    """

    name = "the pause of PD's schedulers"
    expiry = "it ends by itself after five minutes"

    def __init__(self, cluster: Cluster, *, listener: Listener = ignore) -> None:
        super().__init__(cluster, renew_s=RENEW_PAUSE_S, listener=listener)
        self._settings: dict[str, int | bool | str] = {}
        self._paused: list[str] = []

    async def claim(self) -> None:
        """Take the schedulers that exist for paused, and the settings that PD knows for set."""
        await self._choose_settings()
        self._paused = await self._schedulers()

    async def _choose_settings(self) -> None:
        stores = await self.cluster.up_stores()
        self._settings = temporary_settings(await self.cluster.http.schedule_config(), stores=len(stores))

    async def _schedulers(self) -> list[str]:
        return sorted(SCHEDULERS & set(await self.cluster.http.schedulers()))

    async def arm(self) -> None:
        """Pause the schedulers that exist and set the settings that PD knows."""
        http = self.cluster.http
        if not self._settings:
            await self._choose_settings()
        await http.set_schedule_ttl(self._settings, PAUSE_S)
        for name in await self._schedulers():
            if name not in self._paused:
                self._paused.append(name)
            await http.pause_scheduler(name, PAUSE_S)

    def undo_steps(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Resume each scheduler, and forget the settings."""
        http = self.cluster.http

        def resume(name: str) -> Callable[[], Awaitable[None]]:
            return lambda: http.pause_scheduler(name, 0)

        steps = {name: resume(name) for name in self._paused}
        if self._settings:
            steps["PD's schedule settings"] = lambda: http.end_schedule_ttl(self._settings)
        return steps


def temporary_settings(config: Mapping[str, Any], *, stores: int) -> dict[str, int | bool | str]:
    """The schedule settings of a job: no merging, no moving for the sake of labels, more room for what must move.

    :param config: PD's present settings; what it does not know is left out.
    :param stores: number of stores.
    """
    found: dict[str, int | bool | str] = {k: v for k, v in FIXED_SETTINGS.items() if k in config}
    for name in SETTINGS_PER_STORE:
        if isinstance(config.get(name), (int, float)):
            found[f"{name}"] = min(MAX_SETTING_PER_STORE, int(config[name]) * stores)
    return found


class Held(Protocol):
    """What is begun before a job and ended after it."""

    async def begin(self) -> None:
        """Begin; :meth:`stop` is called whatever comes of it."""

    async def stop(self) -> None:
        """End it."""


@contextlib.asynccontextmanager
async def hold(*leases: Held) -> AsyncIterator[None]:
    """Hold several leases; they begin one after another and end all at once.

    :raises TikvBrError: one could not begin; it and those before it are ended.
    """
    begun: list[Held] = []
    try:
        for lease in leases:
            begun.append(lease)
            await lease.begin()
        yield
    finally:
        await settle(_stop_all(begun))


async def put_back(*leases: ClusterLease) -> None:
    """Take back what an earlier try of the job may have left that was killed. What cannot be undone is told."""
    await asyncio.gather(*(_put_back(lease) for lease in leases))


async def _put_back(lease: ClusterLease) -> None:
    try:
        await lease.claim()
    except TikvBrError as err:
        message = f"{lease.name} may be left of an earlier try; {lease.expiry}: {err}"
        lease.listener(Note(level="warning", message=message))
    else:
        await lease.stop()


async def _stop_all(leases: Sequence[Held]) -> None:
    done = await asyncio.gather(*(lease.stop() for lease in leases), return_exceptions=True)
    for error in done:
        if isinstance(error, BaseException):
            raise error
