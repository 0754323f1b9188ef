"""Work that cannot go on now, put aside until it can, so that it holds up nothing else.

What waits for the same thing (a store that is dead, a region without leader, a PD that does not answer) waits together:
one piece at a time is sent ahead to see whether that thing is well again, and as soon as it is, all go on. What failed for
a reason of its own waits for itself.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from airflow_provider_tikvbr.exceptions import ServerIsBusyError, TransientError
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey
from airflow_provider_tikvbr.tikv.model import Region

# What several pieces may wait for: its kind, and its id.
Cause = tuple[str, int]
PD: Final[Cause] = ("PD", 0)

# Pauses of a piece that waits for itself, and of what pieces wait for together, in seconds.
PIECE_BASE_S = 0.05
PIECE_CAP_S = 4.0
OUTAGE_BASE_S = 0.1
OUTAGE_CAP_S = 5.0
# Looking at what waits may cost a tenth of the time.
LOOK_SHARE = 10
# Pieces that are looked at in one go.
LOOK_AT = 16384
# One try may take longer than the budget, so that many must have failed whatever the clock says.
LEAST_TRIES = 5


def store_cause(store_id: int) -> Cause:
    """What the pieces of a store wait for that does not answer."""
    return ("store", store_id)


def region_cause(region_id: int) -> Cause:
    """What the pieces of a region wait for that has no leader, or is busy."""
    return ("region", region_id)


@dataclass(eq=False, slots=True, kw_only=True)
class Parked:
    """A piece of work.

    :param keys: the keys that it is about.
    :param tries: how often it has failed for a reason of its own.
    :param probes: what it has been sent ahead to look after.
    :param error: why it failed last.
    """

    keys: KeyRange[RegionKey]
    tries: int = 0
    probes: Cause | None = None
    error: TransientError | None = None


P = TypeVar("P", bound=Parked)


@dataclass(eq=False, slots=True, kw_only=True)
class Outage(Generic[P]):
    """Something that is not well, and what waits for it.

    :param error: what it said last.
    :param tries: how often it has failed in a row.
    :param due: when to look after it again.
    :param probed: whether that is being done.
    :param look_s: how long the last look took.
    """

    cause: Cause
    error: TransientError
    tries: int = 0
    due: float = 0.0
    probed: bool = False
    look_s: float = 0.0
    waiting: deque[P] = field(default_factory=deque)
    looked_at: list[P] = field(default_factory=list)


class Parking(Generic[P]):
    """Pieces that wait, and those that may go on.

    :ivar ready: what may be tried now.
    :ivar timed: how many pieces wait for themselves.
    :ivar changed: set when there is something to do.
    """

    def __init__(self) -> None:
        self.ready: deque[P] = deque()
        self.timed = 0
        self.changed = asyncio.Event()
        self._outages: dict[Cause, Outage[P]] = {}
        self._heap: list[tuple[float, int, P | Outage[P]]] = []
        self._numbers = itertools.count()
        self._failures: Counter[Cause] = Counter()
        self._progress_at = _now()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits and nothing is ready."""
        return not self.ready and not self.timed and not self.outages

    @property
    def outages(self) -> list[Outage[P]]:
        """All that something waits for."""
        return [outage for outage in self._outages.values() if outage.waiting or outage.looked_at]

    def all_waiting(self) -> list[P]:
        """Every piece that is here."""
        own = [entry for _, _, entry in self._heap if isinstance(entry, Parked)]
        shared = (piece for outage in self._outages.values() for piece in (*outage.waiting, *outage.looked_at))
        return [*self.ready, *own, *shared]

    # --- pieces come ---

    def put(self, piece: P) -> None:
        """Take in a piece that may be tried at once."""
        self.ready.append(piece)
        self.changed.set()

    def park(self, piece: P, error: TransientError, cause: Cause | None = None) -> None:
        """Take in a piece that has failed.

        :param cause: what it waits for; None if for itself.
        """
        piece.error = error
        piece.tries += 1
        own, piece.probes = piece.probes, None
        if cause is None:
            self.timed += 1
            self._push(_now() + _pause_s(PIECE_BASE_S, PIECE_CAP_S, piece.tries, error), piece)
        else:
            outage = self.notice(cause, error)
            outage.waiting.append(piece)
            if own == cause:
                self._fail(outage, error)
        if own is not None and own != cause:
            self._end_probe(own)

    def hold(self, piece: P, outage: Outage[P]) -> None:
        """Take in a piece that need not even be tried now."""
        piece.error = outage.error
        own, piece.probes = piece.probes, None
        outage.waiting.append(piece)
        if own is not None:
            self._end_probe(own)

    def done(self, piece: P) -> None:
        """A piece is finished: the job has made progress."""
        self._progress_at = _now()
        self._failures.clear()
        if piece.probes is not None:
            self._end_probe(piece.probes)

    # --- what they wait for ---

    def notice(self, cause: Cause, error: TransientError) -> Outage[P]:
        """Something is not well."""
        outage = self._outages.get(cause)
        if outage is None:
            outage = self._outages[cause] = Outage(cause=cause, error=error)
            self._fail(outage, error)
        return outage

    def well(self, cause: Cause) -> None:
        """It is well again: all that waited for it may go on."""
        outage = self._outages.pop(cause, None)
        if outage is not None:
            self.ready.extend(outage.waiting)
            outage.waiting.clear()
            self.changed.set()

    def outage(self, cause: Cause) -> Outage[P] | None:
        """What is known of something that is not well."""
        return self._outages.get(cause)

    def blocking(self, region: Region) -> Outage[P] | None:
        """Why a region need not be tried now."""
        if not self._outages:
            return None
        causes = (region_cause(region.id), *(store_cause(peer.store_id) for peer in region.peers))
        return next((self._outages[cause] for cause in causes if cause in self._outages), None)

    # --- time passes ---

    def wake(self) -> list[Outage[P]]:
        """Let those go on whose pause is over.

        :return: what has to be looked after now; each ends with :meth:`send_probe`.
        """
        due: list[Outage[P]] = []
        while self._heap and self._heap[0][0] <= _now():
            at, _, entry = heapq.heappop(self._heap)
            if isinstance(entry, Parked):
                self.timed -= 1
                self.ready.append(entry)
            elif self._outages.get(entry.cause) is entry and entry.due == at and not entry.probed:
                if entry.waiting:
                    entry.probed = True
                    due.append(entry)
                else:
                    del self._outages[entry.cause]
        return due

    def take_for_a_look(self, outage: Outage[P]) -> list[P]:
        """Some of those that wait, others each time."""
        outage.looked_at = [outage.waiting.popleft() for _ in range(min(LOOK_AT, len(outage.waiting)))]
        return outage.looked_at

    def send_probe(self, outage: Outage[P], affected: Callable[[P], bool]) -> None:
        """Let those go on that do not depend on it any more, and send one of the others ahead.

        :param affected: whether a piece that was looked at still depends on it.
        """
        outage.probed = False
        looked_at, outage.looked_at = outage.looked_at, []
        for piece in looked_at:
            (outage.waiting if affected(piece) else self.ready).append(piece)
        if self._outages.get(outage.cause) is not outage:
            # It has become well meanwhile.
            self.ready.extend(outage.waiting)
            outage.waiting.clear()
        elif outage.waiting:
            outage.probed = True
            probe = outage.waiting.popleft()
            probe.probes = outage.cause
            self.ready.append(probe)
        else:
            del self._outages[outage.cause]
        self.changed.set()

    def pause_s(self) -> float | None:
        """Seconds until :meth:`wake` has something to do; None if it never will."""
        return max(0.0, self._heap[0][0] - _now()) if self._heap else None

    def left_s(self, budget_s: float) -> float:
        """What is left of the time in which the job may make no progress, in seconds."""
        return budget_s - (_now() - self._progress_at)

    def has_tried_enough(self, running: Iterable[P]) -> bool:
        """Whether everything has failed often enough to give up.

        :param running: the pieces that are being tried.
        """
        if self.ready:
            return False
        return (
            all(self._is_hopeless(piece) for piece in running)
            and all(entry.tries >= LEAST_TRIES for _, _, entry in self._heap if isinstance(entry, Parked))
            and all(self._failures[outage.cause] >= LEAST_TRIES for outage in self.outages)
        )

    def _is_hopeless(self, piece: P) -> bool:
        return max(piece.tries, self._failures[piece.probes] if piece.probes else 0) >= LEAST_TRIES

    def _fail(self, outage: Outage[P], error: TransientError) -> None:
        outage.error = error
        outage.tries += 1
        outage.probed = False
        self._failures[outage.cause] += 1
        pause = _pause_s(OUTAGE_BASE_S, OUTAGE_CAP_S, outage.tries, error)
        self._due_in(outage, max(pause, LOOK_SHARE * outage.look_s))

    def _end_probe(self, cause: Cause) -> None:
        """A piece that was sent ahead has found out nothing: the next one shall."""
        outage = self._outages.get(cause)
        if outage is not None and outage.probed:
            outage.probed = False
            self._due_in(outage, OUTAGE_BASE_S)

    def _due_in(self, outage: Outage[P], pause_s: float) -> None:
        outage.due = _now() + pause_s
        self._push(outage.due, outage)

    def _push(self, due: float, entry: P | Outage[P]) -> None:
        heapq.heappush(self._heap, (due, next(self._numbers), entry))
        self.changed.set()


def _pause_s(base_s: float, cap_s: float, tries: int, error: TransientError) -> float:
    bound = min(cap_s, base_s * 2.0 ** min(tries - 1, 32))
    pause = bound * (0.5 + 0.5 * random.random())  # noqa: S311  not a secret
    return max(pause, error.backoff_s) if isinstance(error, ServerIsBusyError) else pause


def _now() -> float:
    return asyncio.get_running_loop().time()
