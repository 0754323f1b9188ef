from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.exceptions import (
    PDUnavailableError,
    ProtocolError,
    RegionNotFoundError,
    WrongClusterError,
)
from airflow_provider_tikvbr.proto import metapb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, RegionKey, UserKey
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from airflow_provider_tikvbr.tikv.pd import LOGICAL_BITS, PDClient
from tests.tikv.servers import Group

EVERYTHING = KeyRange(RegionKey(b""), RegionKey(b""))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(
        data_dir=tmp_path, api_version=ApiVersion.V2, split_keys=[UserKey(b"b"), UserKey(b"c")]
    ) as running:
        yield running


@pytest.fixture
async def pd(cluster: EmbeddedCluster) -> AsyncIterator[PDClient]:
    async with await PDClient.connect(ClusterOptions(pd=(cluster.pd_address,))) as client:
        yield client


# --- against the embedded cluster ---


async def test_timestamps_grow_and_are_those_of_now(pd: PDClient) -> None:
    stamps = await asyncio.gather(*(pd.tso() for _ in range(200)))
    assert len(set(stamps)) == 200
    later = await pd.tso()
    assert later > max(stamps)
    assert abs((later >> LOGICAL_BITS) / 1000 - time.time()) < 60


async def test_stores(pd: PDClient, cluster: EmbeddedCluster) -> None:
    stores = await pd.stores()
    assert [s.id for s in stores] == sorted(cluster.topology.stores)
    assert all(s.is_up and s.version == "8.5.0" and s.status_address for s in stores)


async def test_regions(pd: PDClient, cluster: EmbeddedCluster) -> None:
    regions = await pd.scan_regions(EVERYTHING, 100)
    assert [region.id for region in regions] == [region.id for region in cluster.topology.regions]
    first, second, third, *_ = regions
    assert (first.start, first.end, second.end) == (b"", second.start, third.start)
    assert all(region.leader in region.peers for region in (first, second, third))
    assert await pd.region(RegionKey(b"")) == first
    assert await pd.region(second.start) == second
    assert await pd.region_by_id(third.id) == third
    assert await pd.region_by_id(987654) is None


async def test_a_scan_keeps_to_its_range_and_limit(pd: PDClient) -> None:
    first, second, third, *rest = await pd.scan_regions(EVERYTHING, 100)
    assert await pd.scan_regions(EVERYTHING, 2) == [first, second]
    assert await pd.scan_regions(KeyRange(second.start, second.end), 100) == [second]
    assert await pd.scan_regions(KeyRange(RegionKey(second.start + b"x"), RegionKey(b"")), 100) == [
        second,
        third,
        *rest,
    ]


async def test_safe_points(pd: PDClient) -> None:
    assert await pd.gc_safe_point() == 0
    now = await pd.tso()
    assert await pd.update_service_safe_point(service_id="tikvbr-x", ttl_s=60, safe_point=now) <= now
    assert await pd.update_service_safe_point(service_id="tikvbr-x", ttl_s=0, safe_point=now) >= 0


async def test_scatter(pd: PDClient, cluster: EmbeddedCluster) -> None:
    ids = [region.id for region in cluster.topology.regions]
    cluster.pd.operators.delay_s = 3600
    assert await pd.scatter(ids) == 100
    assert [await pd.is_scattering(number) for number in ids] == [True] * len(ids)

    cluster.pd.operators.delay_s = 0
    assert await pd.scatter(ids) == 100
    assert [await pd.is_scattering(number) for number in [*ids, 987654]] == [False] * (len(ids) + 1)

    with pytest.raises(RegionNotFoundError):
        await pd.scatter([])


async def test_an_error_of_a_moment_is_tried_again(pd: PDClient, cluster: EmbeddedCluster) -> None:
    point = cluster.faults.fail(methods.PD_GET_REGION, code=grpc.StatusCode.UNAVAILABLE, times=2)
    assert await pd.region(RegionKey(b"")) is not None
    assert point.hits == 2
    point = cluster.faults.fail(methods.PD_TSO, code=grpc.StatusCode.UNAVAILABLE, times=1)
    assert await pd.tso() > 0
    assert point.hits == 1


async def test_a_refusal_is_not_tried_again(pd: PDClient, cluster: EmbeddedCluster) -> None:
    point = cluster.faults.fail(methods.PD_GET_REGION, code=grpc.StatusCode.INVALID_ARGUMENT, times=None)
    with pytest.raises(ProtocolError):
        await pd.region(RegionKey(b""))
    assert point.hits == 1


async def test_an_error_in_the_header_is_an_answer(pd: PDClient, cluster: EmbeddedCluster) -> None:
    rule = cluster.faults.add(Rule(kind=Kind.PD_ERROR, method=methods.PD_GET_ALL_STORES, error="INVALID_VALUE"))
    with pytest.raises(ProtocolError, match="INVALID_VALUE"):
        await pd.stores()
    assert rule.hits == 1


@pytest.mark.parametrize("error", ["NOT_BOOTSTRAPPED", "UNKNOWN"])
async def test_a_new_leader_that_is_not_ready_is_asked_again(
    pd: PDClient, cluster: EmbeddedCluster, error: str
) -> None:
    rule = cluster.faults.add(Rule(kind=Kind.PD_ERROR, method=methods.PD_GET_ALL_STORES, error=error, times=2))
    assert await pd.stores()
    assert rule.hits == 2


async def test_a_cluster_without_stores_is_told(
    pd: PDClient, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pd, "_budget_s", 0.2)
    cluster.faults.add(Rule(kind=Kind.PD_ERROR, method=methods.PD_GET_ALL_STORES, error="NOT_BOOTSTRAPPED"))
    with pytest.raises(PDUnavailableError, match="no TiKV store has joined it"):
        await pd.stores()


async def test_another_cluster_at_the_same_address(pd: PDClient, cluster: EmbeddedCluster) -> None:
    answer = pdpb_pb2.GetRegionResponse(header=pdpb_pb2.ResponseHeader(cluster_id=5))
    cluster.faults.fail(methods.PD_GET_REGION, response=answer)
    with pytest.raises(WrongClusterError, match=f"now answers for cluster 5 instead of {pd.cluster_id}"):
        await pd.region(RegionKey(b""))


async def test_a_timestamp_without_a_time(pd: PDClient, cluster: EmbeddedCluster) -> None:
    answer = pdpb_pb2.TsoResponse(header=pdpb_pb2.ResponseHeader(cluster_id=pd.cluster_id), count=1)
    cluster.faults.fail(methods.PD_TSO, response=answer)
    with pytest.raises(ProtocolError, match="without a timestamp"):
        await pd.tso()


async def test_stores_that_are_gone_do_not_count(pd: PDClient, cluster: EmbeddedCluster) -> None:
    answer = pdpb_pb2.GetAllStoresResponse(
        header=pdpb_pb2.ResponseHeader(cluster_id=pd.cluster_id),
        stores=[
            metapb_pb2.Store(id=4, address="d:1", state="Offline"),
            metapb_pb2.Store(id=3, address="c:1", node_state="Removed"),
            metapb_pb2.Store(id=2, address="b:1", state="Tombstone"),
            metapb_pb2.Store(id=1, address="a:1"),
        ],
    )
    cluster.faults.fail(methods.PD_GET_ALL_STORES, response=answer)
    assert await pd.stores() == (Store.of(answer.stores[3]), Store.of(answer.stores[0]))


async def test_a_scan_of_an_older_pd(pd: PDClient, cluster: EmbeddedCluster) -> None:
    regions = await pd.scan_regions(EVERYTHING, 100)
    answer = pdpb_pb2.ScanRegionsResponse(header=pdpb_pb2.ResponseHeader(cluster_id=pd.cluster_id))
    for region in regions:
        answer.region_metas.add(
            id=region.id,
            start_key=region.start,
            end_key=region.end,
            region_epoch=region.epoch,
            peers=[peer.message() for peer in region.peers],
        )
        answer.leaders.append(region.leader.message() if region.leader else metapb_pb2.Peer())
    cluster.faults.fail(methods.PD_SCAN_REGIONS, response=answer)
    assert await pd.scan_regions(EVERYTHING, 100) == regions


async def test_a_region_without_leader(pd: PDClient, cluster: EmbeddedCluster) -> None:
    answer = pdpb_pb2.GetRegionResponse(
        header=pdpb_pb2.ResponseHeader(cluster_id=pd.cluster_id),
        region=metapb_pb2.Region(id=6),
        leader=metapb_pb2.Peer(),
    )
    cluster.faults.fail(methods.PD_GET_REGION, response=answer)
    region = await pd.region(RegionKey(b""))
    assert region is not None
    assert region.leader is None


# --- several members ---


async def connected(group: Group) -> PDClient:
    return await PDClient.connect(ClusterOptions(pd=tuple(group.addresses[:1])))


async def test_a_change_of_leader_is_followed() -> None:
    async with Group() as group, await connected(group) as pd:
        assert await pd.gc_safe_point() == 0
        group.leader = 2
        assert await pd.gc_safe_point() == 2
        assert pd.leader_address == group.addresses[2]
        group.leader = 1
        assert await pd.tso() & 0xFF == 1


async def test_the_death_of_the_leader_is_survived() -> None:
    """The client was given one endpoint only, and that is the one that dies."""
    async with Group() as group, await connected(group) as pd:
        group.leader = 1
        await group.kill(0)
        assert await pd.gc_safe_point() == 1


async def test_hundreds_of_calls_during_a_change_of_leader() -> None:
    async with Group() as group, await connected(group) as pd:
        first = [asyncio.create_task(pd.gc_safe_point()) for _ in range(100)]
        await asyncio.sleep(0.01)
        group.leader = 1
        second = [asyncio.create_task(pd.gc_safe_point()) for _ in range(200)]
        assert set(await asyncio.gather(*first)) <= {0, 1}
        assert set(await asyncio.gather(*second)) == {1}


async def test_an_election_in_the_middle() -> None:
    async with Group() as group, await connected(group) as pd:
        group.leader = None
        task = asyncio.create_task(pd.gc_safe_point())
        await asyncio.sleep(0.5)
        assert not task.done()
        group.leader = 2
        assert await task == 2


async def test_when_every_member_is_gone() -> None:
    async with Group(size=2) as group, await connected(group) as pd:
        pd._budget_s = 0.5
        await group.kill(0)
        await group.kill(1)
        with pytest.raises(PDUnavailableError) as caught:
            await asyncio.wait_for(pd.gc_safe_point(), 60)
        assert set(caught.value.endpoints) == set(group.addresses)
        assert "no PD answered GetGCSafePoint for 0.5 s, tried " in str(caught.value)


async def test_closing_while_calls_are_under_way() -> None:
    async with Group() as group:
        pd = await connected(group)
        group.leader = None
        task: asyncio.Task[Any] = asyncio.create_task(pd.gc_safe_point())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pd.close()
        await pd.close()
