"""PD's schedulers and its schedule settings: what a job pauses and changes for a while, and what must be back later."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_tikvbr.embedded.state import ClusterState

# What PD runs by default, and what it answers (PD, ``pkg/schedule/config``).
SCHEDULERS = (
    "balance-hot-region-scheduler",
    "balance-leader-scheduler",
    "balance-region-scheduler",
    "evict-slow-store-scheduler",
    "evict-stopping-store-scheduler",
)
DEFAULTS: Mapping[str, Any] = {
    "max-snapshot-count": 64,
    "max-pending-peer-count": 64,
    "max-merge-region-size": 54,
    "max-merge-region-keys": 540000,
    "split-merge-interval": "1h0m0s",
    "enable-one-way-merge": "false",
    "enable-cross-table-merge": "true",
    "patrol-region-interval": "10ms",
    "max-store-down-time": "30m0s",
    "max-store-preparing-time": "48h0m0s",
    "leader-schedule-limit": 4,
    "leader-schedule-policy": "count",
    "region-schedule-limit": 2048,
    "replica-schedule-limit": 64,
    "merge-schedule-limit": 8,
    "hot-region-schedule-limit": 4,
    "hot-region-cache-hits-threshold": 3,
    "tolerant-size-ratio": 0,
    "low-space-ratio": 0.8,
    "high-space-ratio": 0.7,
    "region-score-formula-version": "v2",
    "scheduler-max-waiting-operator": 5,
    "enable-remove-down-replica": "true",
    "enable-replace-offline-replica": "true",
    "enable-make-up-replica": "true",
    "enable-remove-extra-replica": "true",
    "enable-location-replacement": "true",
    "enable-debug-metrics": "false",
    "enable-joint-consensus": "true",
    "enable-tikv-split-region": "true",
    "hot-regions-write-interval": "10m0s",
    "hot-regions-reserved-days": 7,
    "store-limit-version": "v1",
}
PREFIX = "schedule."
# Settings that may be changed for a time only (PD, ``server/config/persist_options.go``).
TTL_KEYS = frozenset(
    PREFIX + name
    for name in (
        "max-snapshot-count",
        "max-merge-region-size",
        "max-pending-peer-count",
        "max-merge-region-keys",
        "leader-schedule-limit",
        "region-schedule-limit",
        "replica-schedule-limit",
        "hot-region-schedule-limit",
        "merge-schedule-limit",
        "enable-location-replacement",
        "default-add-peer",
        "default-remove-peer",
    )
)


_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|s)")
_PART_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def duration_s(text: str) -> float:
    """The seconds of a time as PD writes it, such as ``30m0s``; what cannot be read counts as nothing."""
    return sum(float(number) * _PART_S[unit] for number, unit in _PART.findall(text))


class Schedulers:
    """Which schedulers are paused, and until when.

    :param clock: seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def names(self) -> list[str]:
        """All of them."""
        return list(SCHEDULERS)

    def forget(self) -> None:
        """Let all of them go on: what is paused is known to one leader of PD alone, in memory."""
        self._until.clear()

    def paused(self) -> dict[str, float]:
        """The paused ones, with the second since the epoch when each goes on."""
        now = self._clock()
        return {name: until for name, until in self._until.items() if until > now}

    def pause(self, name: str, delay_s: int) -> None:
        """Pause one, or let it go on with a delay of 0; ``all`` means every one.

        :raises KeyError: there is no such scheduler.
        """
        if name != "all" and name not in SCHEDULERS:
            raise KeyError(name)
        for each in SCHEDULERS if name == "all" else [name]:
            self._until[each] = self._clock() + delay_s


class ScheduleConfig:
    """The schedule settings, and the values that stand in for them for a while.

    :param state: where all of them are kept, the values for a while too.
    :param clock: seconds since the epoch.
    :param zero_is_for_good: whether a time of 0 seconds means no time limit, as in PD before 6.1.
    """

    def __init__(self, *, state: ClusterState, clock: Callable[[], float], zero_is_for_good: bool = False) -> None:
        self._state = state
        self._clock = clock
        self._zero_is_for_good = zero_is_for_good
        self._values: dict[str, Any] = {**DEFAULTS, **state.read("schedule")}
        self._ttl: dict[str, tuple[Any, float]] = {
            name: (value, until) for name, (value, until) in state.read("schedule_ttl").items()
        }

    def values(self) -> dict[str, Any]:
        """The lasting settings: values for a while do not show here, as in PD."""
        return dict(self._values)

    def ttl_values(self, *, after_s: float = 0) -> dict[str, Any]:
        """The live values for a while, by full name such as ``schedule.max-snapshot-count``.

        :param after_s: only those that still hold so many seconds from now.
        """
        now = self._clock()
        self._ttl = {name: value for name, value in self._ttl.items() if value[1] > now}
        return {name: value for name, (value, until) in self._ttl.items() if until > now + after_s}

    def effective(self, name: str) -> Any:
        """The value of a setting that PD acts upon now."""
        return self.ttl_values().get(PREFIX + name, self._values[name])

    def update(self, values: Mapping[str, Any]) -> None:
        """Change settings for good; unknown ones are left out, as PD does.

        :raises ValueError: a value for a while stands in the way.
        """
        live = self.ttl_values()
        for name in values:
            if PREFIX + name in live:
                raise ValueError(f"need to clean up TTL first for {PREFIX}{name}")
        known = {name: value for name, value in values.items() if name in self._values}
        self._values.update(known)
        self._state.write("schedule", known.items())

    def update_ttl(self, values: Mapping[str, Any], ttl_s: int) -> None:
        """Set values for a while; 0 seconds removes them, or, before 6.1, sets them for good.

        :raises ValueError: PD has no such value for a while.
        """
        if ttl_s <= 0 and self._zero_is_for_good:
            self._values.update(values := {name.removeprefix(PREFIX): value for name, value in values.items()})
            self._state.write("schedule", values.items())
            return
        for name in values:
            if name not in TTL_KEYS:
                raise ValueError(f"unsupported ttl config {name}")
        until = self._clock() + ttl_s
        for name, value in values.items():
            if ttl_s <= 0:
                self._ttl.pop(name, None)
                self._state.remove("schedule_ttl", name)
            else:
                self._ttl[name] = (value, until)
                self._state.write("schedule_ttl", [(name, self._ttl[name])])
