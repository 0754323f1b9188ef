from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import BudgetExceededError, RegionRefusedError
from airflow_provider_tikvbr.proto import errorpb_pb2, kvrpcpb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.rawbr import split
from airflow_provider_tikvbr.rawbr.events import Event
from airflow_provider_tikvbr.rawbr.split import MAX_MESSAGE_BYTES, SplitKey, choose_keys, split_and_scatter
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, RegionKey, UserKey, encode_memcomparable
from tests.support.target import target, warnings_in
from tests.support.waiting import until

KEYS = [b"%02d" % i for i in range(20)]


def starts(embedded: EmbeddedCluster) -> set[bytes]:
    """Where regions start, as user keys; outside the keyspace as they are."""
    codec = embedded.topology.codec
    found: set[bytes] = set()
    for region in embedded.topology.regions:
        key = codec.api_key_of_region_key(region.start)
        found.add(codec.user_key(key) if key.startswith(codec.prefix) else key)
    return found


async def split_at(cluster: Cluster, keys: list[bytes], *, max_keys: int = 1024, budget_s: float = 20) -> list[Event]:
    events: list[Event] = []
    api_keys = [cluster.codec.api_key(UserKey(k)) for k in keys]
    await split_and_scatter(cluster, api_keys, max_keys=max_keys, budget_s=budget_s, listener=events.append)
    return events


def refused(**fields: Message) -> kvrpcpb_pb2.SplitRegionResponse:
    return kvrpcpb_pb2.SplitRegionResponse(region_error=errorpb_pb2.Error(message="injected", **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("api_version", list(ApiVersion))
@pytest.mark.parametrize("max_keys", [1, 3, 1024])
async def test_every_key_starts_a_region(tmp_path: Path, api_version: ApiVersion, max_keys: int) -> None:
    async with target(tmp_path, api_version, stores=3, replicas=2, split_keys=[b"07", b"12x"]) as (embedded, cluster):
        assert warnings_in(await split_at(cluster, KEYS, max_keys=max_keys)) == []
        assert starts(embedded) >= set(KEYS) | {b"12x"}
        # PD has spread them, and the cache knows where they are.
        assert {r.leader_store_id for r in embedded.topology.regions} == {1, 2, 3}
        for key in KEYS:
            region_key = cluster.codec.region_key(cluster.codec.api_key(UserKey(key)))
            region, truth = await cluster.regions.locate(region_key), embedded.topology.region_of(region_key)
            assert (region.id, region.version, region.conf_ver) == (truth.id, truth.version, truth.conf_ver)
            assert region.leader is not None
            assert region.leader.store_id == truth.leader_store_id


async def test_a_key_that_looks_encoded_gets_the_boundary_that_stores_make_of_it(tmp_path: Path) -> None:
    encoded = encode_memcomparable(b"a user's key")
    async with target(tmp_path) as (embedded, cluster):
        await split_at(cluster, [encoded + b"tail", encoded + b"tell", b"\0" * 8 + b"\xf7more", b"z"], budget_s=3)
        assert starts(embedded) == {b"", encoded, b"\0" * 8 + b"\xf7", b"z"}


async def test_a_key_that_starts_a_region_already_is_left_alone(tmp_path: Path) -> None:
    async with target(tmp_path, split_keys=KEYS) as (embedded, cluster):
        before = [(r.id, r.version) for r in embedded.topology.regions]
        assert warnings_in(await split_at(cluster, [b"", *KEYS])) == []
        assert [(r.id, r.version) for r in embedded.topology.regions] == before


@pytest.mark.parametrize(
    "response",
    [
        refused(epoch_not_match=errorpb_pb2.EpochNotMatch()),
        refused(not_leader=errorpb_pb2.NotLeader(region_id=1)),
        refused(region_not_found=errorpb_pb2.RegionNotFound(region_id=1)),
        refused(server_is_busy=errorpb_pb2.ServerIsBusy(reason="test", backoff_ms=1)),
        refused(stale_command=errorpb_pb2.StaleCommand()),
        refused(key_not_in_region=errorpb_pb2.KeyNotInRegion(region_id=1)),
        kvrpcpb_pb2.SplitRegionResponse(region_error=errorpb_pb2.Error(message="no valid key found for split.")),
        # An answer without new regions crashes tikv-br.
        kvrpcpb_pb2.SplitRegionResponse(),
    ],
    ids=lambda response: " ".join(str(response).split())[:60],
)
async def test_a_region_that_would_not_split_is_asked_again(
    tmp_path: Path, response: kvrpcpb_pb2.SplitRegionResponse
) -> None:
    async with target(tmp_path) as (embedded, cluster):
        point = embedded.faults.fail(methods.KV_SPLIT_REGION, response=response, times=2)
        await split_at(cluster, KEYS)
        assert point.hits == 2
        assert starts(embedded) >= set(KEYS)


async def test_a_leader_that_has_moved_is_followed(tmp_path: Path) -> None:
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):
        region = embedded.topology.regions[0]
        hint = next(p for p in region.peers if p.store_id == 2)
        embedded.topology.transfer_leader(region.id, 2)
        leader = errorpb_pb2.NotLeader(region_id=region.id)
        leader.leader.id, leader.leader.store_id = hint.id, hint.store_id
        embedded.faults.fail(methods.KV_SPLIT_REGION, response=refused(not_leader=leader))
        await split_at(cluster, KEYS)
        assert starts(embedded) >= set(KEYS)


@pytest.mark.parametrize(
    "method", [methods.PD_SCAN_REGIONS, methods.PD_GET_REGION, methods.PD_GET_OPERATOR], ids=lambda m: m.name
)
async def test_a_pd_that_is_ill_for_a_while_is_waited_for(tmp_path: Path, method: Method[Any, Any]) -> None:
    async with target(tmp_path) as (embedded, cluster):
        header = pdpb_pb2.ResponseHeader(cluster_id=cluster.cluster_id)
        header.error.type, header.error.message = pdpb_pb2.UNKNOWN, "injected"
        point = embedded.faults.fail(method, response=method.response(header=header), times=3)
        await split_at(cluster, KEYS)
        assert point.hits == 3
        assert starts(embedded) >= set(KEYS)


async def test_a_new_region_that_is_merged_away_is_not_waited_for(tmp_path: Path) -> None:
    """As by PD's scheduler, which is not paused yet; PD will never know that region again."""
    async with target(tmp_path) as (embedded, cluster):
        asked = embedded.faults.fail(methods.PD_GET_REGION, delay_s=0.2, times=None)

        async def merge() -> None:
            await until(lambda: asked.hits)
            first, second, *_ = embedded.topology.regions
            embedded.topology.merge(second.id, first.id)

        merging = asyncio.ensure_future(merge())
        await asyncio.wait_for(split_at(cluster, KEYS[:2]), split.KNOWN_WAIT_S / 2)
        await merging


async def test_a_store_that_refuses_for_good_ends_it(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, cluster):
        embedded.faults.fail(
            methods.KV_SPLIT_REGION, response=refused(disk_full=errorpb_pb2.DiskFull(store_id=[1])), times=None
        )
        with pytest.raises(RegionRefusedError, match="disk full"):
            await split_at(cluster, KEYS)


async def test_without_progress_it_gives_up(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, cluster):
        embedded.faults.fail(methods.KV_SPLIT_REGION, code=grpc.StatusCode.UNAVAILABLE, times=None)
        with pytest.raises(BudgetExceededError, match=r"store 1 .* is not available"):
            await split_at(cluster, KEYS, budget_s=0.3)


async def test_regions_that_pd_does_not_spread_are_no_reason_to_fail(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, cluster):
        header = pdpb_pb2.ResponseHeader(cluster_id=cluster.cluster_id)
        nothing = pdpb_pb2.ScatterRegionResponse(header=header, finished_percentage=0)
        point = embedded.faults.fail(methods.PD_SCATTER_REGION, response=nothing, times=None)
        events = await split_at(cluster, KEYS)
        assert point.hits == split.SCATTER_TRIES
        assert len(warnings_in(events)) == 1
        assert "PD did not spread 20 new regions" in warnings_in(events)[0]


async def test_a_pd_that_cannot_spread_is_asked_once(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, cluster):
        point = embedded.faults.fail(methods.PD_SCATTER_REGION, code=grpc.StatusCode.UNIMPLEMENTED, times=None)
        assert len(warnings_in(await split_at(cluster, KEYS))) == 1
        assert point.hits == 1


async def test_waits_for_pd_to_spread_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with target(tmp_path) as (embedded, cluster):
        embedded.pd.operators.delay_s = 0.3
        assert warnings_in(await split_at(cluster, [b"a"])) == []
        monkeypatch.setattr(split, "SCATTER_WAIT_S", 0.2)
        embedded.pd.operators.delay_s = 3600
        events = await split_at(cluster, [b"b"])
        assert warnings_in(events) == ["PD is still moving 1 new regions after 0.2 s; the restore goes on"]


async def test_regions_that_move_while_it_waits_are_looked_up_again(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2, replicas=2) as (embedded, cluster):
        embedded.pd.operators.delay_s = 0.5

        def move() -> None:
            for region in embedded.topology.regions:
                embedded.topology.transfer_leader(region.id, 3 - region.leader_store_id)

        asyncio.get_running_loop().call_later(0.3, move)
        await split_at(cluster, [b"a", b"b"])
        for key in (b"", b"a"):
            region = await cluster.regions.locate(RegionKey(key))
            assert region.leader is not None
            assert region.leader.store_id == embedded.topology.region_of(RegionKey(key)).leader_store_id


def split_keys(count: int, length: int = 8) -> list[SplitKey]:
    made = [b"%0*d" % (length, i) for i in range(count)]
    return [SplitKey(RegionKey(k), ApiKey(k)) for k in made]


def test_one_request_takes_all_keys_if_it_can() -> None:
    keys = split_keys(10)
    assert choose_keys(keys, limit=10, weight=100) == keys


@pytest.mark.parametrize(("count", "limit"), [(11, 10), (1000, 10), (3, 1), (100_000, 1024)])
def test_too_many_keys_are_thinned_out_evenly(count: int, limit: int) -> None:
    keys = split_keys(count)
    chosen = choose_keys(keys, limit=limit, weight=100)
    assert len(chosen) == len(set(chosen)) == limit
    borders = [-1, *(keys.index(k) for k in chosen[:50])]
    steps = [right - left for left, right in itertools.pairwise(borders)]
    assert max(steps) - min(steps) <= 2


def test_long_keys_make_shorter_requests() -> None:
    chosen = choose_keys(split_keys(1024, length=8192), limit=1024, weight=256)
    assert 1 <= len(chosen) * (256 + 2 * 8192) <= MAX_MESSAGE_BYTES
    assert len(chosen) >= 32
    assert len(choose_keys(split_keys(5, length=8 << 20), limit=5, weight=0)) == 1
