from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    PDUnavailableError,
    ProtocolError,
    UnsupportedError,
)
from airflow_provider_tikvbr.tikv import pd_http
from airflow_provider_tikvbr.tikv.certificates import Certificates
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, RegionKey, UserKey
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from airflow_provider_tikvbr.tikv.pd import PDClient
from airflow_provider_tikvbr.tikv.pd_http import PDHttp
from tests.tikv.servers import closed_port

EVERYTHING = KeyRange(RegionKey(b""), RegionKey(b""))


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EmbeddedCluster]:
    keys = [UserKey(b"\x00\xff &=+%/"), UserKey(b"b"), UserKey(b"c")]
    async with EmbeddedCluster(data_dir=tmp_path, api_version=ApiVersion.V1, split_keys=keys) as running:
        yield running


@pytest.fixture
async def http(cluster: EmbeddedCluster) -> AsyncIterator[PDHttp]:
    async with await PDClient.connect(ClusterOptions(pd=(cluster.pd_address,))) as pd:
        client = PDHttp(pd)
        yield client
        await client.close()


async def test_cluster_version(http: PDHttp) -> None:
    assert await http.cluster_version() == "8.5.0"


async def test_region_count_with_keys_of_any_bytes(http: PDHttp) -> None:
    assert await http.region_count(EVERYTHING) == 4
    assert await http.region_count(KeyRange(RegionKey(b"b"), RegionKey(b""))) == 2
    assert await http.region_count(KeyRange(RegionKey(b""), RegionKey(b"\x00\xff &=+%/"))) == 1
    assert await http.region_count(KeyRange(RegionKey(b"\x00\xff &=+%/"), RegionKey(b"c"))) == 2


async def test_schedulers_pause_and_resume(http: PDHttp, cluster: EmbeddedCluster) -> None:
    names = await http.schedulers()
    assert "balance-leader-scheduler" in names
    await http.pause_scheduler("balance-leader-scheduler", 60)
    assert list(cluster.pd.schedulers.paused()) == ["balance-leader-scheduler"]
    assert await http.schedulers() == names
    assert await http.paused_schedulers() == ["balance-leader-scheduler"]
    await http.pause_scheduler("balance-leader-scheduler", 0)
    assert not cluster.pd.schedulers.paused()
    assert await http.paused_schedulers() == []


async def test_what_holds_garbage_collection_back(http: PDHttp, cluster: EmbeddedCluster) -> None:
    cluster.pd.safe_points.update_service("br-1", 60, 500)
    found = {each.service_id: each for each in await http.service_safe_points()}
    assert set(found) == {"br-1", "gc_worker"}
    assert found["br-1"].safe_point == 500
    assert found["br-1"].expires_at == cluster.pd.safe_points.services()["br-1"].expires_at


async def test_settings_for_a_while_leave_the_permanent_ones_alone(http: PDHttp, cluster: EmbeddedCluster) -> None:
    before = await http.schedule_config()
    await http.set_schedule_ttl(
        {"max-snapshot-count": 40, "max-pending-peer-count": 2147483647, "enable-location-replacement": False}, 60
    )
    assert await http.schedule_config() == before
    now = cluster.pd.config.ttl_values()
    assert {name: str(value) for name, value in now.items()} == {
        "schedule.max-snapshot-count": "40",
        "schedule.max-pending-peer-count": "2147483647",
        "schedule.enable-location-replacement": "false",
    }
    await http.end_schedule_ttl({"max-snapshot-count": 40, "enable-location-replacement": False})
    assert list(cluster.pd.config.ttl_values(after_s=1)) == ["schedule.max-pending-peer-count"]
    with pytest.raises(ValueError, match="cannot last 0 s"):
        await http.set_schedule_ttl({"max-snapshot-count": 40}, 0)


async def test_a_setting_that_cannot_be_set_for_a_while(http: PDHttp) -> None:
    with pytest.raises(ProtocolError, match="refused POST /pd/api/v1/config: 400"):
        await http.set_schedule_ttl({"low-space-ratio": "0.9"}, 60)


# --- faults ---

Handler = Callable[[web.Request], Any]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """An HTTP server that answers every request in the same way."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return cast("web.StreamResponse", handler(request))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def client(*members: str) -> AsyncIterator[PDHttp]:
    """The client of a PD whose members are known already."""
    options = ClusterOptions(pd=members)
    pd = SimpleNamespace(
        members=members, leader_address=members[0], options=options, certificates=Certificates(options.tls)
    )
    made = PDHttp(cast("PDClient", pd))
    yield made
    await made.close()


def says(status: int, body: Any = "some text") -> Handler:
    return lambda _request: web.Response(status=status, text=body if isinstance(body, str) else json.dumps(body))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ProtocolError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, UnsupportedError),
        (405, UnsupportedError),
        (204, ProtocolError),
    ],
)
async def test_refusals_are_not_tried_again(status: int, kind: type[Exception]) -> None:
    asked: list[str] = []

    def refuse(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status)

    async with answering(refuse) as address, client(address) as http:
        with pytest.raises(kind, match=address):
            await http.schedulers()
    assert asked == ["/pd/api/v1/schedulers"]


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_failures_that_may_pass_are_tried_again(status: int) -> None:
    answers = [web.Response(status=status, text="wait\nmore"), web.Response(text='["a"]')]
    async with answering(lambda _request: answers.pop(0)) as address, client(address) as http:
        assert await http.schedulers() == ["a"]


async def test_other_members_stand_in_for_the_leader() -> None:
    async with answering(says(200, '"7.1.0"')) as good, client(closed_port(), good) as http:
        assert await http.cluster_version() == "7.1.0"


async def test_when_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pd_http, "BUDGET_S", 0.3)
    address = closed_port()
    async with client(address) as http:
        with pytest.raises(PDUnavailableError, match=f"PD at {address} did not answer GET /pd/api/v1/schedulers"):
            await http.schedulers()


async def test_a_failure_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pd_http, "BUDGET_S", 0.3)
    async with answering(says(500, "scheduler not found\nstack")) as address, client(address) as http:
        with pytest.raises(PDUnavailableError) as caught:
            await http.pause_scheduler("nope", 5)
    assert str(caught.value).endswith("failed on POST /pd/api/v1/schedulers/nope: 500 scheduler not found")


@pytest.mark.parametrize("body", ["not json", "7", '{"x": 1}', "[1]"])
async def test_answers_of_another_shape(body: str) -> None:
    async with answering(says(200, body)) as address, client(address) as http:
        if body != '{"x": 1}':
            with pytest.raises(ProtocolError):
                await http.schedule_config()
        with pytest.raises(ProtocolError):
            await http.cluster_version()
        with pytest.raises(ProtocolError):
            await http.region_count(EVERYTHING)
        with pytest.raises(ProtocolError):
            await http.service_safe_points()
        if body != "[1]":
            with pytest.raises(ProtocolError):
                await http.schedulers()


async def test_no_schedulers_at_all() -> None:
    async with answering(says(200, "null")) as address, client(address) as http:
        assert await http.schedulers() == []


async def test_nothing_holds_garbage_collection_back() -> None:
    nothing = {"service_gc_safe_points": None, "gc_safe_point": 7}
    async with answering(says(200, nothing)) as address, client(address) as http:
        assert await http.service_safe_points() == []


async def test_an_answer_for_people() -> None:
    async with answering(says(200, "Pause or resume the scheduler successfully.")) as address, client(address) as http:
        await http.pause_scheduler("x", 5)


async def test_the_environment_does_not_get_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{closed_port()}")
    monkeypatch.setenv("HTTP_PROXY", f"http://{closed_port()}")
    async with answering(says(200, '"8.5.0"')) as address, client(address) as http:
        assert await http.cluster_version() == "8.5.0"


async def test_closing_is_not_left_half_way(cluster: EmbeddedCluster) -> None:
    async with await PDClient.connect(ClusterOptions(pd=(cluster.pd_address,))) as pd:
        for steps in range(1, 9):
            client = PDHttp(pd)
            await asyncio.gather(*(client.cluster_version() for _ in range(3)))
            closing = asyncio.ensure_future(client.close())
            for _ in range(steps):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait({closing})
            del client, closing
            # A connection that nobody has closed complains now, which fails the test.
            gc.collect()
