"""A cluster's data from the inside: bulk loading and reading without the network, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from airflow_provider_tikvbr.embedded.checksum import Digest, digest_of
from airflow_provider_tikvbr.embedded.engine import StoreEngine
from airflow_provider_tikvbr.embedded.raw import LivePair, RawFormat, RawReader, region_bounds
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, EngineKey, KeyRange, RegionKey, UserKey

CHUNK = 5000


class UserPair(NamedTuple):
    """A live pair as an application sees it.

    :param expire: when it expires, in Unix seconds; 0 for never.
    """

    key: UserKey
    value: bytes
    expire: int


class ClusterData:
    """Reads and writes the pairs of a cluster.

    :param topology: where regions and leaders stand.
    :param engines: the RocksDB of every store.
    """

    def __init__(self, *, topology: Topology, engines: Mapping[int, StoreEngine]) -> None:
        self._topology = topology
        self._engines = engines
        self._codec = topology.codec
        self._raw = RawFormat(topology.api_version)

    async def put(self, pairs: Iterable[tuple[UserKey, bytes] | tuple[UserKey, bytes, int]]) -> None:
        """Write pairs to all peers of their regions.

        :param pairs: user key, value and, if there is one, time to live in seconds.
        """
        todo = iter(pairs)
        while chunk := list(itertools.islice(todo, CHUNK)):
            await self._put_chunk(chunk)

    async def _put_chunk(self, chunk: list[tuple[UserKey, bytes] | tuple[UserKey, bytes, int]]) -> None:
        ts = self._topology.tso(len(chunk)) - len(chunk)
        by_store: dict[int, list[tuple[EngineKey, bytes | None]]] = {}
        for at, pair in enumerate(chunk, start=1):
            api_key = self._codec.api_key(pair[0])
            change = self._raw.put(api_key, pair[1], pair[2] if len(pair) == 3 else 0, ts + at)
            for store_id in self._topology.region_of(self._codec.region_key(api_key)).store_ids:
                by_store.setdefault(store_id, []).append(change)
        await asyncio.gather(*(self._engines[s].run(self._engines[s].write, c) for s, c in by_store.items()))

    async def pairs(self, keys: KeyRange[UserKey] = EVERYTHING, *, store_id: int | None = None) -> list[UserPair]:
        """The live pairs of a range in key order.

        :param store_id: what this store holds, as leader or not; by default what the leaders hold.
        """
        strip = len(self._codec.prefix)
        scans = self._scans(keys, store_id)
        return await asyncio.to_thread(
            lambda: [
                UserPair(UserKey(p.key[strip:]), p.value, p.expire)
                for reader, bounds in scans
                for p in reader.scan(bounds)
            ]
        )

    async def checksum(self, keys: KeyRange[UserKey] = EVERYTHING, *, store_id: int | None = None) -> Digest:
        """The numbers over the live pairs of a range, as a RawChecksum of it would give them."""
        scans = self._scans(keys, store_id)

        def live() -> Iterator[LivePair]:
            for reader, bounds in scans:
                yield from reader.scan(bounds)

        return await asyncio.to_thread(lambda: digest_of(live()))

    def _scans(self, keys: KeyRange[UserKey], store_id: int | None) -> list[tuple[RawReader, KeyRange[EngineKey]]]:
        wanted: KeyRange[RegionKey] = self._codec.region_range(self._codec.api_range(keys))
        scans = []
        for region in self._topology.scan(wanted):
            part = wanted.intersect(region.keys)
            holder = region.leader_store_id if store_id is None else store_id
            if part is not None and region.peer_on(holder) is not None:
                reader = RawReader(engine=self._engines[holder], raw=self._raw)
                scans.append((reader, region_bounds(part)))
        return scans
