"""Which region holds a key: a cache over PD, and gapless covers of a range."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace

from airflow_provider_tikvbr.exceptions import RegionNotReadyError, TransientError
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey
from airflow_provider_tikvbr.tikv.model import Peer, Region
from airflow_provider_tikvbr.tikv.pd import PDClient
from airflow_provider_tikvbr.tikv.redaction import show_key
from airflow_provider_tikvbr.tikv.retry import Backoff

PAGE = 1024
BUDGET_S = 30.0
LOOKUPS = 16


class RegionCache:
    """The regions as last seen: sorted by start, never overlapping.

    A newer look at a range drops what was known of it before; an older one changes nothing.

    :param pd: asked for what is not known.
    :param budget_s: how long to wait for PD to know a leader, or a range without gaps, in seconds.
    """

    def __init__(self, pd: PDClient, *, budget_s: float = BUDGET_S) -> None:
        self._pd = pd
        self._budget_s = budget_s
        self._starts: list[RegionKey] = []
        self._by_start: dict[RegionKey, Region] = {}
        self._by_id: dict[int, Region] = {}
        self._lookups = asyncio.Semaphore(LOOKUPS)

    def __len__(self) -> int:
        return len(self._starts)

    async def locate(self, key: RegionKey) -> Region:
        """The region that holds a key, with its leader.

        :raises BudgetExceededError: PD knows of no such region, or of no leader of it, for too long.
        :raises PDUnavailableError: no PD answers.
        """
        backoff = self._backoff()
        while True:
            region = self.cached(key)
            if region is not None and region.leader is not None:
                return region
            async with self._lookups:
                # Many may have missed at once: the first has filled the cache for the others meanwhile.
                region = self.cached(key)
                if region is None or region.leader is None:
                    region = await self._pd.region(key)
            if region is not None:
                self.update([region])
                # A store may have told a newer state than PD knows yet: then PD's answer is of no use.
                region = self.cached(key)
                if region is not None and region.leader is not None:
                    return region
            await backoff.sleep(_no_region(key, region))

    async def look(self, key: RegionKey) -> Region:
        """The region that holds a key as it is known now: unlike :meth:`locate` this waits for nothing.

        :raises RegionNotReadyError: PD knows of no such region just now, or of no leader of it.
        :raises PDUnavailableError: no PD answers.
        """
        region = self.cached(key)
        if region is None or region.leader is None:
            async with self._lookups:
                region = self.cached(key)
                if region is None or region.leader is None:
                    found = await self._pd.region(key)
                    if found is not None:
                        self.update([found])
                    region = self.cached(key)
        if region is None or region.leader is None:
            raise _no_region(key, region)
        return region

    async def survey(self, keys: KeyRange[RegionKey]) -> list[Region]:
        """The regions of a range as PD knows them now, whatever is missing between them or of them.

        :raises PDUnavailableError: no PD answers.
        """
        regions: list[Region] = []
        at = keys.start
        while True:
            page = await self._pd.scan_regions(KeyRange(at, keys.end), PAGE)
            regions += page
            self.update(page)
            end = page[-1].end if page else RegionKey(b"")
            if end <= at or (keys.end and end >= keys.end):
                return regions
            at = end

    def cached(self, key: RegionKey) -> Region | None:
        """The region that holds a key as far as it is known here."""
        at = bisect_right(self._starts, key) - 1
        if at < 0:
            return None
        region = self._by_start[self._starts[at]]
        return region if region.keys.contains(key) else None

    async def cover(self, keys: KeyRange[RegionKey]) -> list[Region]:
        """All regions of a range, fresh from PD: the first holds its start, neighbours touch, the last holds its end.

        :param keys: the range; the first and the last region may reach beyond it.
        :raises BudgetExceededError: PD's view of the range has a gap or no leader for too long.
        :raises PDUnavailableError: no PD answers.
        """
        backoff = self._backoff()
        regions: list[Region] = []
        at = keys.start
        while True:
            page = await self._pd.scan_regions(KeyRange(at, keys.end), PAGE)
            good, problem = _continuous(at, page)
            if good:
                regions += good
                self.update(good)
                at = good[-1].end
                if not at or (keys.end and at >= keys.end):
                    return regions
                backoff.reset()
            if problem is not None:
                await backoff.sleep(problem)

    def invalidate(self, region_id: int) -> None:
        """Forget a region."""
        region = self._by_id.get(region_id)
        if region is not None:
            self._remove(region)

    def update(self, regions: Iterable[Region]) -> None:
        """Take in regions as PD or a store describes them now.

        A region without leader keeps the leader known so far if that peer is still one of its peers.
        """
        for region in regions:
            self._insert(region)

    def set_leader(self, region_id: int, peer: Peer) -> None:
        """Take in who leads a region, as a store tells it; a peer that the region does not have changes nothing."""
        region = self._by_id.get(region_id)
        if region is None:
            return
        if any(known.id == peer.id for known in region.peers):
            self._put(replace(region, leader=peer))
        else:
            self._remove(region)

    # --- the sorted list ---

    def _insert(self, region: Region) -> None:
        known = self._by_id.get(region.id)
        overlapping = self._overlapping(region.keys)
        rivals = [*overlapping, known] if known is not None else overlapping
        # Splits and merges raise the version of every region that takes part, so versions compare across ids.
        if any(_newer(rival, region) for rival in rivals):
            return
        leader = region.leader
        if leader is None and known is not None and known.leader in region.peers:
            leader = known.leader
        for rival in rivals:
            self._remove(rival)
        self._put(replace(region, leader=leader))

    def _overlapping(self, keys: KeyRange[RegionKey]) -> list[Region]:
        found = []
        at = max(bisect_right(self._starts, keys.start) - 1, 0)
        while at < len(self._starts) and (not keys.end or self._starts[at] < keys.end):
            region = self._by_start[self._starts[at]]
            if region.keys.intersect(keys) is not None:
                found.append(region)
            at += 1
        return found

    def _put(self, region: Region) -> None:
        if region.start not in self._by_start:
            self._starts.insert(bisect_right(self._starts, region.start), region.start)
        self._by_start[region.start] = region
        self._by_id[region.id] = region

    def _remove(self, region: Region) -> None:
        if self._by_start.get(region.start) is region:
            del self._by_start[region.start]
            del self._starts[bisect_right(self._starts, region.start) - 1]
            del self._by_id[region.id]

    def _backoff(self) -> Backoff:
        return Backoff(base_s=0.05, cap_s=1.0, budget_s=self._budget_s)


def _newer(one: Region, other: Region) -> bool:
    if one.id == other.id:
        return (one.version, one.conf_ver) > (other.version, other.conf_ver)
    return one.version > other.version


def _continuous(start: RegionKey, page: list[Region]) -> tuple[list[Region], TransientError | None]:
    """The regions of a page up to the first gap, and the gap. Right after a split PD may not know every piece yet."""
    at = start
    for number, region in enumerate(page):
        fits = region.keys.contains(at) if number == 0 else region.start == at
        if not fits:
            return page[:number], _gap(at, region)
        if region.leader is None:
            return page[:number], _no_region(at, region)
        at = region.end
        if not at:
            return page[: number + 1], None
    return page, (None if page else _gap(at, None))


def _gap(at: RegionKey, found: Region | None) -> RegionNotReadyError:
    there = f"region {found.id} from {show_key(found.start, empty='the start')}" if found else "no region"
    return RegionNotReadyError(
        f"PD knows of a gap in the regions at key {show_key(at, empty='(start)')}: it tells {there} there",
        kind="gap",
        region_id=found.id if found else None,
    )


def _no_region(key: RegionKey, region: Region | None) -> RegionNotReadyError:
    if region is None:
        return RegionNotReadyError(f"PD knows of no region for key {show_key(key, empty='(start)')}", kind="gap")
    return RegionNotReadyError(f"PD knows of no leader of region {region.id}", kind="no_leader", region_id=region.id)
