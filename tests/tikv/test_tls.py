"""TLS on each of the four ways to a cluster: PD's gRPC and HTTP, a store's gRPC and its status server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from airflow_provider_tikvbr.embedded.node import ssl_context
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.exceptions import AuthenticationError
from airflow_provider_tikvbr.proto import import_sstpb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.certificates import Certificates
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.options import ClusterOptions, GrpcOptions, TlsOptions
from airflow_provider_tikvbr.tikv.pd import PDClient
from airflow_provider_tikvbr.tikv.pd_http import PDHttp
from airflow_provider_tikvbr.tikv.status import store_api_version
from airflow_provider_tikvbr.tikv.store import StoreClient
from tests.support.certs import Authority, KeyPair
from tests.tikv.servers import serving

# How long a refusal may take: far less than any time limit of a call or a job.
SOON_S = 15.0


@asynccontextmanager
async def pd_grpc(tls: ServerTls) -> AsyncIterator[str]:
    told: list[str] = []

    async def get_members(_request: Any, _context: Any) -> pdpb_pb2.GetMembersResponse:
        leader = pdpb_pb2.Member(client_urls=[f"https://{told[0]}"])
        return pdpb_pb2.GetMembersResponse(
            header=pdpb_pb2.ResponseHeader(cluster_id=7), members=[leader], leader=leader
        )

    async with serving({methods.PD_GET_MEMBERS: get_members}, tls=tls) as address:
        told.append(address)
        yield address


async def ask_pd_grpc(address: str, tls: TlsOptions) -> None:
    async with await PDClient.connect(ClusterOptions(pd=(address,), tls=tls, connect_timeout_s=SOON_S)) as pd:
        assert pd.cluster_id == 7


@asynccontextmanager
async def store_grpc(tls: ServerTls) -> AsyncIterator[str]:
    async def switch_mode(_request: Any, _context: Any) -> import_sstpb_pb2.SwitchModeResponse:
        return import_sstpb_pb2.SwitchModeResponse()

    async with serving({methods.IMPORT_SWITCH_MODE: switch_mode}, tls=tls) as address:
        yield address


async def ask_store_grpc(address: str, tls: TlsOptions) -> None:
    client = StoreClient(Store(id=4, address=address), tls=tls, options=GrpcOptions())
    try:
        await client.switch_mode(import_mode=False)
    finally:
        await client.close()


@asynccontextmanager
async def http(tls: ServerTls) -> AsyncIterator[str]:
    async def version(_request: web.Request) -> web.Response:
        return web.json_response("8.5.0")

    async def config(_request: web.Request) -> web.Response:
        return web.json_response({"storage": {"api-version": 2, "enable-ttl": True}})

    app = web.Application()
    app.router.add_get("/pd/api/v1/config/cluster-version", version)
    app.router.add_get("/config", config)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context(tls)).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def ask_pd_http(address: str, tls: TlsOptions) -> None:
    options = ClusterOptions(pd=(address,), tls=tls)
    pd = SimpleNamespace(members=(address,), leader_address=address, options=options, certificates=Certificates(tls))
    client = PDHttp(cast("PDClient", pd))
    try:
        assert await client.cluster_version() == "8.5.0"
    finally:
        await client.close()


async def ask_status(address: str, tls: TlsOptions) -> None:
    await store_api_version(Store(id=4, address="127.0.0.1:1", status_address=address), tls)


@dataclass(frozen=True)
class Way:
    """One way to a cluster: a server, what asks it, and how messages call it."""

    serve: Callable[[ServerTls], AbstractAsyncContextManager[str]]
    ask: Callable[[str, TlsOptions], Awaitable[None]]
    name: str


WAYS = [
    pytest.param(Way(pd_grpc, ask_pd_grpc, "{}"), id="pd-grpc"),
    pytest.param(Way(http, ask_pd_http, "the HTTP service of PD at {}"), id="pd-http"),
    pytest.param(Way(store_grpc, ask_store_grpc, "store 4 ({})"), id="store-grpc"),
    pytest.param(Way(http, ask_status, "the status server of store 4 ({})"), id="store-status"),
]


def client(ca: Authority, pair: KeyPair | None = None) -> TlsOptions:
    return TlsOptions(ca=ca.ca, cert=pair.cert if pair else None, key=pair.key if pair else None)


def server(pair: KeyPair, clients: Authority | None = None) -> ServerTls:
    return ServerTls(cert=pair.cert, key=pair.key, ca=clients.ca if clients else None)


async def refusal(way: Way, served: ServerTls, tls: TlsOptions) -> str:
    """Why the server is not reached, without the name of the server."""
    async with way.serve(served) as address:
        with pytest.raises(AuthenticationError) as caught:
            await asyncio.wait_for(way.ask(address, tls), SOON_S)
        name = way.name.format(address)
    message = str(caught.value)
    assert message.startswith(f"{name} ")
    assert "\n" not in message
    assert caught.value.address == address
    return message.removeprefix(f"{name} ")


@pytest.mark.parametrize("way", WAYS)
async def test_the_ca_alone_and_mutual(
    way: Way, authority: Authority, server_pair: KeyPair, client_pair: KeyPair
) -> None:
    async with way.serve(server(server_pair)) as address:
        await way.ask(address, client(authority))
        await way.ask(address, client(authority, client_pair))
    async with way.serve(server(server_pair, authority)) as address:
        await way.ask(address, client(authority, client_pair))


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_whose_certificate_is_wrong(way: Way, authority: Authority, server_pair: KeyPair) -> None:
    message = await refusal(way, server(server_pair), client(Authority("other")))
    assert message.startswith("shows a certificate that the given CA has not signed (")
    message = await refusal(way, server(authority.issue("tikv.example")), client(authority))
    assert message.startswith("shows a certificate for other names (")
    assert "127.0.0.1" in message
    message = await refusal(way, server(authority.issue("127.0.0.1", expired=True)), client(authority))
    assert message == "shows a certificate that has expired: renew it there"


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_whose_certificate_is_wrong(way: Way, authority: Authority, server_pair: KeyPair) -> None:
    served = server(server_pair, authority)
    message = await refusal(way, served, client(authority))
    assert message == "wants a client certificate: give cert and key besides ca"
    message = await refusal(way, served, client(authority, Authority("other").issue("client")))
    assert message == "refuses our client certificate: give one that its CA has signed"
    message = await refusal(way, served, client(authority, authority.issue("client", expired=True)))
    assert message.startswith("refuses our client certificate, which has expired at ")
    assert message.endswith(" UTC: renew it")
