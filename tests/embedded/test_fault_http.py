"""Faults of PD's HTTP API and of the stores' status ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.faults import Faults
from tests.support.waiting import until

SCHEDULER = "/schedulers/balance-leader-scheduler"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(data_dir=tmp_path, stores=2, pd_members=2) as cluster:
        yield cluster


@pytest.fixture
def faults(cluster: EmbeddedCluster) -> Faults:
    return cluster.faults


@pytest.fixture
async def http(cluster: EmbeddedCluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{cluster.pd_address}/pd/api/v1", timeout=10) as client:
        yield client


async def pause(http: httpx.AsyncClient, seconds: int = 300) -> httpx.Response:
    return await http.post(SCHEDULER, json={"delay": seconds})


def paused(cluster: EmbeddedCluster) -> bool:
    return "balance-leader-scheduler" in cluster.pd.schedulers.paused()


async def test_statuses(cluster: EmbeddedCluster, faults: Faults, http: httpx.AsyncClient) -> None:
    faults.add(Rule(kind=Kind.STATUS, method="POST /pd/api/v1/schedulers/*", status=500, details="no leader", times=1))
    answer = await pause(http)
    assert (answer.status_code, answer.text, paused(cluster)) == (500, "no leader", False)
    assert (await http.get("/schedulers")).status_code == 200
    assert (await pause(http)).status_code == 200
    assert paused(cluster)


@pytest.mark.parametrize(("kind", "done"), [(Kind.RESET, False), (Kind.LOST, True)])
async def test_dropped_connections(
    cluster: EmbeddedCluster, faults: Faults, http: httpx.AsyncClient, kind: Kind, done: bool
) -> None:
    faults.add(Rule(kind=kind, method="POST *", times=1))
    with pytest.raises(httpx.TransportError):
        await pause(http)
    assert paused(cluster) == done
    assert (await http.get("/schedulers")).status_code == 200


async def test_delays_before_and_after_the_work(
    cluster: EmbeddedCluster, faults: Faults, http: httpx.AsyncClient
) -> None:
    delay = faults.add(Rule(kind=Kind.DELAY, delay_s=0.3, method="POST *", times=1))
    call = asyncio.create_task(pause(http))
    await until(lambda: delay.hits)
    assert not paused(cluster)
    await call
    assert paused(cluster)
    faults.add(Rule(kind=Kind.SLOW, delay_s=0.3, method="POST *"))
    call = asyncio.create_task(pause(http, 0))
    await until(lambda: not paused(cluster))
    assert not call.done()
    assert (await call).status_code == 200


async def test_hanging(faults: Faults, http: httpx.AsyncClient) -> None:
    faults.add(Rule(kind=Kind.HANG, method="GET /pd/api/v1/stores", times=1))
    with pytest.raises(httpx.ReadTimeout):
        await http.get("/stores", timeout=0.3)
    faults.add(Rule(kind=Kind.HANG, method="GET *", delay_s=0.1, times=1))
    with pytest.raises(httpx.TransportError):
        await http.get("/stores")
    assert (await http.get("/stores")).status_code == 200


async def test_late_and_repeated_work(cluster: EmbeddedCluster, faults: Faults, http: httpx.AsyncClient) -> None:
    faults.add(Rule(kind=Kind.LATE, method="POST *", delay_s=0.2, times=1))
    assert (await pause(http)).status_code == 503
    assert not paused(cluster)
    await until(lambda: paused(cluster))
    faults.add(Rule(kind=Kind.DUPLICATE, method="POST *", delay_s=0.2, times=1))
    await pause(http)
    await pause(http, 0)
    assert not paused(cluster)
    await until(lambda: paused(cluster))


async def test_one_member_or_one_store(cluster: EmbeddedCluster, faults: Faults, http: httpx.AsyncClient) -> None:
    faults.add(Rule(kind=Kind.STATUS, method="GET *", pd_member="pd-1"))
    faults.add(Rule(kind=Kind.STATUS, method="GET /config", store_id=2, status=404))
    assert (await http.get("/version")).status_code == 200
    assert (await http.get(f"http://{cluster.pd_addresses[1]}/pd/api/v1/version")).status_code == 503
    ports = [cluster.topology.stores[store_id].status_address for store_id in (1, 2)]
    assert [(await http.get(f"http://{port}/config")).status_code for port in ports] == [200, 404]


async def test_everything(faults: Faults, http: httpx.AsyncClient) -> None:
    faults.add(Rule(kind=Kind.STATUS, method="/*"))
    assert (await http.get("/version")).status_code == 200
    faults.add(Rule(kind=Kind.STATUS))
    assert (await http.get("/version")).status_code == 503
