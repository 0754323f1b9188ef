"""Back up a range: one request to every store at once, then what is missing at the leaders of the gaps."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_provider_tikvbr.exceptions import TikvBrError, TransientError
from airflow_provider_tikvbr.rawbr.coverage import Coverage
from airflow_provider_tikvbr.rawbr.events import Listener, Note
from airflow_provider_tikvbr.rawbr.gaps import fill_gaps
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
    for attempt in range(1, ATTEMPTS + 1):
        try:
            trouble = await coverage.take(await cluster.client(store.id), coverage.keys)
        except TransientError as err:
            # Everything it had finished counts, so asking again is worth it only for what is left.
            if attempt < ATTEMPTS and coverage.gaps():
                await backoff.sleep(err)
                continue
            trouble = err
        if trouble is not None:
            listener(Note(level="warning", message=f"{trouble}: what is missing is asked for again"))
        return
