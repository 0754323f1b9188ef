"""The timestamp oracle: one clock for the whole cluster that never goes back, not even over a restart."""

from __future__ import annotations

from collections.abc import Callable

from airflow_provider_tikvbr.embedded.state import ClusterState

PHYSICAL_SHIFT = 18
MAX_LOGICAL = 1 << PHYSICAL_SHIFT
SAVE_AHEAD_MS = 3000


class TimestampOracle:
    """Hands out timestamps, ``physical milliseconds << 18 | logical`` (PD, ``pkg/utils/tsoutil``).

    Like PD it saves a time in the near future and starts above it after a restart, so it need not save every timestamp.

    :param state: where the saved time is kept.
    :param clock: seconds since the epoch.
    """

    def __init__(self, *, state: ClusterState, clock: Callable[[], float]) -> None:
        self._state = state
        self._clock = clock
        self._saved_ms = int(state.read("tso").get("saved_ms", 0))
        self._physical = self._saved_ms
        self._logical = 0

    def allocate(self, count: int = 1) -> tuple[int, int]:
        """Take some consecutive timestamps.

        :param count: how many; they share one physical time.
        :return: physical and logical part of the largest of them.
        :raises ValueError: the count is not in 1 .. 2^18-1.
        """
        if not 1 <= count < MAX_LOGICAL:
            raise ValueError(f"cannot allocate {count} timestamps at once")
        now = int(self._clock() * 1000)
        if now > self._physical:
            self._physical, self._logical = now, 0
        if self._logical + count >= MAX_LOGICAL:
            self._physical, self._logical = self._physical + 1, 0
        self._logical += count
        if self._physical >= self._saved_ms:
            self._saved_ms = self._physical + SAVE_AHEAD_MS
            self._state.write("tso", [("saved_ms", self._saved_ms)])
        return self._physical, self._logical

    def next(self, count: int = 1) -> int:
        """Like :meth:`allocate`, but composed into one number."""
        physical, logical = self.allocate(count)
        return physical << PHYSICAL_SHIFT | logical
