"""Changes of many regions at once: what a busy cluster does to them over hours."""

from __future__ import annotations

import itertools
import random

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.raw import RawFormat, RawReader, region_bounds
from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.tikv.keys import ApiKey, RegionKey

# Pairs of a region that are looked at to find one in the middle.
_LOOK_AT = 2000
# A region without pairs that is narrower than so many zero bytes stays whole.
_ZEROS = 16


def shuffle_leaders(topology: Topology, chance: random.Random) -> int:
    """Let another peer lead every region that has one that runs.

    :return: how many leaders moved.
    """
    moves = {}
    for region in topology.regions:
        others = [store_id for store_id in topology.live_stores(region) if not region.led_by(store_id)]
        if others and topology.has_majority(region):
            moves[region.id] = chance.choice(others)
    topology.transfer_leaders(moves)
    return len(moves)


async def split_all(cluster: EmbeddedCluster) -> int:
    """Split every region that has a majority in two: between its pairs, or anywhere if it has none.

    :return: how many were split.
    """
    return sum([await split_one(cluster, region) for region in list(cluster.topology.regions)])


async def split_one(cluster: EmbeddedCluster, region: RegionState) -> bool:
    """Split one region in two, if it can change now.

    :return: whether it was split.
    """
    topology = cluster.topology
    if not topology.has_majority(region):
        return False
    key = await _middle(cluster, region)
    # It may be another one by now.
    return topology.by_id(region.id) is region and len(topology.split(region.id, [key])) > 1


async def _middle(cluster: EmbeddedCluster, region: RegionState) -> RegionKey:
    codec, engine = cluster.topology.codec, cluster.engines[region.leader_store_id]
    reader = RawReader(engine=engine, raw=RawFormat(cluster.topology.api_version))
    bounds = region_bounds(region.keys)

    def look() -> list[ApiKey]:
        return [pair.key for pair in itertools.islice(reader.scan(bounds), _LOOK_AT)]

    keys = await engine.run(look)
    if keys:
        key = keys[len(keys) // 2]
        border = codec.region_key(key)
        return border if border > region.start else codec.region_key(ApiKey(key + b"\x00"))
    start = codec.api_range_of_regions(region.keys).start
    tails = (b"\x00" * zeros + bytes([1 << bit]) for zeros in range(_ZEROS) for bit in range(7, -1, -1))
    borders = (codec.region_key(ApiKey(start + tail)) for tail in tails)
    return next((border for border in borders if not region.end or border < region.end), region.start)


def choose_merges(topology: Topology, chance: random.Random, count: int) -> list[tuple[int, int]]:
    """Some pairs of neighbours that can be merged: the region that ends, and the one that takes its keys.

    Peers of the first are moved to the stores of the second before, as PD does it.
    """
    regions = list(topology.regions)
    left = list(range(len(regions) - 1))
    chance.shuffle(left)
    chosen: list[tuple[int, int]] = []
    taken: set[int] = set()
    for at in left:
        if len(chosen) >= count:
            break
        pair = [regions[at], regions[at + 1]]
        chance.shuffle(pair)
        source, target = pair
        if taken & {source.id, target.id} or not _match_peers(topology, source, target):
            continue
        taken |= {source.id, target.id}
        chosen.append((source.id, target.id))
    return chosen


def _match_peers(topology: Topology, source: RegionState, target: RegionState) -> bool:
    """Bring the peers of a region to the stores of another one; False if they cannot go there now."""
    if source.merging or target.merging or not topology.has_majority(source) or not topology.has_majority(target):
        return False
    wanted = [s for s in target.store_ids if source.peer_on(s) is None]
    surplus = [s for s in source.store_ids if target.peer_on(s) is None]
    if len(wanted) != len(surplus) or not all(topology.stores[s].running for s in wanted):
        return False
    try:
        for old, new in zip(surplus, wanted, strict=True):
            topology.move_peer(source.id, old, new)
    except ValueError:
        return False
    return True
