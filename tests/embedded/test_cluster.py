from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import grpc
import httpx
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.proto import kvrpcpb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiVersion, EngineKey, KeyRange, RegionKey, UserKey
from tests.embedded.pd_caller import PdCaller
from tests.support.waiting import until

PAIRS = [(UserKey(b"k%04d" % i), b"v%d" % i) for i in range(500)]
SPLITS = [UserKey(b"k0100"), UserKey(b"k0200"), UserKey(b"k0400")]


def range_of(start: bytes, end: bytes) -> KeyRange[UserKey]:
    return KeyRange(UserKey(start), UserKey(end))


@pytest.mark.parametrize("api_version", list(ApiVersion))
@pytest.mark.parametrize("replicas", [1, 3])
async def test_what_is_put_is_there(tmp_path: Path, api_version: ApiVersion, replicas: int) -> None:
    options = {"api_version": api_version, "replicas": replicas, "split_keys": SPLITS}
    async with EmbeddedCluster(data_dir=tmp_path, stores=3, **options) as cluster:  # type: ignore[arg-type]
        await cluster.put(PAIRS)

        assert [(p.key, p.value, p.expire) for p in await cluster.pairs()] == [(k, v, 0) for k, v in PAIRS]
        part = await cluster.pairs(range_of(b"k0150", b"k0250"))
        assert [p.key for p in part] == [k for k, _ in PAIRS[150:250]]
        held = [await cluster.data.pairs(store_id=s) for s in (1, 2, 3)]
        assert sum(len(pairs) for pairs in held) == len(PAIRS) * replicas
        digest = await cluster.checksum()
        prefix = 4 if api_version is ApiVersion.V2 else 0
        assert digest.kvs == 500
        assert digest.bytes == sum(len(k) + len(v) + prefix for k, v in PAIRS)
        halves = [await cluster.checksum(range_of(*r)) for r in ((b"", b"k0250"), (b"k0250", b""))]
        assert halves[0].crc64xor ^ halves[1].crc64xor == digest.crc64xor


@pytest.mark.parametrize("api_version", [ApiVersion.V1TTL, ApiVersion.V2])
async def test_pairs_may_live_for_a_while(tmp_path: Path, api_version: ApiVersion) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1, api_version=api_version) as cluster:
        await cluster.put([(UserKey(b"a"), b"1", 1000), (UserKey(b"b"), b"2")])
        await cluster.put([(UserKey(b"b"), b"3", 0)])

        first, second = await cluster.pairs()

    assert first.expire > 1_500_000_000
    assert (second.value, second.expire) == (b"3", 0)


@pytest.mark.parametrize("api_version", list(ApiVersion))
async def test_a_restart_gives_the_same_cluster(tmp_path: Path, api_version: ApiVersion) -> None:
    first = EmbeddedCluster(data_dir=tmp_path, stores=2, api_version=api_version, split_keys=SPLITS)
    async with first:
        await first.put(PAIRS)
        first.split([UserKey(b"k0300")])
        regions = [r.message() for r in first.topology.regions]
        digest, last = await first.checksum(), first.topology.tso()
        port = int(first.pd_address.rpartition(":")[2])

    second = EmbeddedCluster(data_dir=tmp_path, stores=2, api_version=api_version, pd_port=port)
    async with second:
        assert second.topology.cluster_id == first.topology.cluster_id
        assert second.pd_address == first.pd_address
        assert [r.message() for r in second.topology.regions] == regions
        assert await second.checksum() == digest
        assert second.topology.tso() > last
        await second.put([(UserKey(b"k0000"), b"new")])  # in V2 a later timestamp must win
        assert (await second.pairs())[0].value == b"new"


async def test_a_restart_keeps_the_leaders_where_they_were(tmp_path: Path) -> None:
    options = {"stores": 3, "replicas": 3}
    keys = [UserKey(b"%02d" % i) for i in range(20)]
    async with EmbeddedCluster(data_dir=tmp_path, split_keys=keys, **options) as first:  # type: ignore[arg-type]
        leaders = [r.leader_store_id for r in first.topology.regions]

    async with EmbeddedCluster(data_dir=tmp_path, **options) as second:  # type: ignore[arg-type]
        assert [r.leader_store_id for r in second.topology.regions] == leaders


async def test_data_move_with_their_peers(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=3, replicas=2, split_keys=SPLITS) as cluster:
        await cluster.put(PAIRS)
        digest = await cluster.checksum()
        region = cluster.topology.region_of(RegionKey(b"k0150"))
        (target,) = {1, 2, 3} - set(region.store_ids)
        source = region.leader_store_id

        cluster.topology.move_peer(region.id, source, target)

        assert await cluster.checksum() == digest
        moved = await cluster.data.pairs(range_of(b"k0100", b"k0200"), store_id=target)
        assert [p.key for p in moved] == [k for k, _ in PAIRS[100:200]]
        left = list(cluster.engines[source].items(KeyRange(EngineKey(b"k0100"), EngineKey(b"k0200"))))
        assert left == []


async def test_scattering_keeps_the_data(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=3, replicas=2) as cluster:
        await cluster.put(PAIRS)
        digest = await cluster.checksum()
        cluster.split(UserKey(b"k%04d" % i) for i in range(0, 500, 50))

        cluster.scatter()

        assert {r.leader_store_id for r in cluster.topology.regions} == {1, 2, 3}
        assert await cluster.checksum() == digest
        for region in cluster.topology.regions:
            held = [
                await cluster.data.checksum(range_of(region.start, region.end), store_id=s) for s in region.store_ids
            ]
            assert held[0] == held[1]


async def test_a_store_goes_and_comes_back_where_it_was(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=3, replicas=3, split_keys=SPLITS) as cluster:
        address = cluster.topology.stores[1].address
        status = cluster.topology.stores[1].status_address
        await cluster.stop_store(1)

        assert not cluster.topology.stores[1].running
        assert {r.leader_store_id for r in cluster.topology.regions} <= {2, 3}
        for place in (address, status):
            with pytest.raises(OSError, match="Connect call failed"):
                await asyncio.open_connection(*place.split(":"))
        await cluster.put(PAIRS)
        with pytest.raises(KeyError):
            await cluster.stop_store(1)

        await cluster.start_store(1)

        assert (cluster.topology.stores[1].address, cluster.topology.stores[1].status_address) == (address, status)
        assert (await cluster.data.checksum(store_id=1)).kvs == 500
        with pytest.raises(RuntimeError, match="it is running"):
            await cluster.start_store(1)


async def test_a_dead_store_stays_dead(tmp_path: Path) -> None:
    options = {"stores": 3, "replicas": 3}
    async with EmbeddedCluster(data_dir=tmp_path, **options) as cluster:  # type: ignore[arg-type]
        cluster.topology.kill(2, "an ingest without its file")
        await until(lambda: not cluster.topology.stores[2].running)
        with pytest.raises(RuntimeError, match="an ingest without its file"):
            await cluster.start_store(2)

    async with EmbeddedCluster(data_dir=tmp_path, **options) as cluster:  # type: ignore[arg-type]
        assert [s.running for s in cluster.topology.stores.values()] == [True, False, True]


async def test_stores_serve_raw_calls(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=2, split_keys=SPLITS) as cluster:
        await cluster.put(PAIRS)
        region = cluster.topology.region_of(RegionKey(b"k0150"))
        context = kvrpcpb_pb2.Context(region_id=region.id, region_epoch=region.epoch(), peer=region.leader.message())
        address = cluster.topology.stores[region.leader_store_id].address
        async with PdCaller(cluster, address=address) as store:
            got = await store.call(methods.KV_RAW_GET, kvrpcpb_pb2.RawGetRequest(context=context, key=b"k0150"))

    assert got.value == b"v150"


async def test_import_settings_are_seen(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=2) as cluster:
        cluster.engines[2].import_mode.switch(True)
        cluster.engines[1].download_limiter.set_rate(1000)

        assert cluster.import_modes() == {1: False, 2: True}
        assert cluster.download_limits() == {1: 1000, 2: 0}


async def test_a_port_in_use_is_told_and_nothing_stays_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cluster = EmbeddedCluster(data_dir=tmp_path, stores=2, pd_port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            await cluster.start()
    async with EmbeddedCluster(data_dir=tmp_path, stores=2):
        pass


async def test_a_store_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cluster = EmbeddedCluster(data_dir=tmp_path, stores=1, store_port=taken.getsockname()[1])
        with pytest.raises(OSError, match="cannot listen on"):
            await cluster.start()


async def test_two_clusters_do_not_share_a_store_port(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path / "1", stores=1) as first:
        port = int(first.topology.stores[1].address.rpartition(":")[2])
        with pytest.raises(OSError, match="cannot listen on"):
            await EmbeddedCluster(data_dir=tmp_path / "2", stores=1, store_port=port).start()


async def test_one_cluster_at_a_time(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1) as first:
        with pytest.raises(InvalidOptionError, match="in use by another embedded cluster"):
            await EmbeddedCluster(data_dir=tmp_path, stores=1).start()
        async with PdCaller(first) as pd:
            await pd.call(methods.PD_GET_MEMBERS, pdpb_pb2.GetMembersRequest())


async def test_stop_may_come_twice_and_before_the_start(tmp_path: Path) -> None:
    cluster = EmbeddedCluster(data_dir=tmp_path, stores=1)
    await cluster.stop()
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = cluster.topology
    await cluster.start()
    await cluster.stop()
    await cluster.stop()


async def test_only_the_leader_of_pd_answers(tmp_path: Path) -> None:
    async def ask(cluster: EmbeddedCluster, member: int) -> grpc.StatusCode:
        async with PdCaller(cluster, address=cluster.pd_addresses[member]) as pd:
            members = await pd.call(methods.PD_GET_MEMBERS, pdpb_pb2.GetMembersRequest())
            assert [m.client_urls[0] for m in members.members] == [f"http://{a}" for a in cluster.pd_addresses]
            assert members.leader in members.members
            if members.leader != members.members[member]:
                with pytest.raises(grpc.aio.AioRpcError, match="not leader") as error:
                    await pd.call(methods.PD_GET_ALL_STORES, pdpb_pb2.GetAllStoresRequest())
                return error.value.code()
            await pd.call(methods.PD_GET_ALL_STORES, pdpb_pb2.GetAllStoresRequest())
            return grpc.StatusCode.OK

    async with EmbeddedCluster(data_dir=tmp_path, stores=1, pd_members=3) as cluster:
        ok, away = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
        assert [await ask(cluster, m) for m in range(3)] == [ok, away, away]
        cluster.lead_pd(2)
        assert [await ask(cluster, m) for m in range(3)] == [away, away, ok]
        async with httpx.AsyncClient() as http:
            follower = await http.get(f"http://{cluster.pd_addresses[0]}/pd/api/v1/members")
        assert follower.json()["leader"]["client_urls"] == [f"http://{cluster.pd_addresses[2]}"]
        await cluster.stop_pd(2)
        assert [await ask(cluster, m) for m in range(2)] == [ok, away]
        await cluster.start_pd(2)
        assert await ask(cluster, 2) == away


async def test_pd_without_a_leader_tells_of_none(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1) as cluster, PdCaller(cluster) as pd:
        cluster.lead_pd(None)
        members = await pd.call(methods.PD_GET_MEMBERS, pdpb_pb2.GetMembersRequest())
        assert len(members.members) == 1
        assert not members.HasField("leader")
        with pytest.raises(grpc.aio.AioRpcError, match="not leader"):
            await pd.call(methods.PD_GET_ALL_STORES, pdpb_pb2.GetAllStoresRequest())
        async with httpx.AsyncClient(base_url=f"http://{cluster.pd_address}") as http:
            assert (await http.get("/pd/api/v1/members")).status_code == 503
            cluster.lead_pd(0)
            assert (await http.get("/pd/api/v1/members")).status_code == 200
