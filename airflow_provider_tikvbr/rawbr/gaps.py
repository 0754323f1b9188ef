"""Back up what the first round has left out, at the stores that lead it now, until nothing is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

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

Parts = dict[int, list[KeyRange[ApiKey]]]


async def fill_gaps(cluster: Cluster, coverage: Coverage, *, budget_s: float, listener: Listener) -> None:
    """Ask the leaders of every gap, again and again, until there is no gap.

    :param budget_s: seconds without any progress after which to give up.
    :raises BudgetExceededError: something stayed undone for that long; it says what.
    :raises TerminalError: the backup can never succeed.
    """
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=budget_s, least_tries=LEAST_ROUNDS)
    told: tuple[type[TransientError], int | None] | None = None
    while gaps := coverage.gaps():
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
    parts: Parts = defaultdict(list)
    troubles: list[TransientError] = []

    async def look_up(gap: KeyRange[ApiKey]) -> None:
        try:
            regions = await cluster.regions.cover(cluster.codec.region_range(gap))
        except TransientError as err:
            troubles.append(err)
            return
        for store_id, part in parts_by_leader(gap, regions, cluster.codec):
            parts[store_id].append(part)

    await for_each(gaps, look_up, concurrency=LOOKUPS)
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


def parts_by_leader(
    gap: KeyRange[ApiKey], regions: Iterable[Region], codec: KeyCodec
) -> list[tuple[int, KeyRange[ApiKey]]]:
    """For each leader of a gap's regions, the stretch from the first to the last region that it leads.

    The regions of other leaders in between do not matter: a store backs up only what it leads.

    :param regions: those of the gap, in key order, without holes.
    :return: pairs of a store and a part of the gap.
    """
    hulls: dict[int, KeyRange[ApiKey]] = {}
    for region in regions:
        if region.leader is None:
            continue
        keys = codec.api_range_of_regions(region.keys)
        known = hulls.get(region.leader.store_id)
        hulls[region.leader.store_id] = KeyRange(known.start if known else keys.start, keys.end)
    clipped = ((store_id, hull.intersect(gap)) for store_id, hull in hulls.items())
    return [(store_id, part) for store_id, part in clipped if part is not None]


def _show(gaps: list[KeyRange[ApiKey]], limit: int = 3) -> str:
    shown = [show_range(gap) for gap in gaps[:limit]]
    more = f" and {len(gaps) - limit} more ranges" if len(gaps) > limit else ""
    return ", ".join(shown) + more
