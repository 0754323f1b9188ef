"""gRPC servers of the embedded cluster: handlers made from the table of methods, and settings that suit the clients."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.fault_calls import FaultInterceptor
from airflow_provider_tikvbr.embedded.faults import Faults
from airflow_provider_tikvbr.proto.methods import Method

# A coroutine ``(request, context) -> response`` for a single answer, an async generator of responses for a stream; the
# request is an async iterator where the client streams.
Handler = Callable[[Any, Any], Coroutine[Any, Any, Message]] | Callable[[Any, Any], AsyncIterator[Message]]

# Go clients ping every ten seconds, also without a call; a server of the C core would end such a connection with
# "too many pings" unless told otherwise. TiKV sets the same limits away (TiKV, ``src/server/server.rs``).
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1),
    ("grpc.keepalive_permit_without_calls", 1),
    # Two servers must not share a port by accident.
    ("grpc.so_reuseport", 0),
)


def generic_handlers(table: Mapping[Method[Any, Any], Handler]) -> tuple[grpc.GenericRpcHandler, ...]:
    """The handlers of some methods, one for each service; other methods of the services answer UNIMPLEMENTED."""
    handlers = []
    methods = sorted(table, key=lambda m: m.path)
    for service, group in itertools.groupby(methods, key=lambda m: m.service):
        handlers.append(grpc.method_handlers_generic_handler(service, {m.name: _handler(m, table[m]) for m in group}))
    return tuple(handlers)


def _handler(method: Method[Any, Any], behaviour: Handler) -> grpc.RpcMethodHandler:
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streams, method.server_streams]
    return make(
        behaviour,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """TLS of all servers of the cluster, in PEM.

    :param cert: the servers' certificate, with the host that clients dial among its alternative names.
    :param key: its private key.
    :param ca: the authority whose client certificates are asked for; None to let clients in without one.
    """

    cert: bytes
    key: bytes
    ca: bytes | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"ServerTls(client_certificates={self.ca is not None})"

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server."""
        return grpc.ssl_server_credentials(
            [(self.key, self.cert)], root_certificates=self.ca, require_client_auth=self.ca is not None
        )


class GrpcServer:
    """One gRPC server.

    :param handlers: what it serves.
    :param faults: what goes wrong at its calls.
    :param store_id: the store that it belongs to; None for PD.
    :param pd_member: name of the member of PD that it belongs to; empty for a store.
    """

    def __init__(
        self,
        *,
        handlers: Iterable[grpc.GenericRpcHandler],
        faults: Faults,
        store_id: int | None = None,
        pd_member: str = "",
    ) -> None:
        interceptor = FaultInterceptor(faults, store_id=store_id, pd_member=pd_member)
        self._server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[interceptor])
        self._server.add_generic_rpc_handlers(tuple(handlers))

    async def start(self, address: str, *, tls: ServerTls | None = None) -> int:
        """Listen.

        :param address: ``host:port``, port 0 for any, or ``unix:path``.
        :return: the port, where the address has one.
        :raises OSError: the address is taken.
        """
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, tls.credentials())
        except RuntimeError as err:
            raise OSError(f"cannot listen on {address}") from err
        await self._server.start()
        return int(port)

    async def stop(self) -> None:
        """Stop; calls under way are cancelled."""
        await self._server.stop(None)
