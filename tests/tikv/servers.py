"""Small real servers for what the embedded cluster does not do: several PD members, hung ones, odd answers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import grpc

from airflow_provider_tikvbr.embedded.serving import SERVER_OPTIONS, Handler, ServerTls, generic_handlers
from airflow_provider_tikvbr.proto import methods, pdpb_pb2
from airflow_provider_tikvbr.proto.methods import Method

# Bound and never listening.
_HELD: list[socket.socket] = []


@asynccontextmanager
async def serving(
    table: Mapping[Method[Any, Any], Handler], *, tls: ServerTls | None = None, port: int = 0
) -> AsyncIterator[str]:
    """A gRPC server with some methods; gives its address."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(generic_handlers(table))
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, tls.credentials()) if tls else server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)


class Group:
    """PD members of one cluster, of which one leads.

    :param size: number of members.
    :param cluster_id: what they answer.
    """

    def __init__(self, *, size: int = 3, cluster_id: int = 77) -> None:
        self.size = size
        self.cluster_id = cluster_id
        self.leader: int | None = 0
        self.addresses: list[str] = []
        self.served: list[int] = []
        self.hung = asyncio.Event()
        self._servers: list[grpc.aio.Server] = []

    async def __aenter__(self) -> Group:
        for at in range(self.size):
            server = grpc.aio.server(options=SERVER_OPTIONS)
            server.add_generic_rpc_handlers(generic_handlers(self._table(at)))
            self.addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            self._servers.append(server)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hung.set()
        await asyncio.gather(*(server.stop(None) for server in self._servers))

    async def kill(self, at: int) -> None:
        """Stop one member for good."""
        await self._servers[at].stop(None)

    def _table(self, at: int) -> dict[Method[Any, Any], Handler]:
        def header() -> pdpb_pb2.ResponseHeader:
            return pdpb_pb2.ResponseHeader(cluster_id=self.cluster_id)

        def member(number: int) -> pdpb_pb2.Member:
            return pdpb_pb2.Member(
                name=f"pd{number}", client_urls=[f"http://{self.addresses[number]}"], binary_version="v8.5.0"
            )

        async def get_members(_request: Any, _context: Any) -> pdpb_pb2.GetMembersResponse:
            return pdpb_pb2.GetMembersResponse(
                header=header(),
                members=[member(number) for number in range(self.size)],
                leader=member(self.leader) if self.leader is not None else None,
            )

        async def get_safe_point(_request: Any, context: Any) -> pdpb_pb2.GetGCSafePointResponse:
            if self.leader != at:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "not leader")
            self.served.append(at)
            return pdpb_pb2.GetGCSafePointResponse(header=header(), safe_point=at)

        async def tso(requests: Any, context: Any) -> AsyncIterator[pdpb_pb2.TsoResponse]:
            async for request in requests:
                if self.leader != at:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "not leader")
                yield pdpb_pb2.TsoResponse(
                    header=header(), count=request.count, timestamp=pdpb_pb2.Timestamp(physical=1000, logical=at)
                )

        return {
            methods.PD_GET_MEMBERS: get_members,
            methods.PD_GET_GC_SAFE_POINT: get_safe_point,
            methods.PD_TSO: tso,
        }


@asynccontextmanager
async def silent_port() -> AsyncIterator[str]:
    """A port that takes connections and never says a word."""
    waiting: list[asyncio.StreamWriter] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting.append(writer)
        await reader.read()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in waiting:
            writer.transport.abort()
        await server.wait_closed()


@asynccontextmanager
async def wire(address: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A way to a server that can be cut without either side being told: its address, and what cuts it when it is set."""
    cut = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []
    tasks: set[asyncio.Task[None]] = set()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if not cut.is_set():
                writer.write(data)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = address.rpartition(":")
        inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
        writers.extend((writer, inner_writer))
        for one in (pass_on(reader, inner_writer), pass_on(inner_reader, writer)):
            tasks.add(asyncio.create_task(one))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", cut
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


def closed_port() -> str:
    """An address where nobody listens, and nobody can come to listen: bound for as long as the tests run."""
    # A port that was only found to be free is soon given to another server.
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return f"127.0.0.1:{held.getsockname()[1]}"
