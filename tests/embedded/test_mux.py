from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.mux import PREFACE
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.proto import methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import UserKey
from tests.embedded.pd_caller import PdCaller
from tests.support.certs import Authority, KeyPair

PING = b"GET /pd/api/v1/ping HTTP/1.1\r\nHost: pd\r\n\r\n"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1) as cluster:
        yield cluster


def client_context(authority: Authority, pair: KeyPair, directory: Path, alpn: list[str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.ca.decode())
    pem = directory / "client.pem"
    pem.write_bytes(pair.cert + pair.key)
    context.load_cert_chain(pem)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def credentials(authority: Authority, pair: KeyPair | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.ca, pair.key if pair else None, pair.cert if pair else None)


async def dial(cluster: EmbeddedCluster) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = cluster.pd_address.partition(":")
    return await asyncio.open_connection(host, int(port))


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


async def test_grpc_and_http_share_the_port(cluster: EmbeddedCluster) -> None:
    async with PdCaller(cluster) as pd, httpx.AsyncClient(base_url=f"http://{cluster.pd_address}") as http:
        for _ in range(3):
            members = await pd.call(methods.PD_GET_MEMBERS, pdpb_pb2.GetMembersRequest())
            assert members.header.cluster_id == cluster.topology.cluster_id
            assert (await http.get("/pd/api/v1/ping")).status_code == 200


@pytest.mark.parametrize("cut", [1, 3, len(PREFACE) - 1])
async def test_the_protocol_is_found_out_byte_by_byte(cluster: EmbeddedCluster, cut: int) -> None:
    for head, answer in ((PREFACE, b"\x00"), (PING, b"HTTP/1.1 200 OK")):
        reader, writer = await dial(cluster)
        for part in (head[:cut], head[cut:]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        if head is PREFACE:
            writer.write(bytes.fromhex("000000040000000000"))  # an empty SETTINGS frame
        assert (await reader.readexactly(len(answer))) == answer
        await hang_up(writer)


async def test_one_http_connection_serves_many_requests(cluster: EmbeddedCluster) -> None:
    reader, writer = await dial(cluster)
    for _ in range(3):
        writer.write(PING)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
    await hang_up(writer)


async def test_nonsense_is_refused_as_http(cluster: EmbeddedCluster) -> None:
    reader, writer = await dial(cluster)
    writer.write(b"\x16\x03\x01\x00\x05hello\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.0 400")
    await hang_up(writer)


async def test_large_answers_pass(tmp_path: Path) -> None:
    keys = [UserKey(b"%06d" % i + b"x" * 2000) for i in range(1500)]
    async with EmbeddedCluster(data_dir=tmp_path, stores=1, split_keys=keys) as cluster, PdCaller(cluster) as pd:
        requests = [pd.call(methods.PD_SCAN_REGIONS, pdpb_pb2.ScanRegionsRequest()) for _ in range(4)]
        for response in await asyncio.gather(*requests):
            assert [r.region.start_key for r in response.regions] == [b"", *keys]


async def test_stopping_ends_connections_of_every_kind(tmp_path: Path) -> None:
    cluster = EmbeddedCluster(data_dir=tmp_path, stores=1)
    await cluster.start()
    silent, silent_writer = await dial(cluster)
    http, http_writer = await dial(cluster)
    http_writer.write(PING)
    await http.readuntil(b"\r\n\r\n")
    pd = PdCaller(cluster)
    stream = pd.make(methods.PD_TSO)()
    header = pdpb_pb2.RequestHeader(cluster_id=cluster.topology.cluster_id)
    await stream.write(pdpb_pb2.TsoRequest(header=header, count=1))
    await stream.read()

    await asyncio.wait_for(cluster.stop(), 5)

    with pytest.raises(grpc.aio.AioRpcError):
        await stream.read()
    for reader in (silent, http):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 5)
    for writer in (silent_writer, http_writer):
        writer.close()
    await pd.channel.close()


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls_on_every_port(
    tmp_path: Path, authority: Authority, server_pair: KeyPair, client_pair: KeyPair, mutual: bool
) -> None:
    tls = ServerTls(cert=server_pair.cert, key=server_pair.key, ca=authority.ca if mutual else None)
    context = client_context(authority, client_pair, tmp_path, [])
    async with (
        EmbeddedCluster(data_dir=tmp_path / "data", stores=1, tls=tls) as cluster,
        httpx.AsyncClient(verify=context) as http,
    ):
        store = cluster.topology.stores[1]
        async with PdCaller(cluster, credentials=credentials(authority, client_pair if mutual else None)) as pd:
            members = await pd.call(methods.PD_GET_MEMBERS, pdpb_pb2.GetMembersRequest())
        assert members.leader.client_urls == [f"https://{cluster.pd_address}"]
        async with PdCaller(
            cluster, address=store.address, credentials=credentials(authority, client_pair if mutual else None)
        ) as tikv:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await tikv.channel.unary_unary("/tikvpb.Tikv/NoSuchMethod")(b"", timeout=10)
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert (await http.get(f"https://{cluster.pd_address}/pd/api/v1/ping")).status_code == 200
        assert (await http.get(f"https://{store.status_address}/status")).status_code == 200


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(["h2", "http/1.1"], "http/1.1"), (["h2"], "h2"), (["http/1.1"], "http/1.1"), ([], None)],
)
async def test_tls_clients_that_offer_both_get_http_1(
    tmp_path: Path,
    authority: Authority,
    server_pair: KeyPair,
    client_pair: KeyPair,
    offered: list[str],
    agreed: str | None,
) -> None:
    tls = ServerTls(cert=server_pair.cert, key=server_pair.key)
    async with EmbeddedCluster(data_dir=tmp_path / "data", stores=1, tls=tls) as cluster:
        host, _, port = cluster.pd_address.partition(":")
        context = client_context(authority, client_pair, tmp_path, offered)
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=host)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == agreed
        if agreed == "h2":
            writer.write(PREFACE + bytes.fromhex("000000040000000000"))
            assert (await reader.readexactly(4))[3] == 4  # the server's own SETTINGS
        else:
            writer.write(PING)
            assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        writer.transport.abort()


async def test_mutual_tls_turns_strangers_away(tmp_path: Path, authority: Authority, server_pair: KeyPair) -> None:
    tls = ServerTls(cert=server_pair.cert, key=server_pair.key, ca=authority.ca)
    stranger = Authority("another authority").issue("client")
    async with EmbeddedCluster(data_dir=tmp_path / "data", stores=1, tls=tls) as cluster:
        for pair in (None, stranger):
            async with PdCaller(cluster, credentials=credentials(authority, pair)) as pd:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await pd.call(methods.PD_GET_MEMBERS, pdpb_pb2.GetMembersRequest())
                assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_key_does_not_show(authority: Authority, server_pair: KeyPair) -> None:
    tls = ServerTls(cert=server_pair.cert, key=server_pair.key, ca=authority.ca)
    assert "PRIVATE" not in repr(tls)
