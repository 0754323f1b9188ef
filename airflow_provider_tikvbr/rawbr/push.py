"""Back up a range: one request to every store at once, then what is missing at the leaders of the gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from airflow_provider_tikvbr.exceptions import TikvBrError, TransientError
from airflow_provider_tikvbr.rawbr.coverage import Coverage
from airflow_provider_tikvbr.rawbr.events import Listener, Note
from airflow_provider_tikvbr.rawbr.gaps import fill_gaps, find_parts
from airflow_provider_tikvbr.rawbr.tasks import all_or_cancel
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.retry import Backoff

# A store that breaks off is asked again, for a restart takes seconds; one that stays away is left to the gaps, where the
# new leaders of its regions answer.
ATTEMPTS = 3
RETRY_BASE_S = 1.0
RETRY_CAP_S = 3.0


async def count_regions(cluster: Cluster, keys: KeyRange[ApiKey], listener: Listener) -> int:
    """About how many regions a range has, for progress reports; 0 if PD does not tell, which is no reason to stop."""
    try:
        return await cluster.http.region_count(cluster.codec.region_range(keys))
    except TikvBrError as err:
        listener(Note(level="info", message=f"progress is told without the number of regions: {err}"))
        return 0


async def back_up_range(cluster: Cluster, coverage: Coverage, *, budget_s: float, listener: Listener) -> None:
    """Back up the whole range of a request.

    When this returns, the finished ranges cover it without a gap.

    :param coverage: holds the request, and collects the answers.
    :param budget_s: seconds without progress after which to give up.
    :raises BudgetExceededError: some of it could not be backed up for that long; it says what.
    :raises TerminalError: it can never succeed.
    """
    coverage.tell()
    # To every store at once; but what earlier tries have finished is not to be done again.
    if not len(coverage.ranges):
        stores = await cluster.up_stores()
        await push_down(cluster, stores, coverage, listener=listener)
        coverage.tell()
    await fill_gaps(cluster, coverage, budget_s=budget_s, listener=listener)
    coverage.tell()


async def push_down(cluster: Cluster, stores: Sequence[Store], coverage: Coverage, *, listener: Listener) -> None:
    """Send the whole request to every store at once; each backs up what it leads.

    A store that cannot be reached is told and left out; it does not stop the others.

    :raises TerminalError: the backup can never succeed.
    """
    await all_or_cancel(_push(cluster, store, coverage, listener) for store in stores)


async def _push(cluster: Cluster, store: Store, coverage: Coverage, listener: Listener) -> None:
    backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=float("inf"))
    parts = [coverage.keys]
    trouble: TikvBrError | None = None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if attempt > 1:
                parts = await _left_of(cluster, store, coverage)
            if parts:
                trouble = await _ask(cluster, store, coverage, parts)
            break
        except TransientError as err:
            trouble = err
            if attempt < ATTEMPTS and coverage.gaps():
                await backoff.sleep(err)
    if trouble is not None:
        listener(Note(level="warning", message=f"{trouble}: what is missing is asked for again"))


async def _left_of(cluster: Cluster, store: Store, coverage: Coverage) -> list[KeyRange[ApiKey]]:
    """What a store still has to back up: everything that it had told before it broke off counts.

    :raises TransientError: nobody knows.
    """
    troubles: list[TransientError] = []
    found = await find_parts(cluster, coverage, coverage.gaps(), troubles.append)
    if troubles:
        raise troubles[-1]
    return found.get(store.id, [])


async def _ask(
    cluster: Cluster, store: Store, coverage: Coverage, parts: Iterable[KeyRange[ApiKey]]
) -> TikvBrError | None:
    """Let a store back up what it leads of some parts of the range.

    :return: what went wrong with some of it, if anything did.
    """
    trouble: TikvBrError | None = None
    for part in parts:
        trouble = await coverage.take(await cluster.client(store.id), part) or trouble
    return trouble
