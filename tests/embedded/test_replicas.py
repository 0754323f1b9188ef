"""Stores that are down: what PD does about their peers, and what becomes of them when they come back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.schedule import duration_s
from airflow_provider_tikvbr.tikv.keys import UserKey
from tests.support.waiting import until

PAIRS = [(UserKey(b"k%03d" % i), b"v%d" % i) for i in range(200)]
SPLITS = [UserKey(b"k%03d" % i) for i in range(0, 200, 25)]


def holds(cluster: EmbeddedCluster, store_id: int) -> int:
    return sum(1 for region in cluster.topology.regions if region.peer_on(store_id))


def leader(cluster: EmbeddedCluster) -> str:
    return cluster.pd.leader.name if cluster.pd.leader else ""


class Clock:
    """The real time and some more."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m0s", 1800), ("1h0m0s", 3600), ("10ms", 0.01), ("0.5s", 0.5), ("2s", 2), ("", 0)]
)
def test_times_are_read_as_pd_writes_them(text: str, seconds: float) -> None:
    assert duration_s(text) == pytest.approx(seconds)


async def test_the_peers_of_a_dead_store_go_to_others(tmp_path: Path) -> None:
    async with EmbeddedCluster(
        data_dir=tmp_path, stores=4, replicas=3, split_keys=SPLITS, max_store_down_s=0.2
    ) as cluster:
        await cluster.put(PAIRS)
        digest = await cluster.checksum()
        before = {r.id: (r.conf_ver, {p.id for p in r.peers}) for r in cluster.topology.regions if r.peer_on(2)}
        assert before

        await cluster.kill_store(2)
        await until(lambda: not holds(cluster, 2))

        for region in cluster.topology.regions:
            assert len(region.peers) == 3
            assert region.leader_store_id != 2
            if region.id in before:
                conf_ver, peers = before[region.id]
                assert region.conf_ver > conf_ver
                assert len({p.id for p in region.peers} - peers) == 1
        assert await cluster.checksum() == digest
        held = [await cluster.data.checksum(store_id=s) for s in (1, 3, 4)]
        assert sum(h.kvs for h in held) == 3 * digest.kvs
        async with httpx.AsyncClient(base_url=f"http://{cluster.pd_address}/pd/api/v1") as http:
            assert (await http.get("/store/2")).json()["store"]["state_name"] == "Down"
        with pytest.raises(RuntimeError, match="its machine is lost"):
            await cluster.start_store(2)


async def test_pd_waits_for_as_long_as_it_is_told(tmp_path: Path) -> None:
    clock = Clock()
    async with EmbeddedCluster(data_dir=tmp_path, stores=4, replicas=3, clock=clock) as cluster:
        (store_id, *_) = cluster.topology.regions[0].store_ids
        await cluster.stop_store(store_id)
        async with httpx.AsyncClient(base_url=f"http://{cluster.pd_address}/pd/api/v1") as http:
            assert (await http.get(f"/store/{store_id}")).json()["store"]["state_name"] == "Disconnected"
            clock.ahead_s = 1799
            await asyncio.sleep(0.3)
            assert holds(cluster, store_id)
            await http.post("/config", json={"schedule.replica-schedule-limit": 0}, params={"ttlSecond": 60})
            clock.ahead_s = 1801
            await asyncio.sleep(0.3)
            assert holds(cluster, store_id)
            await http.post("/config", json={"schedule.replica-schedule-limit": 64}, params={"ttlSecond": 0})
        await until(lambda: not holds(cluster, store_id))


@pytest.mark.parametrize(("stores", "replicas", "down"), [(3, 3, [3]), (5, 3, [1, 2, 3])])
async def test_peers_stay_where_no_store_can_take_them_or_most_are_gone(
    stores: int, replicas: int, down: list[int], tmp_path: Path
) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=stores, replicas=replicas, max_store_down_s=0.1) as cluster:
        (region,) = cluster.topology.regions
        peers = list(region.peers)
        for store_id in down:
            await cluster.stop_store(store_id)
        await asyncio.sleep(0.5)
        assert region.peers == peers


async def test_a_pd_that_is_gone_replaces_nothing(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=4, replicas=3, max_store_down_s=0.1) as cluster:
        (store_id, *_) = cluster.topology.regions[0].store_ids
        await cluster.stop_pd(0)
        await cluster.stop_store(store_id)
        await asyncio.sleep(0.4)
        assert holds(cluster, store_id)
        await cluster.start_pd(0)
        await until(lambda: not holds(cluster, store_id))


async def test_full_stores_get_no_peers(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=5, replicas=3, max_store_down_s=0.1) as cluster:
        region = cluster.topology.regions[0]
        full, free = sorted(set(cluster.topology.stores) - set(region.store_ids))
        cluster.fill_disk(full)
        await cluster.stop_store(region.store_ids[0])
        await until(lambda: region.peer_on(free))
        assert not holds(cluster, full)


async def test_a_peer_that_was_replaced_does_not_fetch_what_it_missed(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=4, replicas=3) as cluster:
        topology = cluster.topology
        region = topology.regions[0]
        first, second, _ = region.store_ids
        (free,) = set(topology.stores) - set(region.store_ids)
        for store_id in (first, second):
            await cluster.stop_store(store_id)
            topology.lacks(region.id, store_id, "a file was missing")
            if store_id == first:
                topology.move_peer(region.id, first, free)
            await cluster.start_store(store_id)
        await until(lambda: not topology.stores[second].running)
        assert topology.stores[first].running
        assert (topology.stores[first].death, topology.stores[second].death) == ("", "a file was missing")


async def test_what_a_peer_missed_outlives_splits_merges_and_the_cluster(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=3, replicas=3, split_keys=[UserKey(b"m")]) as cluster:
        left, right = cluster.topology.regions
        await cluster.stop_store(3)
        cluster.topology.lacks(left.id, 3, "a file was missing")
        cluster.split([UserKey(b"c")])
        cluster.topology.merge(left.id, right.id)

    async with EmbeddedCluster(data_dir=tmp_path, stores=3, replicas=3) as cluster:
        await until(lambda: not cluster.topology.stores[3].running)
        assert cluster.topology.stores[3].death == "a file was missing"


async def test_a_majority_that_comes_back_elects(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=3, replicas=3) as cluster:
        (region,) = cluster.topology.regions
        first = region.leader_store_id
        await cluster.stop_store(first)
        second = region.leader_store_id
        await cluster.stop_store(second)
        assert not cluster.topology.has_majority(region)
        assert region.leader_store_id == second
        await cluster.start_store(first)
        assert region.leader_store_id in {1, 2, 3} - {second}
        assert cluster.topology.leads(region.leader_store_id, region)


async def test_a_store_may_bounce_as_often_as_it_likes(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=2, replicas=1) as cluster:
        places = [(s.address, s.status_address) for s in cluster.topology.stores.values()]
        for _ in range(20):
            await asyncio.gather(cluster.stop_store(1), cluster.stop_store(2))
            for place in places[0]:
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection(*place.split(":"))
            await asyncio.gather(cluster.start_store(2), cluster.start_store(1))
        assert [(s.address, s.status_address) for s in cluster.topology.stores.values()] == places


async def test_most_of_pd_has_to_run(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1, pd_members=3) as cluster:
        cluster.pd.schedulers.pause("all", 60)
        await cluster.stop_pd(0)
        assert leader(cluster) == "pd-1"
        assert not cluster.pd.schedulers.paused()  # they were known to the last leader only
        await cluster.stop_pd(1)
        assert leader(cluster) == ""
        await cluster.start_pd(0)
        assert leader(cluster) == "pd-0"
        with pytest.raises(RuntimeError, match="pd-0 is running"):
            await cluster.start_pd(0)
