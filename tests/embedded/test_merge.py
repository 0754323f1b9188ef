"""Regions that are merged, and what of it clients see."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.state import ClusterState
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.proto import brpb_pb2, kvrpcpb_pb2, methods
from airflow_provider_tikvbr.tikv.keys import ApiVersion, RegionKey, UserKey
from tests.embedded.stores import Stores

SPLITS = [UserKey(b"g"), UserKey(b"p")]


def make(state: ClusterState, **options: Any) -> Topology:
    topology = Topology(state=state, split_keys=SPLITS, **{"stores": 3, "replicas": 3, **options})
    for store_id in topology.stores:
        topology.set_running(store_id, True)
    return topology


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with (
        EmbeddedCluster(data_dir=tmp_path / "data", stores=3, replicas=3, split_keys=SPLITS) as cluster,
        Stores(cluster) as stores,
    ):
        await cluster.put((UserKey(b"%c" % c), b"v") for c in range(ord("a"), ord("z") + 1))
        yield stores


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0), (1, 2), (2, 1)])
def test_a_neighbour_takes_the_keys(tmp_path: Path, source: int, target: int) -> None:
    state = ClusterState(directory=tmp_path)
    topology = make(state)
    regions = list(topology.regions)
    gone, kept = regions[source], regions[target]
    topology.split(kept.id, [RegionKey(kept.start + b"zz")])  # so that the versions differ
    kept = topology.region_of(
        RegionKey(gone.end) if source < target else RegionKey(b"p" if gone.start == b"p" else b"g")
    )
    kept = topology.before(gone) or kept if source > target else kept
    start, end = min(gone.start, kept.start), gone.end if source > target else kept.end
    gone_version, kept_version, conf_ver = gone.version, kept.version, kept.conf_ver

    merged = topology.merge(gone.id, kept.id)

    assert merged is kept
    assert (kept.start, kept.end) == (start, end)
    # The source's version has grown once, as the merge was prepared, before the larger one is taken.
    assert kept.version == max(gone_version + 1, kept_version) + 1
    assert kept.conf_ver == conf_ver
    assert topology.by_id(gone.id) is None
    assert topology.region_of(gone.start) is kept
    tiles = [(r.start, r.end) for r in topology.regions]
    assert [end for _, end in tiles[:-1]] == [start for start, _ in tiles[1:]]
    state.close()
    again = ClusterState(directory=tmp_path)
    assert [(r.start, r.end) for r in Topology(state=again, stores=3, replicas=3).regions] == tiles
    again.close()


def test_only_neighbours_on_the_same_stores_merge(state: ClusterState) -> None:
    topology = make(state, stores=4)
    left, middle, right = topology.regions
    with pytest.raises(ValueError, match="no neighbours"):
        topology.merge(left.id, right.id)
    with pytest.raises(ValueError, match="different stores"):
        topology.merge(left.id, middle.id)
    with pytest.raises(ValueError, match="gone"):
        topology.merge(left.id, 999)
    assert not left.merging


def test_a_region_without_majority_does_not_merge(state: ClusterState) -> None:
    topology = make(state)
    left, middle, _ = topology.regions
    topology.set_running(1, False)
    topology.set_running(2, False)
    with pytest.raises(ValueError, match="that are down"):
        topology.merge(left.id, middle.id)


def test_a_merge_that_cannot_end_is_undone(state: ClusterState) -> None:
    topology = make(state)
    left, middle, _ = topology.regions
    topology.prepare_merge(left.id, middle.id)
    assert topology.split(left.id, [RegionKey(b"b")]) == [left]
    with pytest.raises(ValueError, match="is being merged"):
        topology.prepare_merge(left.id, middle.id)
    version = left.version
    # The piece at the source's side gets another id.
    topology.split(middle.id, [RegionKey(b"k")])
    with pytest.raises(ValueError, match="no neighbours"):
        topology.commit_merge(left.id, middle.id)
    assert not left.merging
    assert left.version == version + 1


async def test_a_region_being_merged_takes_neither_reads_nor_writes(stores: Stores) -> None:
    topology = stores.cluster.topology
    source, target = stores.region(b"a"), stores.region(b"h")
    old = stores.context(b"a")
    topology.prepare_merge(source.id, target.id)

    stale = await stores.call(
        methods.KV_RAW_GET, kvrpcpb_pb2.RawGetRequest(context=old, key=b"a"), source.leader_store_id
    )
    read = await stores.lead(methods.KV_RAW_GET, kvrpcpb_pb2.RawGetRequest(key=b"a"), b"a")
    write = await stores.lead(methods.KV_RAW_PUT, kvrpcpb_pb2.RawPutRequest(key=b"a", value=b"x"), b"a")
    assert stale.region_error.HasField("epoch_not_match")
    assert read.region_error.read_index_not_ready.reason == "can not read index due to merge"
    assert write.region_error.proposal_in_merging_mode.region_id == source.id

    topology.commit_merge(source.id, target.id)
    gone = await stores.call(methods.KV_RAW_GET, kvrpcpb_pb2.RawGetRequest(context=old, key=b"a"), old.peer.store_id)
    assert gone.region_error.region_not_found.region_id == source.id
    got = await stores.lead(methods.KV_RAW_GET, kvrpcpb_pb2.RawGetRequest(key=b"a"), b"a")
    assert got.value == b"v"


async def test_a_backup_of_a_region_that_changed_since_it_was_noted_tells_so(stores: Stores, tmp_path: Path) -> None:
    cluster, topology = stores.cluster, stores.cluster.topology
    (tmp_path / "backup").mkdir()
    for region in topology.regions:
        topology.transfer_leader(region.id, 1)
    cluster.split([UserKey(b"%c" % c) for c in b"bcdefq"])
    request = brpb_pb2.BackupRequest(is_raw_kv=True, dst_api_version=int(ApiVersion.V1))  # type: ignore[arg-type]
    request.storage_backend.local.path = str(tmp_path / "backup")
    request.rate_limit = 4000  # a fifth of a second for each file, one after another
    stream = aiter(stores.stream(methods.BACKUP, request, 1))
    responses = [await anext(stream)]
    gone, split, moved, target = (stores.region(k) for k in (b"d", b"e", b"f", b"g"))
    topology.merge(gone.id, stores.region(b"c").id)
    cluster.split([UserKey(b"e5")])
    topology.transfer_leader(moved.id, 2)
    responses += [r async for r in stream]

    errors = {r.start_key: r.error.region_error for r in responses if r.HasField("error")}
    assert errors[b"d"].region_not_found.region_id == gone.id
    assert errors[b"e"].epoch_not_match.current_regions[0].id == split.id
    assert errors[b"f"].not_leader.leader.store_id == 2
    assert not target.merging
    assert all(not r.files for r in responses if r.HasField("error"))
