from __future__ import annotations

import base64
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.safepoints import FOREVER
from airflow_provider_tikvbr.proto import healthpb_pb2, keyspacepb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiVersion, RegionKey, UserKey
from tests.embedded.pd_caller import PdCaller
from tests.support.recordings import METHODS, shape

RECORDED = [json.loads(line) for line in (Path(__file__).parent / "recordings" / "pd.jsonl").read_text().splitlines()]
# What tells of one build or one host.
NOT_COMPARED = {"stores.git_hash"}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EmbeddedCluster]:
    keys = [UserKey(k) for k in (b"c", b"m", b"t")]
    async with EmbeddedCluster(data_dir=tmp_path, stores=3, replicas=3, split_keys=keys) as cluster:
        yield cluster


@pytest.fixture
async def pd(cluster: EmbeddedCluster) -> AsyncIterator[PdCaller]:
    async with PdCaller(cluster) as caller:
        yield caller


@pytest.mark.parametrize("case", RECORDED, ids=[f"{c['cluster']}-{c['case']}" for c in RECORDED])
async def test_answers_what_a_real_pd_answered(case: dict[str, Any], tmp_path: Path) -> None:
    method = METHODS[case["method"]]
    request = method.request.FromString(base64.b64decode(case["request"]))
    recorded = [method.response.FromString(base64.b64decode(r)) for r in case["responses"]]
    keys = [UserKey(k) for k in (b"b", b"idx", b"idx\x0010", b"user:00000600", b"user:00000800")]
    options: dict[str, Any] = {"api_version": ApiVersion.parse(case["cluster"]), "version": "9.0.0", "replicas": 3}
    async with EmbeddedCluster(data_dir=tmp_path, split_keys=keys, **options) as cluster, PdCaller(cluster) as pd:
        if case["case"] not in {"wrong_cluster_id", "get_members"}:
            request.header.cluster_id = cluster.topology.cluster_id
        if case["code"] != "OK":
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await pd.call(method, request)
            assert error.value.code().name == case["code"]
            recorded_id = case["details"].split("need ")[1].split(" ")[0]
            assert error.value.details() == case["details"].replace(recorded_id, str(cluster.topology.cluster_id))
            return
        response = await pd.call(method, request)
    (wanted,) = recorded
    assert shape(response) - NOT_COMPARED == shape(wanted) - NOT_COMPARED
    assert response.header.error == wanted.header.error
    if case["case"] == "region_of_key":
        assert response.region.start_key <= request.region_key < response.region.end_key
        assert len(response.region.peers) == len(wanted.region.peers)
        assert response.leader in response.region.peers
    if case["case"] == "scan_regions_3":
        assert len(response.regions) == len(response.region_metas) == len(response.leaders) == len(wanted.regions)
    if case["case"].startswith("service_safepoint"):
        assert (response.service_id, response.min_safe_point) == (wanted.service_id, wanted.min_safe_point)
        # Both tell how long it is until the last second that fits into an int64.
        assert abs(response.TTL - wanted.TTL) < 1_000_000_000


async def test_members_name_a_full_url(cluster: EmbeddedCluster, pd: PdCaller) -> None:
    response = await pd.call(methods.PD_GET_MEMBERS, pdpb_pb2.GetMembersRequest())

    assert response.leader.client_urls == [f"http://{cluster.pd_address}"]
    assert response.header.cluster_id == cluster.topology.cluster_id
    info = await pd.call(methods.PD_GET_CLUSTER_INFO, pdpb_pb2.GetClusterInfoRequest())
    assert info.service_modes == [pdpb_pb2.PD_SVC_MODE]
    health = await pd.call(methods.HEALTH_CHECK, healthpb_pb2.HealthCheckRequest())
    assert health.status == healthpb_pb2.HealthCheckResponse.SERVING


async def test_timestamps_of_two_streams_do_not_overlap(pd: PdCaller) -> None:
    first, second = await pd.tso(1, 100), await pd.tso(5, 1)

    found = [(t.physical << 18 | t.logical, n) for t, n in zip([*first, *second], [1, 100, 5, 1], strict=True)]
    for (before, _), (largest, count) in itertools.pairwise(found):
        assert largest - count >= before


async def test_a_timestamp_stream_ends_for_another_cluster(pd: PdCaller) -> None:
    stream = pd.make(methods.PD_TSO)(timeout=10)
    await stream.write(pdpb_pb2.TsoRequest(header=pdpb_pb2.RequestHeader(cluster_id=1), count=1))
    with pytest.raises(grpc.aio.AioRpcError, match="mismatch cluster id") as error:
        await stream.read()
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_regions_by_key_neighbour_and_id(pd: PdCaller) -> None:
    first = await pd.call(methods.PD_GET_REGION, pdpb_pb2.GetRegionRequest(region_key=b""))
    second = await pd.call(methods.PD_GET_REGION, pdpb_pb2.GetRegionRequest(region_key=b"c"))
    left = await pd.call(methods.PD_GET_PREV_REGION, pdpb_pb2.GetRegionRequest(region_key=b"d"))
    none = await pd.call(methods.PD_GET_PREV_REGION, pdpb_pb2.GetRegionRequest(region_key=b"a"))
    by_id = await pd.call(methods.PD_GET_REGION_BY_ID, pdpb_pb2.GetRegionByIDRequest(region_id=second.region.id))

    assert (first.region.start_key, first.region.end_key) == (b"", b"c")
    assert (second.region.start_key, second.region.end_key) == (b"c", b"m")
    assert left.region == first.region
    assert not none.HasField("region")
    assert by_id.region == second.region


async def test_scans_are_paged_and_bounded(pd: PdCaller) -> None:
    async def scan(**fields: Any) -> list[bytes]:
        response = await pd.call(methods.PD_SCAN_REGIONS, pdpb_pb2.ScanRegionsRequest(**fields))
        return [r.start_key for r in response.region_metas]

    assert await scan() == [b"", b"c", b"m", b"t"]
    assert await scan(limit=2) == [b"", b"c"]
    assert await scan(start_key=b"d", end_key=b"m", limit=10) == [b"c"]
    assert await scan(start_key=b"d", end_key=b"n", limit=-1) == [b"c", b"m"]
    ranges = [pdpb_pb2.KeyRange(start_key=b"a", end_key=b"d"), pdpb_pb2.KeyRange(start_key=b"e", end_key=b"u")]
    batch = await pd.call(methods.PD_BATCH_SCAN_REGIONS, pdpb_pb2.BatchScanRegionsRequest(ranges=ranges))
    assert [r.region.start_key for r in batch.regions] == [b"", b"c", b"m", b"t"]
    batch = await pd.call(methods.PD_BATCH_SCAN_REGIONS, pdpb_pb2.BatchScanRegionsRequest(ranges=ranges, limit=3))
    assert [r.region.start_key for r in batch.regions] == [b"", b"c", b"m"]


async def test_a_store_that_was_removed_is_left_out_on_demand(cluster: EmbeddedCluster, pd: PdCaller) -> None:
    cluster.topology.stores[2].node_state = 3
    cluster.topology.stores[3].labels = {"engine": "tiflash"}

    every = await pd.call(methods.PD_GET_ALL_STORES, pdpb_pb2.GetAllStoresRequest())
    living = await pd.call(methods.PD_GET_ALL_STORES, pdpb_pb2.GetAllStoresRequest(exclude_tombstone_stores=True))

    assert [s.id for s in every.stores] == [1, 2, 3]
    assert [s.id for s in living.stores] == [1, 3]
    assert [(label.key, label.value) for label in living.stores[1].labels] == [("engine", "tiflash")]
    one = await pd.call(methods.PD_GET_STORE, pdpb_pb2.GetStoreRequest(store_id=1))
    assert one.store.address == cluster.topology.stores[1].address
    assert one.stats.region_count == 4


async def test_splits_and_scatters(cluster: EmbeddedCluster, pd: PdCaller) -> None:
    keys = [b"d", b"e", b"m", b"zz"]
    split = await pd.call(methods.PD_SPLIT_REGIONS, pdpb_pb2.SplitRegionsRequest(split_keys=keys))
    assert split.finished_percentage == 100
    assert [cluster.topology.by_id(i).end for i in split.regions_id] == [b"d", b"e", b"zz"]  # type: ignore[union-attr]

    scatter = pdpb_pb2.ScatterRegionRequest(regions_id=[*split.regions_id, 9999])
    response = await pd.call(methods.PD_SCATTER_REGION, scatter)
    assert (response.finished_percentage, list(response.failed_regions_id)) == (75, [9999])

    operator = await pd.call(methods.PD_GET_OPERATOR, pdpb_pb2.GetOperatorRequest(region_id=split.regions_id[0]))
    assert (operator.desc, operator.status) == (b"scatter-region", pdpb_pb2.SUCCESS)
    one = await pd.call(methods.PD_SCATTER_REGION, pdpb_pb2.ScatterRegionRequest(region_id=split.regions_id[0]))
    assert not one.header.HasField("error")


async def test_safe_points(cluster: EmbeddedCluster, pd: PdCaller) -> None:
    async def update(safe_point: int) -> int:
        request = pdpb_pb2.UpdateGCSafePointRequest(safe_point=safe_point)
        response = await pd.call(methods.PD_UPDATE_GC_SAFE_POINT, request)
        return int(response.new_safe_point)

    assert [await update(100), await update(0)] == [100, 100]
    got = await pd.call(methods.PD_GET_GC_SAFE_POINT, pdpb_pb2.GetGCSafePointRequest())
    assert got.safe_point == 100
    request = pdpb_pb2.UpdateServiceGCSafePointRequest(service_id=b"br-1", TTL=60, safe_point=150)
    response = await pd.call(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT, request)
    assert (response.service_id, response.min_safe_point) == (b"gc_worker", 100)
    assert cluster.pd.safe_points.services()["br-1"].safe_point == 150
    wrong = pdpb_pb2.UpdateServiceGCSafePointRequest(service_id=b"gc_worker", TTL=FOREVER - 1, safe_point=150)
    with pytest.raises(grpc.aio.AioRpcError, match="must be infinity"):
        await pd.call(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT, wrong)


async def test_the_default_keyspace_is_known(pd: PdCaller) -> None:
    found = await pd.call(methods.KEYSPACE_LOAD, keyspacepb_pb2.LoadKeyspaceRequest(name="DEFAULT"))
    missing = await pd.call(methods.KEYSPACE_LOAD, keyspacepb_pb2.LoadKeyspaceRequest(name="other"))

    assert (found.keyspace.id, found.keyspace.name) == (0, "DEFAULT")
    assert missing.header.error.type == pdpb_pb2.ENTRY_NOT_FOUND


async def test_what_pd_does_not_serve_is_unimplemented(pd: PdCaller) -> None:
    for path in ("/pdpb.PD/Bootstrap", "/etcdserverpb.KV/Range"):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await pd.channel.unary_unary(path)(b"", timeout=10)
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_regions_move_while_they_are_told(cluster: EmbeddedCluster, pd: PdCaller) -> None:
    region = cluster.topology.region_of(RegionKey(b"d"))
    cluster.topology.transfer_leader(region.id, 3)

    told = await pd.call(methods.PD_GET_REGION, pdpb_pb2.GetRegionRequest(region_key=b"d"))

    assert told.leader.store_id == 3
