"""The embedded cluster in a thread of its own, for callers that run their own event loop or none."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from airflow_provider_tikvbr.embedded.checksum import Digest
from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.data import UserPair
from airflow_provider_tikvbr.embedded.faults import Faults
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, KeyRange, UserKey

T = TypeVar("T")


class ThreadedCluster:
    """An embedded cluster behind a plain context manager.

    :param options: those of :class:`~airflow_provider_tikvbr.embedded.cluster.EmbeddedCluster`.
    """

    def __init__(self, **options: Any) -> None:
        self.cluster = EmbeddedCluster(**options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve from a thread of its own.

        :raises Exception: whatever keeps the cluster from starting.
        """
        ready: Future[None] = Future()
        self._loop, self._stop = None, asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="embedded-cluster")
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self.stop()
            raise

    async def _main(self, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self.cluster.start()
        except BaseException as err:  # the caller of start() gets it, whatever it is
            ready.set_exception(err)
            return
        ready.set_result(None)
        await self._stop.wait()
        await self.cluster.stop()

    def stop(self) -> None:
        """Stop the cluster and its thread."""
        if self._thread is None:
            return
        if self._loop is None:
            self._stop.set()
        else:
            # A cluster that could not start has closed its loop already.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> ThreadedCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def call(self, job: Callable[[EmbeddedCluster], Awaitable[T]]) -> T:
        """Run a coroutine on the cluster's own loop, such as ``call(lambda c: c.stop_store(1))``.

        :raises RuntimeError: the cluster does not run.
        """
        if self._loop is None or self._thread is None:
            raise RuntimeError("the embedded cluster has not been started")

        async def run() -> T:
            return await job(self.cluster)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def apply(self, job: Callable[[EmbeddedCluster], T]) -> T:
        """Run a plain function on the cluster's own thread, such as ``apply(lambda c: c.split([key]))``."""

        async def run(cluster: EmbeddedCluster) -> T:
            return job(cluster)

        return self.call(run)

    # --- the same as EmbeddedCluster's ---

    @property
    def pd_address(self) -> str:
        """PD's ``host:port``."""
        return self.cluster.pd_address

    @property
    def topology(self) -> Topology:
        """Stores and regions, for looking only; change them with :meth:`apply`."""
        return self.cluster.topology

    @property
    def faults(self) -> Faults:
        """What goes wrong at its calls; rules may be added from any thread."""
        return self.cluster.faults

    def put(self, pairs: Iterable[tuple[UserKey, bytes] | tuple[UserKey, bytes, int]]) -> None:
        """Write pairs fast."""
        self.call(lambda c: c.put(pairs))

    def pairs(self, keys: KeyRange[UserKey] = EVERYTHING) -> list[UserPair]:
        """The live pairs of a range in key order."""
        return self.call(lambda c: c.pairs(keys))

    def checksum(self, keys: KeyRange[UserKey] = EVERYTHING) -> Digest:
        """The numbers over the live pairs of a range."""
        return self.call(lambda c: c.checksum(keys))

    def stop_store(self, store_id: int) -> None:
        """Take a store down."""
        self.call(lambda c: c.stop_store(store_id))

    def start_store(self, store_id: int) -> None:
        """Bring a store back."""
        self.call(lambda c: c.start_store(store_id))
