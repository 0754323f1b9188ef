"""Split the regions of the target where the plan says, and let PD spread the pieces over the stores.

A region that is to be split into very many pieces is first split into a few coarse ones, which then split at the same
time on the stores that they were spread to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from airflow_provider_tikvbr.exceptions import (
    NotLeaderError,
    RegionNotReadyError,
    RegionRefusedError,
    TikvBrError,
    TransientError,
)
from airflow_provider_tikvbr.rawbr.events import Listener, Note, ignore
from airflow_provider_tikvbr.rawbr.tasks import for_each
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyCodec, KeyRange, RegionKey, region_boundary
from airflow_provider_tikvbr.tikv.model import Region
from airflow_provider_tikvbr.tikv.redaction import show_key
from airflow_provider_tikvbr.tikv.retry import Backoff

# Regions that are split, looked up or asked after at a time.
CONCURRENCY = 32
# What one split may weigh, as a proposal in the raft log and as an answer: TiKV refuses proposals above 8 MiB.
MAX_MESSAGE_BYTES = 2 << 20
BYTES_PER_REGION = 160
SCATTER_BATCH = 1024
SCATTER_TRIES = 3
# The data is safe wherever the regions are, so neither wait is worth failing for.
KNOWN_WAIT_S = 60.0
SCATTER_WAIT_S = 180.0

# Kinds by which a store refuses split keys that do not lie inside its region (any more).
STALE_KEYS = frozenset({"no_valid_split_key", "key_not_in_region"})


@dataclass(frozen=True, slots=True)
class SplitKey:
    """A split key in the form that PD compares and the one that the request carries."""

    region_key: RegionKey
    api_key: ApiKey


async def split_and_scatter(
    cluster: Cluster, keys: Iterable[ApiKey], *, max_keys: int, budget_s: float, listener: Listener = ignore
) -> int:
    """Make each key the start of a region, and wait until PD has spread the new regions.

    :param keys: where to split; a key that starts a region already is left alone, and one that cannot start a region gets
        the nearest boundary before it.
    :param max_keys: keys of one request.
    :param budget_s: seconds without progress after which to give up.
    :param listener: told what did not work but does no harm.
    :return: number of new regions.
    :raises BudgetExceededError: some region would not split for too long.
    """
    pending = sorted({_split_key(cluster.codec, k) for k in keys if k}, key=lambda k: k.region_key)
    if pending:
        listener(Note(level="info", message=f"making room: regions are split at {len(pending)} keys and spread"))
    work = _Splitter(cluster, max_keys=max_keys, listener=listener)
    backoff = Backoff(base_s=0.05, cap_s=2.0, budget_s=budget_s)
    while pending:
        last = RegionKey(pending[-1].region_key + b"\0")
        try:
            # Not a cover without gaps: one region without leader must not keep the others from being split.
            regions = await cluster.regions.survey(KeyRange(pending[0].region_key, last))
        except TransientError as err:
            await backoff.sleep(err)
            continue
        jobs = list(_inside(regions, pending))
        pending = sorted(
            [key for _, inside in jobs for key in inside] + list(_outside(regions, pending)), key=lambda k: k.region_key
        )
        before = len(work.new_regions)
        await for_each(jobs, work.split, concurrency=CONCURRENCY)
        if len(work.new_regions) > before:
            backoff.reset()
            await work.spread(work.new_regions[before:])
        error = work.take_error()
        if error is None and pending and not jobs:
            error = RegionNotReadyError(
                f"PD knows of no region for {len(pending)} split keys from {show_key(pending[0].api_key)} on",
                kind="gap",
            )
        if error is not None:
            await backoff.sleep(error)
    await work.wait_until_spread()
    return len(work.new_regions)


class _Splitter:
    def __init__(self, cluster: Cluster, *, max_keys: int, listener: Listener) -> None:
        self._cluster = cluster
        self._max_keys = max_keys
        self._listener = listener
        self.new_regions: list[Region] = []
        self._error: TransientError | None = None

    async def split(self, job: tuple[Region, Sequence[SplitKey]]) -> None:
        """Split one region once; if it would not, the error is kept."""
        region, keys = job
        try:
            pieces = await self._split(region, choose_keys(keys, limit=self._max_keys, weight=_weight(region)))
        except NotLeaderError as err:
            self._error = err
            if err.leader is None:
                self._cluster.regions.invalidate(region.id)
            else:
                self._cluster.regions.set_leader(region.id, err.leader)
        except TransientError as err:
            self._error = err
            self._cluster.regions.invalidate(region.id)
        else:
            self._cluster.regions.update(pieces)
            self.new_regions += [piece for piece in pieces if piece.id != region.id]

    def take_error(self) -> TransientError | None:
        """Why some region of this round would not split; asked for once a round."""
        error, self._error = self._error, None
        return error

    async def _split(self, region: Region, keys: Sequence[SplitKey]) -> list[Region]:
        client = await self._cluster.client(region.known_leader().store_id)
        try:
            pieces = await client.split_region(region, [k.api_key for k in keys])
        except RegionRefusedError as err:
            if err.kind not in STALE_KEYS:
                raise
            # The region is not what PD told: somebody else has split it.
            raise RegionNotReadyError(str(err), kind=err.kind, region_id=region.id, store_id=err.store_id) from err
        if len(pieces) < 2:
            raise RegionNotReadyError(f"region {region.id} did not split", kind="no_split", region_id=region.id)
        return pieces

    async def spread(self, regions: Sequence[Region]) -> None:
        """Wait until PD knows new regions, and ask it to spread them."""
        deadline = _now() + KNOWN_WAIT_S

        async def known(region: Region) -> None:
            for pause in _pauses(0.008, 1.0, deadline):
                with contextlib.suppress(TransientError):
                    # By its key: it may be part of a newer region by now.
                    found = await self._cluster.pd.region(region.start)
                    if found is not None and found.version >= region.version:
                        return
                await asyncio.sleep(pause)

        await for_each(regions, known, concurrency=CONCURRENCY)
        for at in range(0, len(regions), SCATTER_BATCH):
            await self._scatter([region.id for region in regions[at : at + SCATTER_BATCH]])

    async def _scatter(self, region_ids: Sequence[int]) -> None:
        for attempt in range(SCATTER_TRIES):
            try:
                if await self._cluster.pd.scatter(region_ids) >= 100:
                    return
                problem = "it could not plan for all of them"
            except TikvBrError as err:
                problem = str(err)
                if not isinstance(err, TransientError):
                    break
            await asyncio.sleep(0.1 * 2**attempt)
        message = f"PD did not spread {len(region_ids)} new regions, which makes the restore uneven: {problem}"
        self._listener(Note(level="warning", message=message))

    async def wait_until_spread(self) -> None:
        """Wait, not for ever, until PD has done what it was asked for."""
        deadline = _now() + SCATTER_WAIT_S
        late: list[int] = []

        async def spread(region: Region) -> None:
            for pause in _pauses(0.05, 1.0, deadline):
                with contextlib.suppress(TransientError):
                    if not await self._cluster.pd.is_scattering(region.id):
                        break
                await asyncio.sleep(pause)
            else:
                late.append(region.id)
            # Its peers are elsewhere now.
            self._cluster.regions.invalidate(region.id)

        await for_each(self.new_regions, spread, concurrency=CONCURRENCY)
        if late:
            message = f"PD is still moving {len(late)} new regions after {SCATTER_WAIT_S:g} s; the restore goes on"
            self._listener(Note(level="warning", message=message))


def choose_keys(keys: Sequence[SplitKey], *, limit: int, weight: int) -> list[SplitKey]:
    """All keys if one request takes them, else as many as it takes, evenly spaced, so that coarse pieces come first.

    :param limit: keys of one request.
    :param weight: bytes of a new region besides its keys.
    """
    count = min(len(keys), limit)
    while True:
        chosen = [keys[(at + 1) * len(keys) // (count + 1)] for at in range(count)] if count < len(keys) else list(keys)
        if count <= 1 or sum(weight + 2 * len(k.region_key) for k in chosen) <= MAX_MESSAGE_BYTES:
            return chosen
        count //= 2


def _split_key(codec: KeyCodec, key: ApiKey) -> SplitKey:
    boundary = region_boundary(codec.region_key(key))
    return SplitKey(boundary, codec.api_key_of_region_key(boundary))


def _inside(regions: Sequence[Region], keys: Sequence[SplitKey]) -> Iterator[tuple[Region, Sequence[SplitKey]]]:
    """Each region with the keys strictly inside it; both come in key order."""
    at = 0
    for region in regions:
        while at < len(keys) and keys[at].region_key <= region.start:
            at += 1
        first = at
        while at < len(keys) and region.keys.contains(keys[at].region_key):
            at += 1
        if at > first:
            yield region, keys[first:at]


def _outside(regions: Sequence[Region], keys: Sequence[SplitKey]) -> Iterator[SplitKey]:
    """The keys that lie in none of the regions; both come in key order."""
    at = 0
    for key in keys:
        while at < len(regions) and regions[at].end and regions[at].end <= key.region_key:
            at += 1
        if at == len(regions) or not regions[at].keys.contains(key.region_key):
            yield key


def _weight(region: Region) -> int:
    return BYTES_PER_REGION + 32 * len(region.peers)


def _pauses(first_s: float, cap_s: float, deadline: float) -> Iterator[float]:
    """Growing pauses until the deadline; at least one."""
    pause = first_s
    while True:
        yield pause
        if _now() >= deadline:
            return
        pause = min(2 * pause, cap_s)


def _now() -> float:
    return asyncio.get_running_loop().time()
