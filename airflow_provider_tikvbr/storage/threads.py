"""The threads in which a library that blocks works for one storage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

THREADS = 8


class StorageThreads:
    """A few threads, made on first use: a storage may be made in one process and used in a fork of it.

    :param name: what the threads are called.
    """

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[..., T], *arguments: Any) -> T:
        """Make a call in one of them; it goes on there when the caller is cancelled."""
        # Only the event loop comes here, so no lock is needed: it would have to wait for a thread that holds it.
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix=self._name)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)

    def close(self) -> None:
        """Let each end after what it does now, without waiting; further calls get new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)
