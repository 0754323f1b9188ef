"""Back up what the first round has left out, at the stores that lead it now, until nothing is left."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from airflow_provider_tikvbr.exceptions import (
    BudgetExceededError,
    RegionNotReadyError,
    TerminalError,
    TikvBrError,
    TransientError,
)
from airflow_provider_tikvbr.rawbr.coverage import Coverage
from airflow_provider_tikvbr.rawbr.events import Listener, Note
from airflow_provider_tikvbr.rawbr.plan import show_range
from airflow_provider_tikvbr.rawbr.tasks import all_or_cancel, for_each
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyCodec, KeyRange
from airflow_provider_tikvbr.tikv.model import Region
from airflow_provider_tikvbr.tikv.retry import Backoff

RETRY_BASE_S = 1.0
RETRY_CAP_S = 10.0
# A store that falls silent in a round may take as long as the budget by itself.
LEAST_ROUNDS = 3
# Requests to one store at a time; one only if it has a rate limit, for the limit is one of each request.
REQUESTS_PER_STORE = 4
# Gaps whose regions are looked up at a time.
LOOKUPS = 8
# With more gaps than one in so many finished ranges it takes fewer calls to look at all regions between them too.
RANGES_PER_GAP = 256

Parts = dict[int, list[KeyRange[ApiKey]]]


async def fill_gaps(cluster: Cluster, coverage: Coverage, *, budget_s: float, listener: Listener) -> None:
    """Ask the leaders of every gap, again and again, until there is no gap.

    :param budget_s: seconds without any progress after which to give up.
    :raises BudgetExceededError: something stayed undone for that long; it says what.
    :raises TerminalError: the backup can never succeed.
    """
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=budget_s, least_tries=LEAST_ROUNDS)
    told: tuple[type[TransientError], int | None] | None = None
    # In a thread: among half a million ranges it takes a while. Nothing comes in meanwhile.
    while gaps := await asyncio.to_thread(coverage.gaps):
        before = coverage.accepted
        trouble = await _fill_once(cluster, coverage, gaps)
        if coverage.accepted > before:
            backoff.reset()
        if trouble is None and coverage.accepted > before:
            continue
        if trouble is None:
            # The leaders that PD names did not answer for their regions: leadership has moved on, and PD lags behind.
            trouble = RegionNotReadyError(
                f"no store answers for {_show(gaps)} although each was asked for what PD says it leads",
                kind="no_leader",
            )
        left = coverage.gaps()
        # The texts of one trouble differ by a time or a file name.
        if left and (kind := (type(trouble), trouble.store_id)) != told:
            told = kind
            listener(Note(level="warning", message=f"{len(left)} ranges are left to back up, trying again: {trouble}"))
        try:
            await backoff.sleep(trouble)
        except BudgetExceededError as err:
            raise BudgetExceededError(
                f"the backup is not complete: nothing came in for {budget_s:g} s, left are {_show(left)}: {trouble}",
                budget_s=budget_s,
                region_id=err.region_id,
                store_id=err.store_id,
                address=err.address,
            ) from trouble


async def _fill_once(cluster: Cluster, coverage: Coverage, gaps: list[KeyRange[ApiKey]]) -> TransientError | None:
    """Ask each leader once.

    :return: the last thing that went wrong, if any.
    """
    troubles: list[TransientError] = []
    parts = await find_parts(cluster, coverage, gaps, troubles.append)
    found = await all_or_cancel(_ask(cluster, coverage, store_id, ranges) for store_id, ranges in parts.items())
    troubles += [trouble for trouble in found if trouble is not None]
    return troubles[-1] if troubles else None


async def _ask(
    cluster: Cluster, coverage: Coverage, store_id: int, parts: list[KeyRange[ApiKey]]
) -> TransientError | None:
    """Ask one store for everything that it leads; give it up for this round once it cannot be reached."""
    troubles: list[TikvBrError] = []
    lost = False

    async def ask(part: KeyRange[ApiKey]) -> None:
        nonlocal lost
        if lost:
            return
        try:
            trouble = await coverage.take(await cluster.client(store_id), part)
        except TransientError as err:
            lost, trouble = True, err
        if isinstance(trouble, TerminalError):
            # In the first round another store might have done better; this one leads the region.
            raise trouble
        if trouble is not None:
            troubles.append(trouble)

    at_once = 1 if coverage.request.rate_limit else REQUESTS_PER_STORE
    await for_each(parts, ask, concurrency=at_once)
    last = troubles[-1] if troubles else None
    return last if isinstance(last, TransientError) else None


async def find_parts(
    cluster: Cluster,
    coverage: Coverage,
    gaps: Sequence[KeyRange[ApiKey]],
    on_trouble: Callable[[TransientError], None],
) -> Parts:
    """What each store is to be asked for, so that all gaps are filled by those who lead them now.

    :param on_trouble: told why a gap, or a part of it, has nobody to be asked for it.
    """
    parts: Parts = defaultdict(list)
    many = len(gaps) > 1 + len(coverage.ranges) // RANGES_PER_GAP
    stretches = [gaps] if many else [[gap] for gap in gaps]

    async def look_up(stretch: Sequence[KeyRange[ApiKey]]) -> None:
        hull = KeyRange(stretch[0].start, stretch[-1].end)
        try:
            # As they are known now: what is missing is left for the next round, and keeps nothing else waiting.
            regions = await cluster.regions.survey(cluster.codec.region_range(hull))
        except TransientError as err:
            on_trouble(err)
            return
        for store_id, part in parts_by_leader(stretch, regions, cluster.codec):
            parts[store_id].append(part)

    await for_each(stretches, look_up, concurrency=LOOKUPS)
    return parts


def parts_by_leader(
    gaps: Sequence[KeyRange[ApiKey]], regions: Iterable[Region], codec: KeyCodec
) -> list[tuple[int, KeyRange[ApiKey]]]:
    """For each leader of the gaps' regions, the stretches from one to another of them that it leads.

    The regions of other leaders in between do not matter: a store backs up only what it leads. A region that it leads
    and that is finished ends a stretch, for it would be backed up again.

    :param gaps: in key order.
    :param regions: from the first gap to the last one, in key order.
    :return: pairs of a store and a part of the range.
    """
    parts: list[tuple[int, KeyRange[ApiKey]]] = []
    open_parts: dict[int, KeyRange[ApiKey]] = {}
    at = 0
    for region in regions:
        keys = codec.api_range_of_regions(region.keys)
        while at < len(gaps) and gaps[at].end and gaps[at].end <= keys.start:
            at += 1
        touched = list(_touched(gaps, at, keys))
        if region.leader is None:
            continue
        store_id = region.leader.store_id
        if touched:
            known = open_parts.get(store_id, touched[0])
            open_parts[store_id] = KeyRange(known.start, touched[-1].end)
        elif store_id in open_parts:
            parts.append((store_id, open_parts.pop(store_id)))
    return [*parts, *open_parts.items()]


def _touched(gaps: Sequence[KeyRange[ApiKey]], at: int, keys: KeyRange[ApiKey]) -> Iterator[KeyRange[ApiKey]]:
    """The parts of gaps that lie in a range.

    :param at: the first gap that may.
    """
    for gap in islice(gaps, at, None):
        if keys.end and gap.start >= keys.end:
            return
        part = gap.intersect(keys)
        if part is not None:
            yield part


def _show(gaps: list[KeyRange[ApiKey]], limit: int = 3) -> str:
    shown = [show_range(gap) for gap in gaps[:limit]]
    more = f" and {len(gaps) - limit} more ranges" if len(gaps) > limit else ""
    return ", ".join(shown) + more
