"""Restore files: each to all regions that it touches, many files at a time.

A file that fails somewhere is restored again there alone, against the regions as they are by then. Ingesting the same
pairs twice does no harm: in V1 they overwrite themselves, in V2 they keep their timestamps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from airflow_provider_tikvbr.exceptions import (
    BackupFileError,
    BudgetExceededError,
    EpochNotMatchError,
    NotLeaderError,
    RegionNotReadyError,
    ServerIsBusyError,
    TikvBrError,
    TransientError,
    UnsupportedError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, import_sstpb_pb2
from airflow_provider_tikvbr.rawbr.download import Downloader
from airflow_provider_tikvbr.rawbr.plan import PlannedFile
from airflow_provider_tikvbr.rawbr.tasks import for_each
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.errors import MESSAGE_ONLY
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey
from airflow_provider_tikvbr.tikv.model import Peer, Region
from airflow_provider_tikvbr.tikv.regions import RegionCache
from airflow_provider_tikvbr.tikv.retry import Backoff

# Files of one MultiIngest, which is one proposal in the region's raft log.
MAX_BATCH = 64
# An ingest waits for the raft log and for RocksDB's write stalls.
INGEST_TIMEOUT_S = 120.0
# How long to insist on a region that tells errors of unknown kind, before its files are downloaded afresh. A store that
# is only busy is never sent them again for it: TiKV keeps what is not ingested as long as the region does not change.
UNKNOWN_BUDGET_S = 20.0
# Regions of one file at a time.
PARTS_AT_A_TIME = 16
# Waiting for its turn and one download may take a file longer than the budget.
LEAST_TRIES = 5
RESTORING = "restoring file"

RegionKeys = KeyRange[RegionKey]


async def locate_all(regions: RegionCache, keys: RegionKeys) -> list[Region]:
    """The regions of a range, from the cache where it knows them."""
    found = [await regions.locate(keys.start)]
    while found[-1].end and (not keys.end or found[-1].end < keys.end):
        found.append(await regions.locate(found[-1].end))
    return found


class Ingester:
    """Has regions take in downloaded files. Files that are ready for a region while it is busy go in together.

    :param cluster: the target.
    :param budget_s: seconds for which to insist on a region with the files that are there.
    """

    def __init__(self, cluster: Cluster, *, budget_s: float) -> None:
        self._cluster = cluster
        self._budget_s = budget_s
        self._queues: dict[tuple[int, int, int], _Queue] = {}
        # The first 5.0 does not know MultiIngest; the first answer tells.
        self._multi = True

    async def ingest(self, region: Region, sst: import_sstpb_pb2.SSTMeta) -> None:
        """Take one file into a region, all of whose peers have it.

        :raises TransientError: it must be downloaded again, for the region as it is by then.
        """
        key = (region.id, region.conf_ver, region.version)
        waiting = _Waiting(sst, asyncio.get_running_loop().create_future())
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(region, region.leader)
        queue.waiting.append(waiting)
        if queue.worker is None:
            queue.worker = asyncio.create_task(self._work(key, queue))
        await waiting.done

    async def close(self) -> None:
        """Stop what is under way."""
        workers = [q.worker for q in self._queues.values() if q.worker is not None]
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, key: tuple[int, int, int], queue: _Queue) -> None:
        try:
            while queue.waiting:
                await self._ingest_batch(queue, queue.take())
        finally:
            del self._queues[key]

    async def _ingest_batch(self, queue: _Queue, batch: Sequence[_Waiting]) -> None:
        error: Exception | None = None
        try:
            await self._insist(queue, [w.sst for w in batch])
        except Exception as err:  # for those who wait
            error = err
        for waiting in batch:
            if waiting.done.done():
                continue
            if error is None:
                waiting.done.set_result(None)
            else:
                waiting.done.set_exception(error)

    async def _insist(self, queue: _Queue, ssts: Sequence[import_sstpb_pb2.SSTMeta]) -> None:
        """Ingest at the leader, wherever it moves, while the region stays as it is."""
        known = Backoff(base_s=0.05, cap_s=2.0, budget_s=self._budget_s)
        unknown = Backoff(base_s=0.05, cap_s=1.0, budget_s=min(UNKNOWN_BUDGET_S, self._budget_s))
        region = queue.region
        while True:
            try:
                if queue.leader is None:
                    queue.leader = await self._find_leader(region)
                await self._send(region, queue.leader, ssts)
                return
            except NotLeaderError as err:
                queue.leader = err.leader
                if err.leader is not None:
                    self._cluster.regions.set_leader(region.id, err.leader)
                await _pause(known, err)
            except ServerIsBusyError as err:
                await _pause(known, err)
            except RegionNotReadyError as err:
                # PD tells whether the region is still the one that the files were cut for.
                queue.leader = None
                await _pause(unknown if err.kind == MESSAGE_ONLY else known, err)

    async def _send(self, region: Region, leader: Peer, ssts: Sequence[import_sstpb_pb2.SSTMeta]) -> None:
        client = await self._cluster.client(leader.store_id)
        context = region.context(leader)
        if self._multi:
            try:
                await client.multi_ingest(context, ssts, timeout_s=INGEST_TIMEOUT_S)
                return
            except UnsupportedError:
                self._multi = False
        for sst in ssts:
            await client.ingest(context, sst, timeout_s=INGEST_TIMEOUT_S)

    async def _find_leader(self, region: Region) -> Peer:
        now = await self._cluster.pd.region_by_id(region.id)
        if now is None or (now.conf_ver, now.version) != (region.conf_ver, region.version):
            raise EpochNotMatchError(
                f"region {region.id} has changed before the ingest", kind="epoch_not_match", region_id=region.id
            )
        leader = now.known_leader()
        self._cluster.regions.set_leader(region.id, leader)
        return leader


@dataclass(eq=False, slots=True)
class _Waiting:
    """A file that is ready, and who waits for it."""

    sst: import_sstpb_pb2.SSTMeta
    done: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class _Queue:
    """The files that are ready for one region."""

    region: Region
    leader: Peer | None
    waiting: list[_Waiting] = field(default_factory=list)
    worker: asyncio.Task[None] | None = None

    def take(self) -> list[_Waiting]:
        """Files for one request: RocksDB wants them not to overlap."""
        batch: list[_Waiting] = []
        left: list[_Waiting] = []
        end: bytes | None = None
        for waiting in sorted(self.waiting, key=lambda w: w.sst.range.start):
            if len(batch) < MAX_BATCH and (end is None or waiting.sst.range.start > end):
                batch.append(waiting)
                end = waiting.sst.range.end
            else:
                left.append(waiting)
        self.waiting = left
        return batch


async def _pause(backoff: Backoff, error: TransientError) -> None:
    try:
        await backoff.sleep(error)
    except BudgetExceededError:
        # Not the end: the file is downloaded afresh.
        raise error from None


class Restorer:
    """Restores files, each to all its regions.

    :param cluster: the target.
    :param downloader: brings files to stores.
    :param budget_s: seconds for which one file may make no progress.
    """

    def __init__(self, cluster: Cluster, *, downloader: Downloader, budget_s: float) -> None:
        self._cluster = cluster
        self._downloader = downloader
        self._ingester = Ingester(cluster, budget_s=budget_s)
        self._budget_s = budget_s

    async def run(
        self, files: Sequence[PlannedFile], *, concurrency: int, on_done: Callable[[PlannedFile], None]
    ) -> None:
        """Restore files, so many at a time.

        :param on_done: told each file that is done.
        :raises TikvBrError: one of them failed, the message says which and where; the others are given up.
        """

        async def restore(planned: PlannedFile) -> None:
            await self._restore(planned)
            on_done(planned)

        try:
            await for_each(files, restore, concurrency=concurrency)
        finally:
            await self._ingester.close()

    async def _restore(self, planned: PlannedFile) -> None:
        file = planned.file
        backoff = Backoff(base_s=0.05, cap_s=4.0, budget_s=self._budget_s, least_tries=LEAST_TRIES)
        todo = [self._cluster.codec.region_range(planned.keys)]
        found = False
        while todo:
            parts = [part for keys in todo for part in await self._restore_range(file, keys, backoff)]
            found = found or any(part.found for part in parts)
            failed = [part for part in parts if part.error is not None]
            if failed and failed[0].error is not None:
                try:
                    await backoff.sleep(failed[0].error)
                except TikvBrError as err:
                    raise _at(err, file, failed[0].region_id) from failed[0].error
            todo = [part.keys for part in failed]
        if not found and planned.whole and file.total_kvs:
            raise BackupFileError(
                f"file {file.name} holds {file.total_kvs} pairs, but none of them in the key range that the backup "
                "gives for it",
                file=file.name,
            )

    async def _restore_range(self, file: brpb_pb2.File, keys: RegionKeys, backoff: Backoff) -> list[_Part]:
        """Restore one range of a file, each region of it once."""
        try:
            regions = await locate_all(self._cluster.regions, keys)
        except TransientError as err:
            return [_Part(keys=keys, region_id=None, error=err)]

        parts: list[_Part] = []

        async def restore(region: Region) -> None:
            parts.append(await self._restore_part(file, region, region.keys.intersect(keys) or keys, backoff))

        await for_each(regions, restore, concurrency=min(PARTS_AT_A_TIME, len(regions)))
        return parts

    async def _restore_part(self, file: brpb_pb2.File, region: Region, keys: RegionKeys, backoff: Backoff) -> _Part:
        """Restore what one region holds of a file."""
        try:
            sst = await self._downloader.fetch(file, region, backoff)
            if sst is not None:
                await self._ingester.ingest(region, sst)
                backoff.reset()
        except BudgetExceededError as err:
            raise _at(err, file, region.id) from err.__cause__
        except TransientError as err:
            self._cluster.regions.invalidate(region.id)
            return _Part(keys=keys, region_id=region.id, error=err)
        except TikvBrError as err:
            raise _at(err, file, region.id) from err.__cause__
        return _Part(keys=keys, region_id=region.id, found=sst is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What became of a part of a file.

    :param keys: the part.
    :param region_id: the region that it was restored into; None if that was not found.
    :param error: why it has to be done again.
    :param found: whether the file has pairs there.
    """

    keys: RegionKeys
    region_id: int | None
    error: TransientError | None = None
    found: bool = False


def _at(error: TikvBrError, file: brpb_pb2.File, region_id: int | None) -> TikvBrError:
    """Let an error say which file and region it is about; files that were ingested together share their error."""
    if not error.message.startswith(RESTORING):
        where = f" into region {region_id}" if region_id is not None else ""
        error.message = f"{RESTORING} {file.name}{where}: {error.message}"
        error.region_id = error.region_id or region_id
    return error
