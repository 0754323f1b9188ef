"""Have regions take in the files that all their peers have downloaded.

Ingesting the same pairs twice does no harm: in V1 they overwrite themselves, in V2 they keep their timestamps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from airflow_provider_tikvbr.exceptions import (
    BudgetExceededError,
    EpochNotMatchError,
    NotLeaderError,
    RegionNotReadyError,
    ServerIsBusyError,
    TransientError,
    UnsupportedError,
)
from airflow_provider_tikvbr.proto import import_sstpb_pb2
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.model import Peer, Region
from airflow_provider_tikvbr.tikv.retry import Backoff

# Files of one MultiIngest, which is one proposal in the region's raft log.
MAX_BATCH = 64
# An ingest waits for the raft log and for RocksDB's write stalls.
INGEST_TIMEOUT_S = 120.0
# How long to insist on a region that has moved or is busy, before its files wait elsewhere.
INSIST_S = 2.0


class Ingester:
    """Has regions take in downloaded files. Files that are ready for a region while it is busy go in together.

    :param cluster: the target.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._queues: dict[tuple[int, int, int], _Queue] = {}
        # The first 5.0 does not know MultiIngest; the first answer tells.
        self._multi = True

    async def ingest(self, region: Region, sst: import_sstpb_pb2.SSTMeta) -> None:
        """Take one file into a region, all of whose peers have it.

        :raises RegionError: the region does not take it now, or is another one by now.
        :raises TransientError: nobody knows whether it has taken it.
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
        backoff = Backoff(base_s=0.05, cap_s=0.5, budget_s=INSIST_S)
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
                await _pause(backoff, err)
            except ServerIsBusyError as err:
                await _pause(backoff, err)
            except RegionNotReadyError as err:
                # PD tells whether the region is still the one that the files were cut for.
                queue.leader = None
                await _pause(backoff, err)

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
        # Not the end: the file waits until the region may be well again.
        raise error from None
