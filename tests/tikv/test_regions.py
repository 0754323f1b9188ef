from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import BudgetExceededError, RegionNotReadyError
from airflow_provider_tikvbr.proto import methods, pdpb_pb2
from airflow_provider_tikvbr.tikv import regions as regions_module
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, RegionKey, UserKey
from airflow_provider_tikvbr.tikv.model import Peer, Region
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from airflow_provider_tikvbr.tikv.pd import PDClient
from airflow_provider_tikvbr.tikv.regions import RegionCache

EVERYTHING = KeyRange(RegionKey(b""), RegionKey(b""))


def key(text: bytes) -> RegionKey:
    return RegionKey(text)


def region(number: int, start: bytes, end: bytes, *, version: int = 1, conf_ver: int = 1, leader: int = 1) -> Region:
    """A region with peers 10n+1 to 10n+3 on stores 1 to 3, led by one of them or, with 0, by none."""
    peers = tuple(Peer(number * 10 + store, store) for store in (1, 2, 3))
    return Region(
        id=number,
        start=key(start),
        end=key(end),
        conf_ver=conf_ver,
        version=version,
        peers=peers,
        leader=peers[leader - 1] if leader else None,
    )


def held(cache: RegionCache) -> list[Region]:
    """What the cache knows, with its inner order checked."""
    found = [cache._by_start[start] for start in cache._starts]
    assert cache._starts == sorted(set(cache._starts))
    assert {r.id: r for r in found} == cache._by_id
    assert len(found) == len(cache._by_start) == len(cache)
    for left, right in pairwise(found):
        assert left.end
        assert left.end <= right.start
    return found


@pytest.fixture
async def pd(cluster: EmbeddedCluster) -> AsyncIterator[PDClient]:
    async with await PDClient.connect(ClusterOptions(pd=(cluster.pd_address,))) as client:
        yield client


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EmbeddedCluster]:
    keys = [UserKey(b"%02d" % n) for n in range(1, 30)]
    async with EmbeddedCluster(data_dir=tmp_path, api_version=ApiVersion.V1, split_keys=keys) as running:
        yield running


@pytest.fixture
def cache(pd: PDClient) -> RegionCache:
    return RegionCache(pd, budget_s=20)


# --- what is known ---


@pytest.fixture
def alone() -> RegionCache:
    """A cache that has nobody to ask."""
    return RegionCache(None)  # type: ignore[arg-type]


def test_known_regions_are_found_by_key(alone: RegionCache) -> None:
    one, two, four = region(1, b"", b"b"), region(2, b"b", b"c"), region(4, b"d", b"")
    alone.update([four, one, two])
    assert held(alone) == [one, two, four]
    for text, found in (
        (b"", one),
        (b"a\xff", one),
        (b"b", two),
        (b"c", None),
        (b"cz", None),
        (b"d", four),
        (b"z", four),
    ):
        assert alone.cached(key(text)) == found


def test_a_newer_look_replaces_what_it_covers(alone: RegionCache) -> None:
    alone.update([region(1, b"a", b"m"), region(2, b"m", b"z")])
    left, right = region(3, b"a", b"c", version=2), region(1, b"c", b"m", version=2)
    alone.update([left, right])
    assert held(alone) == [left, right, region(2, b"m", b"z")]


def test_a_merge_replaces_both(alone: RegionCache) -> None:
    alone.update([region(1, b"a", b"m", version=3), region(2, b"m", b"z", version=4)])
    merged = region(2, b"a", b"z", version=5)
    alone.update([merged])
    assert held(alone) == [merged]


def test_an_older_look_changes_nothing(alone: RegionCache) -> None:
    left, right = region(3, b"a", b"c", version=2), region(1, b"c", b"m", version=2)
    alone.update([left, right])
    alone.update([region(1, b"a", b"m", version=1)])
    assert held(alone) == [left, right]
    alone.update([region(1, b"c", b"m", version=2, conf_ver=0)])
    assert held(alone) == [left, right]


def test_peers_that_move_raise_the_conf_version(alone: RegionCache) -> None:
    alone.update([region(1, b"a", b"m", conf_ver=2)])
    newer = region(1, b"a", b"m", conf_ver=3, leader=2)
    alone.update([newer])
    assert held(alone) == [newer]


def test_a_region_that_shrinks_leaves_a_gap(alone: RegionCache) -> None:
    alone.update([region(1, b"a", b"z")])
    right = region(1, b"m", b"z", version=2)
    alone.update([right])
    assert held(alone) == [right]
    assert alone.cached(key(b"b")) is None


def test_a_leader_is_kept_while_it_is_a_peer(alone: RegionCache) -> None:
    alone.update([region(1, b"a", b"m", leader=2)])
    alone.update([region(1, b"a", b"m", version=2, leader=0)])
    assert held(alone) == [region(1, b"a", b"m", version=2, leader=2)]


def test_leader_hints(alone: RegionCache) -> None:
    alone.update([region(1, b"a", b"m", leader=1)])
    alone.set_leader(1, Peer(12, 2))
    assert held(alone) == [region(1, b"a", b"m", leader=2)]
    # A peer of which nothing is known: the peers have changed.
    alone.set_leader(1, Peer(99, 9))
    assert held(alone) == []
    alone.set_leader(1, Peer(12, 2))
    assert held(alone) == []


def test_forgetting(alone: RegionCache) -> None:
    alone.update([region(1, b"a", b"m"), region(2, b"m", b"")])
    alone.invalidate(1)
    alone.invalidate(1)
    alone.invalidate(99)
    assert held(alone) == [region(2, b"m", b"")]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.integers(1, 6),
            st.integers(0, 9),
            st.integers(1, 10),
            st.integers(1, 5),
            st.integers(1, 3),
            st.booleans(),
        ),
        max_size=40,
    )
)
def test_whatever_comes_in_nothing_overlaps(looks: list[tuple[int, int, int, int, int, bool]]) -> None:
    cache = RegionCache(None)  # type: ignore[arg-type]
    for number, start, length, version, conf_ver, forget in looks:
        if forget:
            cache.invalidate(number)
            continue
        end = b"" if start + length > 9 else b"%d" % (start + length)
        look = region(number, b"%d" % start if start else b"", end, version=version, conf_ver=conf_ver)
        cache.update([look])
        # What is told is taken in, or something newer is known of the same region or of the same place.
        assert look in held(cache) or any(
            (known.version, known.conf_ver) > (look.version, look.conf_ver)
            for known in held(cache)
            if known.id == look.id or known.keys.intersect(look.keys)
        )


# --- asking PD ---


async def test_locate_asks_once(cache: RegionCache, cluster: EmbeddedCluster) -> None:
    found = await cache.locate(key(b"05x"))
    assert (found.start, found.end) == (b"05", b"06")
    point = cluster.faults.fail(methods.PD_GET_REGION, delay_s=0.05, times=None)
    assert await cache.locate(key(b"05")) == found
    assert point.hits == 0
    # Many at once that miss the same region: not every one goes to PD.
    await asyncio.gather(*(cache.locate(key(b"07%d" % n)) for n in range(500)))
    assert 1 <= point.hits <= regions_module.LOOKUPS


async def test_locate_again_after_a_split(cache: RegionCache, cluster: EmbeddedCluster) -> None:
    before = await cache.locate(key(b"05x"))
    cluster.split([UserKey(b"055")])
    assert await cache.locate(key(b"05x")) == before
    cache.invalidate(before.id)
    after = await cache.locate(key(b"05x"))
    assert (after.start, after.version) == (b"055", before.version + 1)


async def test_locate_waits_for_a_leader(cache: RegionCache, cluster: EmbeddedCluster, pd: PDClient) -> None:
    known = await pd.region(key(b"05"))
    assert known is not None
    answer = region_answer(pd, replace(known, leader=None))
    point = cluster.faults.fail(methods.PD_GET_REGION, response=answer, times=2)
    empty = pdpb_pb2.GetRegionResponse(header=pdpb_pb2.ResponseHeader(cluster_id=pd.cluster_id))
    missing = cluster.faults.fail(methods.PD_GET_REGION, response=empty, times=2)
    assert await cache.locate(key(b"05")) == known
    assert (point.hits, missing.hits) == (2, 2)


async def test_locate_does_not_wait_for_ever(pd: PDClient, cluster: EmbeddedCluster) -> None:
    empty = pdpb_pb2.GetRegionResponse(header=pdpb_pb2.ResponseHeader(cluster_id=pd.cluster_id))
    cluster.faults.fail(methods.PD_GET_REGION, response=empty, times=None)
    with pytest.raises(BudgetExceededError, match="PD knows of no region for key 3035") as caught:
        await RegionCache(pd, budget_s=0.2).locate(key(b"05"))
    assert isinstance(caught.value.__cause__, RegionNotReadyError)


async def test_an_answer_older_than_what_a_store_told_is_not_used(
    cache: RegionCache, cluster: EmbeddedCluster, pd: PDClient
) -> None:
    old = await pd.region(key(b"05x"))
    assert old is not None
    cluster.split([UserKey(b"055")])
    # The store told of the split, PD does not know it yet.
    cache.update([replace(old, start=key(b"055"), version=old.version + 1, leader=None)])
    cluster.faults.fail(methods.PD_GET_REGION, response=region_answer(pd, old), times=3)
    found = await cache.locate(key(b"05x"))
    assert (found.start, found.version) == (b"055", old.version + 1)


def region_answer(pd: PDClient, known: Region) -> pdpb_pb2.GetRegionResponse:
    answer = pdpb_pb2.GetRegionResponse(header=pdpb_pb2.ResponseHeader(cluster_id=pd.cluster_id))
    fill(answer, known)
    return answer


def fill(into: pdpb_pb2.GetRegionResponse | pdpb_pb2.Region, known: Region) -> None:
    into.region.id = known.id
    into.region.start_key = known.start
    into.region.end_key = known.end
    into.region.region_epoch.CopyFrom(known.epoch)
    into.region.peers.extend(peer.message() for peer in known.peers)
    if known.leader:
        into.leader.CopyFrom(known.leader.message())


# --- covering a range ---


async def test_cover_tiles_the_range_page_by_page(
    cache: RegionCache, cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions_module, "PAGE", 7)
    found = await cache.cover(EVERYTHING)
    assert [r.id for r in found] == [r.id for r in cluster.topology.regions]
    assert found[0].start == b""
    assert found[-1].end == b""
    assert held(cache) == found
    part = await cache.cover(KeyRange(key(b"05x"), key(b"20")))
    assert part == found[5:20]
    assert await cache.cover(KeyRange(key(b"05x"), key(b"05y"))) == [found[5]]
    assert await cache.cover(KeyRange(key(b"28"), key(b""))) == found[28:]


async def test_cover_sees_what_is_new(cache: RegionCache, cluster: EmbeddedCluster) -> None:
    before = await cache.cover(EVERYTHING)
    cluster.split([UserKey(b"055"), UserKey(b"056")])
    after = await cache.cover(EVERYTHING)
    assert len(after) == len(before) + 2
    assert held(cache) == after


def scan_answer(pd: PDClient, known: list[Region]) -> pdpb_pb2.ScanRegionsResponse:
    answer = pdpb_pb2.ScanRegionsResponse(header=pdpb_pb2.ResponseHeader(cluster_id=pd.cluster_id))
    for one in known:
        fill(answer.regions.add(), one)
    return answer


async def test_gaps_in_what_pd_tells_are_asked_for_again(
    cache: RegionCache, cluster: EmbeddedCluster, pd: PDClient
) -> None:
    """Right after a split PD may not know every piece."""
    good = await pd.scan_regions(EVERYTHING, 100)
    headless = replace(good[3], leader=None)
    for known in ([], good[1:], [*good[:4], *good[5:]], good[:-1], [*good[:3], headless, *good[4:]]):
        point = cluster.faults.fail(methods.PD_SCAN_REGIONS, response=scan_answer(pd, known))
        assert await cache.cover(EVERYTHING) == good
        assert point.hits == 1


async def test_a_gap_that_stays_is_an_error(pd: PDClient, cluster: EmbeddedCluster) -> None:
    good = await pd.scan_regions(EVERYTHING, 100)
    point = cluster.faults.fail(methods.PD_SCAN_REGIONS, response=scan_answer(pd, good[1:]), times=None)
    with pytest.raises(BudgetExceededError, match=r"a gap in the regions at key \(start\): it tells region"):
        await RegionCache(pd, budget_s=0.2).cover(EVERYTHING)
    point.disarm()
    cluster.faults.fail(methods.PD_SCAN_REGIONS, response=scan_answer(pd, []), times=None)
    with pytest.raises(BudgetExceededError, match="it tells no region there"):
        await RegionCache(pd, budget_s=0.2).cover(EVERYTHING)


async def test_overlapping_pages_do_not_count_twice(cache: RegionCache, cluster: EmbeddedCluster, pd: PDClient) -> None:
    good = await pd.scan_regions(EVERYTHING, 100)
    cluster.faults.fail(methods.PD_SCAN_REGIONS, response=scan_answer(pd, [*good[:5], *good[3:]]))
    assert await cache.cover(EVERYTHING) == good
