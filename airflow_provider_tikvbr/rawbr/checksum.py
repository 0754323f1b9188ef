"""Count what a live cluster holds, and compare it with a backup.

Whoever counts does it in the same way (CRC-64/XZ over API key and user value, XORed over all pairs; number of pairs; their
bytes): a store while it backs up, a store that is asked for a checksum, and ``rawbr/expected.py`` where it reads a backup
file. Source: TiKV, ``src/coprocessor/checksum.rs`` and ``components/backup/src/writer.rs``.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass

from airflow_provider_tikvbr.exceptions import (
    ApiVersionError,
    BudgetExceededError,
    RegionNotReadyError,
    TransientError,
)
from airflow_provider_tikvbr.rawbr.coverage import PROGRESS_INTERVAL_S, Coverage
from airflow_provider_tikvbr.rawbr.events import Listener, Note, Progress, ignore
from airflow_provider_tikvbr.rawbr.expected import expected_checksum
from airflow_provider_tikvbr.rawbr.files import verify_files
from airflow_provider_tikvbr.rawbr.gates import check_can_checksum
from airflow_provider_tikvbr.rawbr.meta import backup_range, read_meta
from airflow_provider_tikvbr.rawbr.options import (
    DEFAULT_BUDGET_S,
    DEFAULT_CHECKSUM_CONCURRENCY,
    BackupOptions,
    ChecksumOptions,
    Compression,
    VerifyFiles,
)
from airflow_provider_tikvbr.rawbr.plan import wanted_range
from airflow_provider_tikvbr.rawbr.push import back_up_range, count_regions
from airflow_provider_tikvbr.rawbr.request import backup_request
from airflow_provider_tikvbr.rawbr.summary import Checksum, ChecksumSummary
from airflow_provider_tikvbr.rawbr.tasks import for_each
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.noop import NoopStorage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiKey, ApiVersion, KeyCodec, KeyRange, UserKey
from airflow_provider_tikvbr.tikv.model import Region
from airflow_provider_tikvbr.tikv.retry import Backoff

STEP = "Raw checksum"
RAW_CHECKSUM = "raw-checksum"
BACKUP = "backup"

# Regions that one store counts for us at a time. More would only wait there, and run into their time limit: a large region
# on a slow disk takes a minute.
PER_STORE = 64
CALL_TIMEOUT_S = 900.0
# A shorter budget shortens that: nobody who waits for seconds wants to hear of a call after minutes.
CALL_BUDGETS = 3
# One call may take longer than the budget.
LEAST_TRIES = 3
RETRY_BASE_S = 0.2
RETRY_CAP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveChecksum:
    """What a cluster holds.

    :param regions: regions that answered.
    :param method: how it was counted.
    """

    checksum: Checksum
    regions: int
    method: str


async def verify_backup(
    cluster: Cluster, storage: Storage, options: ChecksumOptions, listener: Listener = ignore
) -> ChecksumSummary:
    """Compare a backup with the cluster that it was made of, or restored into.

    :return: both sides' checksums, whether they are equal or not.
    :raises BackupInvalidError: there is no backup, or it is damaged.
    :raises ApiVersionError: a backup of that API version cannot be compared with this cluster.
    :raises KeyRangeError: the backup does not cover the range.
    :raises BudgetExceededError: a part of the cluster did not answer for too long.
    """
    started = time.monotonic()
    check_can_checksum(cluster)
    meta = await read_meta(storage, options.cipher)
    version = ApiVersion(meta.api_version)
    if version not in {cluster.api_version, ApiVersion.V2}:
        raise ApiVersionError(
            f"the backup in {storage.display_url} has API version {version.name} and cannot be compared with a"
            f" {cluster.api_version.name} cluster: give the cluster it was made of, or a backup converted to V2"
        )
    codec = cluster.codec if version is cluster.api_version else KeyCodec(version)
    keys = wanted_range(backup_range(meta), codec, options.keys or EVERYTHING)
    await verify_files(storage, meta.files, VerifyFiles.SIZE, budget_s=options.budget_s, listener=listener)
    expected = await expected_checksum(storage, meta, keys, options.cipher)
    live = await live_checksum(
        cluster,
        codec.user_range(keys),
        version,
        concurrency=options.concurrency,
        budget_s=options.budget_s,
        listener=listener,
        step=STEP,
    )
    return ChecksumSummary(
        expected=expected,
        actual=live.checksum,
        total_take_s=time.monotonic() - started,
        regions=live.regions,
        method=live.method,
        storage=storage.display_url,
        cluster_id=cluster.cluster_id,
    )


def warn_of_expiry(cluster: Cluster, listener: Listener) -> None:
    """Tell what may make two counts of the same cluster differ."""
    if cluster.api_version is not ApiVersion.V1:
        message = "pairs may have a time to live here: those that expire meanwhile make the checksum differ"
        listener(Note(level="warning", message=message))


async def live_checksum(
    cluster: Cluster,
    keys: KeyRange[UserKey],
    version: ApiVersion,
    *,
    concurrency: int,
    budget_s: float,
    listener: Listener,
    step: str,
) -> LiveChecksum:
    """Count what a cluster holds, in the form that a backup of an API version has.

    For another version than the cluster's, the stores run a backup that writes nothing: they convert each pair and count
    it, and no pair travels over the network.

    :param concurrency: regions that are counted at a time.
    :param budget_s: seconds without progress after which to give up.
    """
    if version is cluster.api_version:
        counter = _Counter(cluster, budget_s=budget_s, listener=listener, step=step)
        await counter.count(cluster.codec.api_range(keys), concurrency=concurrency)
        return LiveChecksum(checksum=counter.checksum, regions=counter.done, method=RAW_CHECKSUM)
    options = BackupOptions(keys=keys, compression=Compression.LZ4, dst_api_version=version)
    coverage = Coverage(
        backup_request(cluster, options, version),
        codec=cluster.codec,
        storage=NoopStorage(),
        step=step,
        total=await count_regions(cluster, cluster.codec.api_range(keys), listener),
        listener=listener,
        budget_s=budget_s,
    )
    await back_up_range(cluster, coverage, budget_s=budget_s, listener=listener)
    return LiveChecksum(checksum=coverage.checksum, regions=len(coverage.ranges), method=BACKUP)


async def cluster_checksum(
    cluster: Cluster,
    keys: KeyRange[ApiKey],
    *,
    concurrency: int = DEFAULT_CHECKSUM_CONCURRENCY,
    budget_s: float = DEFAULT_BUDGET_S,
    listener: Listener = ignore,
    step: str = STEP,
) -> Checksum:
    """Let every region of a range count its live pairs.

    :param concurrency: regions that are counted at a time.
    :param budget_s: seconds that one region may go on failing.
    :raises BudgetExceededError: a region did not answer for that long.
    """
    counter = _Counter(cluster, budget_s=budget_s, listener=listener, step=step)
    await counter.count(keys, concurrency=concurrency)
    return counter.checksum


class _Counter:
    """Adds up the regions of a range."""

    def __init__(self, cluster: Cluster, *, budget_s: float, listener: Listener, step: str) -> None:
        self.checksum = Checksum()
        self.done = 0
        self._total = 0
        self._cluster = cluster
        self._codec = cluster.codec
        self._budget_s = budget_s
        self._timeout_s = min(CALL_TIMEOUT_S, CALL_BUDGETS * budget_s)
        self._listener = listener
        self._step = step
        self._started = time.monotonic()
        self._told = float("-inf")
        self._slots: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(PER_STORE))

    async def count(self, keys: KeyRange[ApiKey], *, concurrency: int) -> None:
        """Count every region once."""
        regions = await self._cluster.regions.cover(self._codec.region_range(keys))
        self._total = len(regions)
        self._tell()

        async def one(region: Region) -> None:
            await self._region(region, keys)

        await for_each(regions, one, concurrency=min(concurrency, len(regions)))
        self._tell()

    async def _region(self, region: Region, keys: KeyRange[ApiKey]) -> None:
        """Count the part of a range that lies in a region, whatever becomes of the region meanwhile."""
        backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=self._budget_s, least_tries=LEAST_TRIES)
        part = self._part(region, keys)
        while True:
            try:
                self._add(await self._ask(region, part))
            except TransientError as err:
                self._cluster.regions.invalidate(region.id)
                await backoff.sleep(err)
            else:
                return
            try:
                regions = await self._cluster.regions.cover(self._codec.region_range(part))
            except BudgetExceededError as err:
                await backoff.sleep(err)
                continue
            if len(regions) > 1:
                self._total += len(regions) - 1
                for piece in regions:
                    await self._region(piece, part)
                return
            region = regions[0]

    async def _ask(self, region: Region, part: KeyRange[ApiKey]) -> Checksum:
        leader = region.known_leader()
        async with self._slots[leader.store_id]:
            client = await self._cluster.client(leader.store_id)
            answer = await client.raw_checksum(
                region, leader, part, self._cluster.api_version, timeout_s=self._timeout_s
            )
        return Checksum(answer.checksum, answer.total_kvs, answer.total_bytes)

    def _part(self, region: Region, keys: KeyRange[ApiKey]) -> KeyRange[ApiKey]:
        """The part of a range that lies in a region: a store refuses a start before the region."""
        part = self._codec.api_range_of_regions(region.keys).intersect(keys)
        if part is None:
            raise RegionNotReadyError(f"region {region.id} has moved out of the range", kind="gap", region_id=region.id)
        return part

    def _add(self, checksum: Checksum) -> None:
        self.checksum += checksum
        self.done += 1
        if time.monotonic() - self._told >= PROGRESS_INTERVAL_S:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._listener(
            Progress(
                step=self._step,
                done=self.done,
                total=self._total,
                kvs=self.checksum.total_kvs,
                bytes=self.checksum.total_bytes,
                elapsed_s=self._told - self._started,
            )
        )
