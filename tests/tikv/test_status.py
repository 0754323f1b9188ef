from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from airflow_provider_tikvbr.exceptions import AuthenticationError, ProtocolError, StoreUnavailableError
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.options import TlsOptions
from airflow_provider_tikvbr.tikv.status import api_version_of, status_address, store_api_version
from tests.support.certs import Authority
from tests.tikv.servers import closed_port, silent_port


@asynccontextmanager
async def status_server(status: int, text: str) -> AsyncIterator[Store]:
    """The status server of store 4, which answers ``/config`` in one way."""

    async def config(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_get("/config", config)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Store(id=4, address="127.0.0.1:1", status_address=f"127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("storage", "version"),
    [
        ({"api-version": 1, "enable-ttl": False}, ApiVersion.V1),
        ({"api-version": 1, "enable-ttl": True}, ApiVersion.V1TTL),
        ({"api-version": 2, "enable-ttl": True}, ApiVersion.V2),
        ({"api-version": 0}, ApiVersion.V1),
        # Stores before 6.1 know TTL, but no API version.
        ({"enable-ttl": True}, ApiVersion.V1TTL),
        ({}, ApiVersion.V1),
    ],
)
def test_api_version_of_a_configuration(storage: dict[str, Any], version: ApiVersion) -> None:
    assert api_version_of({"storage": storage, "server": {}}) is version


@pytest.mark.parametrize(
    "config", [{}, {"storage": 1}, {"storage": {"api-version": 3}}, {"storage": {"api-version": "2"}}]
)
def test_what_is_no_configuration(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"storage\.api-version is|not a TiKV configuration"):
        api_version_of(config)


async def test_a_store_is_asked() -> None:
    async with status_server(200, json.dumps({"storage": {"api-version": 2, "enable-ttl": True}})) as store:
        assert await store_api_version(store, None) is ApiVersion.V2


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (200, "hello", ProtocolError),
        (200, "{}", ProtocolError),
        (200, "[]", ProtocolError),
        (404, "", ProtocolError),
        (403, "", AuthenticationError),
        (500, "", StoreUnavailableError),
    ],
)
async def test_other_answers(status: int, text: str, kind: type[Exception]) -> None:
    async with status_server(status, text) as store:
        with pytest.raises(kind, match=r"the status server of store 4 \(127\.0\.0\.1:"):
            await store_api_version(store, None)


async def test_no_answer() -> None:
    store = Store(id=4, address="127.0.0.1:1", status_address=closed_port())
    with pytest.raises(StoreUnavailableError, match=r"store 4 .* does not answer: "):
        await store_api_version(store, None)
    async with silent_port() as address:
        store = Store(id=4, address="127.0.0.1:1", status_address=address)
        with pytest.raises(StoreUnavailableError, match="does not answer: ReadTimeout"):
            await store_api_version(store, None, timeout_s=0.1)


async def test_a_status_server_that_is_switched_off() -> None:
    with pytest.raises(StoreUnavailableError, match=r"store 4 \(10\.1\.1\.1:20160\) tells PD no address"):
        await store_api_version(Store(id=4, address="10.1.1.1:20160"), None)


async def test_tls_at_a_plain_port(authority: Authority) -> None:
    async with status_server(200, "{}") as store:
        with pytest.raises(AuthenticationError, match="does not speak TLS: drop the certificates"):
            await store_api_version(store, TlsOptions(ca=authority.ca))


@pytest.mark.parametrize(
    ("advertised", "address"),
    [
        ("tikv-4:20180", "tikv-4:20180"),
        ("0.0.0.0:20180", "10.1.1.1:20180"),
        ("[::]:20180", "10.1.1.1:20180"),
        (":20180", "10.1.1.1:20180"),
    ],
)
def test_a_status_server_that_advertises_no_host(advertised: str, address: str) -> None:
    assert status_address(Store(id=4, address="10.1.1.1:20160", status_address=advertised)) == address
