from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.support.clock import Clock

API = "/pd/api/v1"


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
async def cluster(tmp_path: Path, clock: Clock) -> AsyncIterator[EmbeddedCluster]:
    keys = [UserKey(k) for k in (b"c!", b"m", b"\xff\xfe")]
    async with EmbeddedCluster(data_dir=tmp_path, stores=3, replicas=2, split_keys=keys, clock=clock) as cluster:
        yield cluster


@pytest.fixture
async def http(cluster: EmbeddedCluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{cluster.pd_address}{API}") as client:
        yield client


async def ok(response: Any) -> Any:
    answer = await response
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_versions_and_members(cluster: EmbeddedCluster, http: httpx.AsyncClient) -> None:
    assert (await http.get("/ping")).status_code == 200
    assert (await http.get("/config/cluster-version")).text == '"8.5.0"\n'
    assert await ok(http.get("/version")) == {"version": "v8.5.0"}
    members = await ok(http.get("/members"))
    assert members["header"]["cluster_id"] == cluster.topology.cluster_id
    assert members["leader"] == members["members"][0]
    assert members["leader"]["client_urls"] == [f"http://{cluster.pd_address}"]
    assert members["leader"]["binary_version"] == "v8.5.0"
    assert (await ok(http.get("/config/replicate")))["max-replicas"] == 2


async def test_stores(cluster: EmbeddedCluster, http: httpx.AsyncClient) -> None:
    await cluster.stop_store(2)

    stores = await ok(http.get("/stores"))

    assert stores["count"] == 3
    assert [s["store"]["state_name"] for s in stores["stores"]] == ["Up", "Disconnected", "Up"]
    assert sum(s["status"]["leader_count"] for s in stores["stores"]) == 4
    assert sum(s["status"]["region_count"] for s in stores["stores"]) == 8
    assert (await ok(http.get("/store/3")))["store"]["id"] == 3
    assert (await http.get("/store/9")).status_code == 404
    assert (await http.get("/store/x")).status_code == 404


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 4),
        ("start_key=&end_key=", 4),
        ("start_key=d&end_key=e", 1),
        ("start_key=d&end_key=n", 2),
        ("start_key=%FF%FE%00&end_key=", 1),
        ("start_key=%00%00%00%00%00%00%00%00%F7&end_key=", 4),
        ("start_key=&end_key=c+", 1),
        ("start_key=&end_key=c%2B", 2),
    ],
)
async def test_regions_are_counted_by_raw_bytes(http: httpx.AsyncClient, query: str, count: int) -> None:
    stats = await ok(http.get(f"/stats/region?{query}"))

    assert stats["count"] == count
    assert sum(stats["store_leader_count"].values()) == count
    assert sum(stats["store_peer_count"].values()) == 2 * count


async def test_regions_are_counted_for_the_longest_keys(http: httpx.AsyncClient) -> None:
    stats = await ok(http.get(f"/stats/region?start_key={'%00' * 9000}&end_key={'%FF' * 9000}"))
    assert stats["count"] == 4


async def test_a_scheduler_pauses_for_a_while(cluster: EmbeddedCluster, http: httpx.AsyncClient, clock: Clock) -> None:
    assert "balance-region-scheduler" in await ok(http.get("/schedulers"))
    pause = http.post("/schedulers/balance-region-scheduler", json={"delay": 300})
    assert await ok(pause) == "Pause or resume the scheduler successfully."
    assert await ok(http.get("/schedulers?status=paused")) == ["balance-region-scheduler"]
    assert set(cluster.pd.schedulers.paused()) == {"balance-region-scheduler"}
    clock.now += 300
    assert await ok(http.get("/schedulers?status=paused")) == []

    # A client that takes nanoseconds for seconds pauses for nine thousand years.
    await ok(http.post("/schedulers/balance-leader-scheduler", content=b'{"delay":300000000000}'))
    assert await ok(http.get("/schedulers?status=paused")) == ["balance-leader-scheduler"]
    await ok(http.post("/schedulers/balance-leader-scheduler", json={"delay": 0}))
    assert await ok(http.get("/schedulers?status=paused")) == []


async def test_pauses_that_make_no_sense(http: httpx.AsyncClient) -> None:
    url = "/schedulers/balance-leader-scheduler"
    for body in (b"", b"[]", b"{", b'{"delay": "x"}', b'{"delay": true}'):
        assert (await http.post(url, content=body)).status_code == 400
    assert (await http.post("/schedulers/unknown", json={"delay": 1})).status_code == 500


async def test_what_holds_gc_back(cluster: EmbeddedCluster, http: httpx.AsyncClient, clock: Clock) -> None:
    cluster.pd.safe_points.update_service("br-1", 60, 500)
    assert await ok(http.get("/gc/safepoint")) == {
        "service_gc_safe_points": [
            {"service_id": "gc_worker", "expired_at": (1 << 63) - 1, "safe_point": 0},
            {"service_id": "br-1", "expired_at": int(clock.now) + 60, "safe_point": 500},
        ],
        "gc_safe_point": 0,
    }


async def test_settings_for_a_while(cluster: EmbeddedCluster, http: httpx.AsyncClient, clock: Clock) -> None:
    before = await ok(http.get("/config/schedule"))
    values = {"schedule.max-snapshot-count": 40, "schedule.enable-location-replacement": "false"}

    assert await ok(http.post("/config?ttlSecond=300", json=values)) == "The ttl config is updated."

    assert cluster.pd.config.ttl_values() == values
    assert await ok(http.get("/config/schedule")) == before
    refused = await http.post("/config/schedule", json={"max-snapshot-count": 3})
    assert refused.status_code == 400
    clock.now += 299
    assert cluster.pd.config.ttl_values() == values
    clock.now += 1
    assert cluster.pd.config.ttl_values() == {}
    await ok(http.post("/config?ttlSecond=300", json=values))
    await ok(http.post("/config?ttlSecond=0", json=values))
    assert cluster.pd.config.ttl_values() == {}


async def test_lasting_settings(http: httpx.AsyncClient) -> None:
    # The parameter is of no use here: the change is for good.
    answer = await ok(http.post("/config/schedule?ttlSecond=300", content=b'{"max-snapshot-count":40}'))
    assert answer == "The config is updated."
    assert (await ok(http.get("/config/schedule")))["max-snapshot-count"] == 40
    await ok(http.post("/config", json={"schedule.max-snapshot-count": 64}))
    assert (await ok(http.get("/config/schedule")))["max-snapshot-count"] == 64


async def test_settings_that_make_no_sense(http: httpx.AsyncClient) -> None:
    good = {"schedule.max-snapshot-count": 40}
    assert (await http.post("/config?ttlSecond=x", json=good)).status_code == 400
    unsupported = await http.post("/config?ttlSecond=300", json={"schedule.low-space-ratio": 0.5})
    assert (unsupported.status_code, unsupported.json()) == (400, "unsupported ttl config schedule.low-space-ratio")
    for url in ("/config", "/config/schedule"):
        assert (await http.post(url, content=b"nonsense")).status_code == 400
    assert (await http.get("/no/such/path")).status_code == 404


@pytest.mark.parametrize(
    ("api_version", "number", "ttl"),
    [(ApiVersion.V1, 1, False), (ApiVersion.V1TTL, 1, True), (ApiVersion.V2, 2, True)],
)
async def test_stores_tell_their_api_version(tmp_path: Path, api_version: ApiVersion, number: int, ttl: bool) -> None:
    async with (
        EmbeddedCluster(data_dir=tmp_path, stores=1, api_version=api_version) as cluster,
        httpx.AsyncClient(base_url=f"http://{cluster.topology.stores[1].status_address}") as client,
    ):
        config = (await client.get("/config")).json()
        assert config["storage"]["api-version"] == number
        assert config["storage"]["enable-ttl"] is ttl
        assert config["coprocessor"]["region-split-size"] == "256MiB"
        cluster.topology.stores[1].api_version = ApiVersion.V2
        assert (await client.get("/config")).json()["storage"]["api-version"] == 2
        assert (await client.get("/status")).status_code == 200
        metrics = (await client.get("/metrics")).text
        regions = len(cluster.topology.regions)
        assert f'tikv_raftstore_region_count{{type="leader"}} {regions}' in metrics
