from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    PDUnavailableError,
    ProtocolError,
    StoreUnavailableError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, kvrpcpb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.channel import Connection, channel_options
from airflow_provider_tikvbr.tikv.options import GrpcOptions, TlsOptions
from tests.support.certs import Authority, KeyPair
from tests.tikv.servers import closed_port, serving, silent_port, wire

REQUEST = kvrpcpb_pb2.RawGetRequest(key=b"k")


async def raw_get(request: Any, _context: Any) -> kvrpcpb_pb2.RawGetResponse:
    return kvrpcpb_pb2.RawGetResponse(value=request.key * 2)


async def never(_request: Any, _context: Any) -> kvrpcpb_pb2.RawGetResponse:
    await asyncio.Event().wait()
    return kvrpcpb_pb2.RawGetResponse()


def connect(address: str, *, tls: TlsOptions | None = None, store_id: int | None = 4, **grpc: Any) -> Connection:
    return Connection(address, tls=tls, options=GrpcOptions(**grpc), store_id=store_id)


def test_a_connection_needs_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        connect("127.0.0.1:1")


def test_options_reach_the_channel() -> None:
    options = dict(channel_options(GrpcOptions(keepalive_time_s=7, keepalive_timeout_s=2, max_receive_bytes=99)))
    assert options["grpc.keepalive_time_ms"] == 7000
    assert options["grpc.keepalive_timeout_ms"] == options["grpc.http2.ping_timeout_ms"] == 2000
    assert options["grpc.max_receive_message_length"] == 99
    assert options["grpc.use_local_subchannel_pool"] == 1
    assert options["grpc.max_reconnect_backoff_ms"] <= 3000


async def test_hundreds_of_calls_at_once() -> None:
    async with serving({methods.KV_RAW_GET: raw_get}) as address:
        connection = connect(address)
        answers = await asyncio.gather(
            *(
                connection.call(methods.KV_RAW_GET, kvrpcpb_pb2.RawGetRequest(key=b"%d" % n), timeout_s=30)
                for n in range(600)
            )
        )
        assert [a.value for a in answers] == [b"%d" % n * 2 for n in range(600)]
        await connection.close()


async def test_nobody_listens() -> None:
    connection = connect(closed_port())
    with pytest.raises(StoreUnavailableError, match=r"store 4 \(127\.0\.0\.1:\d+\) is not available") as caught:
        await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)
    assert caught.value.code == "UNAVAILABLE"
    await connection.close()


async def test_a_call_has_a_time_limit() -> None:
    async with serving({methods.KV_RAW_GET: never}) as address:
        connection = connect(address)
        with pytest.raises(StoreUnavailableError, match="did not answer in time"):
            await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=0.05)
        await connection.close()


async def test_a_server_that_comes_back_is_found_again() -> None:
    async with serving({methods.KV_RAW_GET: raw_get}) as address:
        connection = connect(address)
        await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)
    with pytest.raises(StoreUnavailableError):
        await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)
    async with serving({methods.KV_RAW_GET: raw_get}, port=int(address.rpartition(":")[2])):
        for _ in range(100):
            try:
                answer = await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)
                break
            except StoreUnavailableError:
                await asyncio.sleep(0.1)
        assert answer.value == b"kk"
    await connection.close()


async def test_a_message_that_is_too_large_is_no_reason_to_try_again() -> None:
    async def large(_request: Any, _context: Any) -> kvrpcpb_pb2.RawGetResponse:
        return kvrpcpb_pb2.RawGetResponse(value=bytes(6 << 20))

    async with serving({methods.KV_RAW_GET: large}) as address:
        small = connect(address, max_receive_bytes=1000)
        with pytest.raises(ProtocolError, match="larger than max"):
            await small.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)
        await small.close()
        # Without a limit, also beyond the four MiB that gRPC would allow by itself.
        any_size = connect(address)
        assert len((await any_size.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)).value) == 6 << 20
        await any_size.close()


async def test_a_message_that_is_too_large_to_send() -> None:
    async with serving({methods.KV_RAW_GET: raw_get}) as address:
        small = connect(address, max_send_bytes=1000)
        with pytest.raises(ProtocolError, match="larger than max"):
            await small.call(methods.KV_RAW_GET, kvrpcpb_pb2.RawGetRequest(key=bytes(2000)), timeout_s=10)
        await small.close()


async def test_a_dead_connection_is_noticed_while_a_stream_is_silent() -> None:
    """A store may be silent for minutes while it backs up a region; only a ping tells it from one that is gone."""

    async def silent(_request: Any, _context: Any) -> AsyncIterator[brpb_pb2.BackupResponse]:
        yield brpb_pb2.BackupResponse(start_key=b"a")
        await asyncio.Event().wait()

    async with serving({methods.BACKUP: silent}) as address, wire(address) as (through, cut):
        connection = connect(through, keepalive_time_s=0.2, keepalive_timeout_s=0.2)
        stream = connection.stream(methods.BACKUP, brpb_pb2.BackupRequest())
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        # Pings are answered while the wire is whole.
        await asyncio.wait([waiting], timeout=1)
        assert not waiting.done()
        cut.set()
        with pytest.raises(StoreUnavailableError, match=r"[Pp]ing|[Kk]eepalive"):
            await asyncio.wait_for(waiting, 20)
        await connection.close()


# --- cancellation and closing ---


async def test_cancelling_a_task_reaches_the_server() -> None:
    entered, left = asyncio.Event(), asyncio.Event()

    async def wait(_request: Any, _context: Any) -> kvrpcpb_pb2.RawGetResponse:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return kvrpcpb_pb2.RawGetResponse()

    async with serving({methods.KV_RAW_GET: wait}) as address:
        connection = connect(address)
        task = asyncio.create_task(connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=60))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(left.wait(), 10)
        await connection.close()


async def test_closing_fails_the_calls_under_way_and_later_ones() -> None:
    async with serving({methods.KV_RAW_GET: never}) as address:
        connection = connect(address)
        task = asyncio.create_task(connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=60))
        await asyncio.sleep(0.05)
        await connection.close()
        await connection.close()
        # Python 3.10 cannot tell a closed channel from a cancelled task.
        with pytest.raises((StoreUnavailableError, asyncio.CancelledError)):
            await task
        with pytest.raises(StoreUnavailableError, match="is closed"):
            await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=60)


def test_many_loops_one_after_another() -> None:
    async def once() -> bytes:
        async with serving({methods.KV_RAW_GET: raw_get}) as address:
            connection = connect(address)
            try:
                return (await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)).value
            finally:
                await connection.close()

    assert [asyncio.run(once()) for _ in range(3)] == [b"kk"] * 3
    gc.collect()


# --- streams ---


async def numbers(request: Any, context: Any) -> AsyncIterator[brpb_pb2.BackupResponse]:
    for n in range(request.concurrency):
        yield brpb_pb2.BackupResponse(start_key=b"%d" % n)
    if request.cf:
        await context.abort(grpc.StatusCode.UNKNOWN, f'InvalidCf {{ cf: "{request.cf}" }}')


async def drain(stream: AsyncIterator[brpb_pb2.BackupResponse], into: list[bytes]) -> None:
    async for response in stream:
        into.append(response.start_key)


async def test_a_stream_gives_every_answer_and_ends() -> None:
    async with serving({methods.BACKUP: numbers}) as address:
        connection = connect(address)
        stream = connection.stream(methods.BACKUP, brpb_pb2.BackupRequest(concurrency=2000))
        assert [r.start_key async for r in stream] == [b"%d" % n for n in range(2000)]
        await connection.close()


async def test_a_stream_gives_what_came_before_its_error() -> None:
    async with serving({methods.BACKUP: numbers}) as address:
        connection = connect(address)
        got: list[bytes] = []
        with pytest.raises(ProtocolError, match="InvalidCf"):
            await drain(connection.stream(methods.BACKUP, brpb_pb2.BackupRequest(concurrency=2, cf="nope")), got)
        assert got == [b"0", b"1"]
        await connection.close()


async def test_closing_the_iterator_cancels_the_call() -> None:
    left = asyncio.Event()

    async def endless(_request: Any, _context: Any) -> AsyncIterator[brpb_pb2.BackupResponse]:
        try:
            while True:
                yield brpb_pb2.BackupResponse()
                await asyncio.sleep(0.01)
        finally:
            left.set()

    async with serving({methods.BACKUP: endless}) as address:
        connection = connect(address)
        async with aclosing(connection.stream(methods.BACKUP, brpb_pb2.BackupRequest())) as stream:
            async for _ in stream:
                break
        await asyncio.wait_for(left.wait(), 10)
        await connection.close()


async def test_a_silent_stream_is_given_up() -> None:
    async def silent(_request: Any, _context: Any) -> AsyncIterator[brpb_pb2.BackupResponse]:
        yield brpb_pb2.BackupResponse(start_key=b"a")
        await asyncio.Event().wait()

    async with serving({methods.BACKUP: silent}) as address:
        connection = connect(address)
        got: list[bytes] = []
        with pytest.raises(StoreUnavailableError, match=r"store 4 .* was silent for 0\.1 s"):
            await drain(connection.stream(methods.BACKUP, brpb_pb2.BackupRequest(), idle_timeout_s=0.1), got)
        assert got == [b"a"]
        await connection.close()


async def test_a_stream_that_breaks() -> None:
    started = asyncio.Event()

    async def silent(_request: Any, _context: Any) -> AsyncIterator[brpb_pb2.BackupResponse]:
        yield brpb_pb2.BackupResponse(start_key=b"a")
        started.set()
        await asyncio.Event().wait()

    async with serving({methods.BACKUP: silent}) as address:
        connection = connect(address)
        stream = connection.stream(methods.BACKUP, brpb_pb2.BackupRequest())
        await anext(stream)
        await started.wait()
    with pytest.raises(StoreUnavailableError):
        await anext(stream)
    await connection.close()


async def test_exchange_asks_once() -> None:
    seen: list[int] = []

    async def tso(requests: Any, _context: Any) -> AsyncIterator[pdpb_pb2.TsoResponse]:
        async for request in requests:
            seen.append(request.count)
            yield pdpb_pb2.TsoResponse(count=request.count)

    async with serving({methods.PD_TSO: tso}) as address:
        connection = connect(address, store_id=None)
        answer = await connection.exchange(methods.PD_TSO, pdpb_pb2.TsoRequest(count=5), timeout_s=10)
        assert (answer.count, seen) == (5, [5])
        await connection.close()


async def test_exchange_without_an_answer() -> None:
    async def tso(requests: Any, _context: Any) -> AsyncIterator[pdpb_pb2.TsoResponse]:
        async for _ in requests:
            return
        yield pdpb_pb2.TsoResponse()

    async with serving({methods.PD_TSO: tso}) as address:
        connection = connect(address, store_id=None)
        with pytest.raises(PDUnavailableError, match="ended Tso without an answer"):
            await connection.exchange(methods.PD_TSO, pdpb_pb2.TsoRequest(count=5), timeout_s=10)
        await connection.close()


async def test_exchange_with_nobody() -> None:
    connection = connect(closed_port(), store_id=None)
    with pytest.raises(PDUnavailableError):
        await connection.exchange(methods.PD_TSO, pdpb_pb2.TsoRequest(count=5), timeout_s=10)
    await connection.close()


async def test_a_port_that_says_nothing() -> None:
    async with silent_port() as address:
        connection = connect(address, store_id=None)
        with pytest.raises(PDUnavailableError, match="did not answer in time"):
            await connection.exchange(methods.PD_TSO, pdpb_pb2.TsoRequest(count=5), timeout_s=0.2)
        await connection.close()


# --- TLS ---


async def test_tls_with_the_ca_alone_and_mutual(
    authority: Authority, server_pair: KeyPair, client_pair: KeyPair
) -> None:
    mine = TlsOptions(ca=authority.ca, cert=client_pair.cert, key=client_pair.key)
    for server_ca, tls in ((None, TlsOptions(ca=authority.ca)), (None, mine), (authority.ca, mine)):
        server = ServerTls(cert=server_pair.cert, key=server_pair.key, ca=server_ca)
        async with serving({methods.KV_RAW_GET: raw_get}, tls=server) as address:
            connection = connect(address, tls=tls)
            assert (await connection.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)).value == b"kk"
            await connection.close()


async def test_two_connections_with_other_certificates_do_not_mix(authority: Authority, server_pair: KeyPair) -> None:
    server = ServerTls(cert=server_pair.cert, key=server_pair.key)
    async with serving({methods.KV_RAW_GET: raw_get}, tls=server) as address:
        good = connect(address, tls=TlsOptions(ca=authority.ca))
        assert (await good.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)).value == b"kk"
        bad = connect(address, tls=TlsOptions(ca=Authority("other").ca))
        with pytest.raises(AuthenticationError):
            await bad.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)
        assert (await good.call(methods.KV_RAW_GET, REQUEST, timeout_s=10)).value == b"kk"
        await good.close()
        await bad.close()
