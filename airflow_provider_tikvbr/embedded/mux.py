"""PD's one port for two protocols: gRPC (HTTP/2) and the HTTP/1.1 API, plain or behind TLS.

A client that speaks HTTP/2 opens with a fixed preface (RFC 9113, section 3.4); its connection is passed on to the gRPC
server behind a Unix socket. Every other connection is handed to the HTTP server in this process. Behind TLS the
protocol is agreed on by ALPN: HTTP/1.1 is preferred, since Go's HTTP client offers both and gRPC clients offer h2 alone.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ALPN = ["http/1.1", "h2"]


class Mux:
    """Listens on one port and sorts connections.

    :param grpc_path: path of the Unix socket of the gRPC server.
    :param http_factory: makes the protocol of one HTTP connection.
    :param tls: terminates TLS, or None for plain connections; its ALPN protocols are set here.
    """

    def __init__(
        self, *, grpc_path: str, http_factory: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None
    ) -> None:
        self.grpc_path = grpc_path
        self.http_factory = http_factory
        self._tls = tls
        if tls is not None:
            tls.set_alpn_protocols(ALPN)
        self._server: asyncio.Server | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.transports: set[asyncio.BaseTransport] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen.

        :param port: 0 for any.
        :return: the port.
        :raises OSError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Door(self), host, port, ssl=self._tls)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Close the port and every connection, but those that the HTTP server has: closing them is its business."""
        if self._server is not None:
            self._server.close()
        for task in list(self.tasks):
            task.cancel()
        for transport in list(self.transports):
            _abort(transport)

    async def wait_closed(self) -> None:
        """Wait until the last connection is gone; call it when the HTTP server has closed its own."""
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()


class _Tracked(asyncio.Protocol):
    """A connection that the mux knows of, so that it can be closed."""

    def __init__(self, mux: Mux) -> None:
        self._mux = mux
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._mux.transports.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._mux.transports.discard(self._transport)


class _Door(_Tracked):
    """A new connection: waits for as many bytes as it takes to know the protocol."""

    def __init__(self, mux: Mux) -> None:
        super().__init__(mux)
        self._head = b""
        self._sorted = False

    def data_received(self, data: bytes) -> None:
        self._head += data
        client = self._transport
        if client is None or self._sorted or (len(self._head) < len(PREFACE) and PREFACE.startswith(self._head)):
            return
        self._sorted = True
        if self._head.startswith(PREFACE):
            client.pause_reading()
            task = asyncio.get_running_loop().create_task(self._pass_on(client))
            self._mux.tasks.add(task)
            task.add_done_callback(self._mux.tasks.discard)
            return
        self._mux.transports.discard(client)
        http = self._mux.http_factory()
        client.set_protocol(http)
        http.connection_made(client)
        http.data_received(self._head)

    async def _pass_on(self, client: asyncio.Transport) -> None:
        outer = _Pipe(self._mux)
        try:
            backend, inner = await asyncio.get_running_loop().create_unix_connection(
                lambda: _Pipe(self._mux), self._mux.grpc_path
            )
        except OSError:
            client.abort()
            return
        client.set_protocol(outer)
        outer.connection_made(client)
        outer.other, inner.other = backend, client
        backend.write(self._head)
        if client.is_closing():
            backend.close()
        else:
            client.resume_reading()


class _Pipe(_Tracked):
    """One end of a connection that is passed on: what comes in goes out at the other end, no faster than it is taken."""

    def __init__(self, mux: Mux) -> None:
        super().__init__(mux)
        self.other: asyncio.Transport | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.other is not None:
            self.other.close()

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.is_closing():
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.is_closing():
            self.other.resume_reading()


def _abort(transport: asyncio.BaseTransport) -> None:
    # A TLS transport waits for the other side's farewell when it is closed; abort does not.
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
    else:
        transport.close()
