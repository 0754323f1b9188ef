"""What may happen to a cluster by itself, and when: the events that :mod:`.weather` lets come true."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from airflow_provider_tikvbr.exceptions import InvalidOptionError


class Happening(Enum):
    """What happens."""

    #: Another peer leads each region.
    SHUFFLE_LEADERS = "shuffle_leaders"
    #: Each region is split in two.
    SPLIT_ALL = "split_all"
    #: Some regions are split in two.
    SPLIT_SOME = "split_some"
    #: Some regions are merged into a neighbour; with a pause they take no requests for so long.
    MERGE_SOME = "merge_some"
    #: Some peers move to other stores.
    MOVE_PEERS = "move_peers"
    #: PD spreads all regions.
    SCATTER = "scatter"
    #: A store goes down.
    STOP_STORE = "stop_store"
    #: A store comes back.
    START_STORE = "start_store"
    #: A store dies for good.
    KILL_STORE = "kill_store"
    #: The disk of a store is full.
    DISK_FULL = "disk_full"
    #: Another member of PD leads.
    PD_LEADER = "pd_leader"
    #: No member of PD leads.
    PD_NO_LEADER = "pd_no_leader"
    #: A member of PD goes down.
    STOP_PD = "stop_pd"
    #: A member of PD comes back.
    START_PD = "start_pd"
    #: All members of PD go down and come back.
    RESTART_PD = "restart_pd"


_FOR = {
    Happening.STOP_STORE,
    Happening.DISK_FULL,
    Happening.PD_NO_LEADER,
    Happening.STOP_PD,
    Happening.RESTART_PD,
    Happening.MERGE_SOME,
}
_STORE = {Happening.STOP_STORE, Happening.START_STORE, Happening.KILL_STORE, Happening.DISK_FULL}
_MEMBER = {Happening.PD_LEADER, Happening.STOP_PD, Happening.START_PD}
_COUNT = {Happening.SPLIT_SOME, Happening.MERGE_SOME, Happening.MOVE_PEERS}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeatherEvent:
    """One thing that happens once or again and again.

    :param kind: what happens.
    :param at_s: when, in seconds from the start of the weather; by default ``every_s``, or at once.
    :param every_s: again after so many seconds.
    :param until_s: not again after so many seconds from the start.
    :param times: how often at most; by default once, or with ``every_s`` without end.
    :param for_s: what is undone after so many seconds: the store is up again, the disk free, PD led; for a merge, how
        long the regions that end take no requests. By default nothing is undone before the end of the weather, and a
        merge, or a restart of PD, is done at once.
    :param store_id: the store; by default one by chance of those that it can happen to.
    :param member: the place of the member of PD; by default one by chance.
    :param count: how many regions or peers.
    :raises InvalidOptionError: a field cannot be right, or has no meaning for this kind.
    """

    kind: Happening
    at_s: float | None = None
    every_s: float | None = None
    until_s: float | None = None
    times: int | None = None
    for_s: float | None = None
    store_id: int | None = None
    member: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, kinds in (("for_s", _FOR), ("store_id", _STORE), ("member", _MEMBER)):
            if getattr(self, name) is not None and self.kind not in kinds:
                raise self._wrong(f"{name} has no meaning here")
        if self.count != 1 and self.kind not in _COUNT:
            raise self._wrong("count has no meaning here")
        for name in ("at_s", "until_s", "for_s", "member"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise self._wrong(f"{name} is negative")
        if any(given is not None and given <= 0 for given in (self.every_s, self.times, self.count)):
            raise self._wrong("every_s, times and count have to be more than 0")

    def _wrong(self, what: str) -> InvalidOptionError:
        return InvalidOptionError(f"{self.kind.value}: {what}", parameter="events")

    @property
    def first_s(self) -> float:
        """When it happens first, in seconds from the start."""
        return self.at_s if self.at_s is not None else self.every_s or 0.0

    def next_s(self, count: int) -> float | None:
        """When it happens next, in seconds from the start; None for not again.

        :param count: how often it has happened.
        """
        if count and self.every_s is None:
            return None
        if self.times is not None and count >= self.times:
            return None
        at = self.first_s + count * (self.every_s or 0.0)
        return None if self.until_s is not None and at > self.until_s else at


_FIELDS = {f.name: f for f in dataclasses.fields(WeatherEvent)}
_NUMBERS = ("at_s", "every_s", "until_s", "for_s")


def events_from_json(value: object) -> tuple[WeatherEvent, ...]:
    """The events of a JSON list of objects, each with a ``kind`` and the fields of :class:`WeatherEvent`.

    :raises InvalidOptionError: it holds something else; the message names the event by its place.
    """
    if not isinstance(value, list):
        raise InvalidOptionError("events are a list of objects", parameter="events")
    return tuple(_event(at, each) for at, each in enumerate(value))


def _event(at: int, value: object) -> WeatherEvent:
    if not isinstance(value, dict):
        raise InvalidOptionError(f"event {at} is not an object", parameter="events")
    kinds = {kind.value: kind for kind in Happening}
    fields: dict[str, Any] = {}
    for name, given in value.items():
        if name not in _FIELDS:
            known = ", ".join(_FIELDS)
            raise InvalidOptionError(f"event {at} has a field {name!r}; known are {known}", parameter="events")
        if name == "kind":
            if given not in kinds:
                raise InvalidOptionError(
                    f"event {at}: kind={given!r} is none of {', '.join(kinds)}", parameter="events"
                )
            fields[name] = kinds[given]
        elif not isinstance(given, (int, float) if name in _NUMBERS else int) or isinstance(given, bool):
            what = "a number" if name in _NUMBERS else "a whole number"
            raise InvalidOptionError(f"event {at}: {name}={given!r} is not {what}", parameter="events")
        else:
            fields[name] = given
    if "kind" not in fields:
        raise InvalidOptionError(f"event {at} has no kind", parameter="events")
    try:
        return WeatherEvent(**fields)
    except InvalidOptionError as err:
        raise InvalidOptionError(f"event {at}: {err.message}", parameter="events") from err


def check_places(events: Sequence[WeatherEvent], *, stores: Sequence[int], pd_members: int) -> None:
    """Check that the stores and the members of PD that events name exist.

    :raises InvalidOptionError: one does not.
    """
    for event in events:
        if event.store_id is not None and event.store_id not in stores:
            raise InvalidOptionError(
                f"{event.kind.value}: there is no store {event.store_id}; there are {', '.join(map(str, stores))}",
                parameter="events",
            )
        if event.member is not None and event.member >= pd_members:
            raise InvalidOptionError(
                f"{event.kind.value}: there is no member {event.member} of PD; the last one is {pd_members - 1}",
                parameter="events",
            )
