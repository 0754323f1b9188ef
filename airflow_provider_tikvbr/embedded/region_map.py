"""The regions of a cluster in key order: they tile the whole key space at any time."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey


class RegionMap:
    """Regions by key and by id."""

    def __init__(self) -> None:
        self._starts: list[RegionKey] = []
        self._regions: list[RegionState] = []
        self._by_id: dict[int, RegionState] = {}

    def put_all(self, regions: Iterable[RegionState]) -> None:
        """Begin anew with some regions, which tile the key space."""
        self._regions = sorted(regions, key=lambda r: r.start)
        self._starts = [r.start for r in self._regions]
        self._by_id = {r.id: r for r in self._regions}

    @property
    def in_order(self) -> Sequence[RegionState]:
        """All regions in key order."""
        return self._regions

    def by_id(self, region_id: int) -> RegionState | None:
        """The region with an id."""
        return self._by_id.get(region_id)

    def of(self, key: RegionKey) -> RegionState:
        """The region that holds a key."""
        return self._regions[bisect.bisect_right(self._starts, key) - 1]

    def before(self, region: RegionState) -> RegionState | None:
        """The left neighbour of a region."""
        at = bisect.bisect_left(self._starts, region.start)
        return self._regions[at - 1] if at else None

    def scan(self, keys: KeyRange[RegionKey], limit: int = 0) -> list[RegionState]:
        """The regions that share keys with a range, in order.

        :param limit: how many at most; 0 or less for no limit.
        """
        first = bisect.bisect_right(self._starts, keys.start) - 1
        last = bisect.bisect_left(self._starts, keys.end) if keys.end else len(self._regions)
        return self._regions[first : min(last, first + limit) if limit > 0 else last]

    def split(self, region: RegionState, left: Sequence[RegionState]) -> None:
        """Put the pieces that a region loses on its left in front of it; it begins where the last of them ends."""
        at = bisect.bisect_left(self._starts, region.start)
        region.start = RegionKey(left[-1].end)
        pieces = [*left, region]
        self._regions[at : at + 1] = pieces
        self._starts[at : at + 1] = [p.start for p in pieces]
        self._by_id.update({p.id: p for p in left})

    def absorb(self, target: RegionState, source: RegionState) -> None:
        """Give the keys of a region to its neighbour, and forget it."""
        at = bisect.bisect_left(self._starts, min(source.start, target.start))
        if source.start < target.start:
            target.start = source.start
        else:
            target.end = source.end
        self._regions[at : at + 2] = [target]
        self._starts[at : at + 2] = [target.start]
        del self._by_id[source.id]
