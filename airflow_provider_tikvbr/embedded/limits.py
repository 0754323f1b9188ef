"""Limits that a store keeps: bytes per second, and how long it stays in import mode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from airflow_provider_tikvbr.timelimit import within


class RateLimiter:
    """Spaces out bytes so that their rate stays below a limit, which may change at any time.

    :param rate: bytes per second; 0 for no limit.
    :param clock: seconds, monotonic.
    """

    def __init__(self, rate: int = 0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._free_at = 0.0
        self._changed: asyncio.Event | None = None

    @property
    def rate(self) -> int:
        """Bytes per second; 0 for no limit."""
        return self._rate

    def set_rate(self, rate: int) -> None:
        """Change the limit; whoever waits under the old one goes on at once."""
        self._rate = rate
        self._free_at = 0.0
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def spend(self, size: int) -> None:
        """Wait until this many bytes fit under the limit."""
        if not self._rate:
            return
        self._free_at = max(self._free_at, self._clock()) + size / self._rate
        # A task may be served by another loop than the last one, so the event is made where it is waited for.
        if self._changed is None:
            self._changed = asyncio.Event()
        try:
            await within(max(self._free_at - self._clock(), 0), self._changed.wait())
        except asyncio.TimeoutError:
            return


class ImportMode:
    """Whether a store is in import mode; it falls back by itself.

    Source of the ten minutes: TiKV, ``components/sst_importer/src/config.rs``.

    :param timeout_s: for how long one switch holds.
    :param clock: seconds, monotonic.
    """

    def __init__(self, *, timeout_s: float = 600, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._until: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether the store is in import mode now."""
        return self._until is not None and self._clock() < self._until

    def switch(self, on: bool) -> None:
        """Enter, stay longer in, or leave import mode."""
        self._until = self._clock() + self._timeout_s if on else None
