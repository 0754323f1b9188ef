"""One gRPC connection to one server: options, TLS, calls by the method table, errors of this package.

A connection belongs to the event loop it was made in and is not used across a fork: nothing here exists at import time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from airflow_provider_tikvbr.exceptions import PDUnavailableError, ProtocolError, StoreUnavailableError, TikvBrError
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.tikv import errors
from airflow_provider_tikvbr.tikv.options import GrpcOptions, TlsOptions

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


def channel_options(options: GrpcOptions) -> list[tuple[str, int]]:
    """The settings of a channel, by the names that gRPC's core knows."""
    return [
        ("grpc.keepalive_time_ms", round(options.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(options.keepalive_timeout_s * 1000)),
        # PD closes connections that ping without a call; a backup stream that is silent for minutes must be pinged.
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", options.max_receive_bytes),
        ("grpc.max_send_message_length", options.max_send_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # In gRPC's core this is also the time limit of one attempt to connect.
        ("grpc.min_reconnect_backoff_ms", round(options.connect_timeout_s * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(options.max_reconnect_backoff_s * 1000)),
        # Connections with other TLS settings, or of another loop, to the same address must not be shared.
        ("grpc.use_local_subchannel_pool", 1),
        # A restarted pod comes back with another address under the same name.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        ("grpc.service_config_disable_resolution", 1),
        # A cluster is on the inner network; a proxy set for the way out of it must not catch these connections.
        ("grpc.enable_http_proxy", 0),
    ]


def open_channel(address: str, tls: TlsOptions | None, options: GrpcOptions) -> grpc.aio.Channel:
    """Make a channel; it connects at the first call.

    :param address: ``host:port``.
    :param tls: certificates; None means a plain connection.
    """
    target = f"dns:///{address}"
    if tls is None:
        return grpc.aio.insecure_channel(target, options=channel_options(options))
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
    return grpc.aio.secure_channel(target, credentials, options=channel_options(options))


class Connection:
    """A channel, whom it leads to, and calls on it. Create it inside the running loop and close it.

    :param address: ``host:port`` of the server.
    :param tls: certificates; None means a plain connection.
    :param options: settings of the channel.
    :param store_id: the store behind the address; None for PD.
    """

    def __init__(
        self, address: str, *, tls: TlsOptions | None, options: GrpcOptions, store_id: int | None = None
    ) -> None:
        asyncio.get_running_loop()
        self.address = address
        self.store_id = store_id
        self._channel = open_channel(address, tls, options)
        self._callables: dict[str, Callable[..., Any]] = {}
        self._closed = False

    async def call(self, method: Method[Req, Resp], request: Req, *, timeout_s: float) -> Resp:
        """Make a unary call.

        :param method: an entry of the method table.
        :param timeout_s: how long it may take, in seconds.
        :raises TikvBrError: as :func:`errors.from_grpc` classifies the failure.
        """
        self._check_open(method)
        with self._classified(method):
            response: Resp = await self._callable(method)(request, timeout=timeout_s)
        return response

    async def stream(
        self, method: Method[Req, Resp], request: Req, *, idle_timeout_s: float | None = None
    ) -> AsyncGenerator[Resp, None]:
        """Make a call that answers with a stream. Closing the iterator cancels the call.

        :param method: an entry of the method table.
        :param idle_timeout_s: how long the server may be silent between two answers; None means for ever.
        :raises TikvBrError: as :func:`errors.from_grpc` classifies the failure.
        """
        self._check_open(method)
        call = self._callable(method)(request)
        try:
            while True:
                with self._classified(method):
                    try:
                        response = await asyncio.wait_for(call.read(), idle_timeout_s)
                    except asyncio.TimeoutError:
                        raise self._silent(method, idle_timeout_s) from None
                if response is grpc.aio.EOF:
                    return
                yield response
        finally:
            call.cancel()

    async def exchange(self, method: Method[Req, Resp], request: Req, *, timeout_s: float) -> Resp:
        """Open a stream in both directions for one question and its first answer.

        :param method: an entry of the method table.
        :param timeout_s: how long it may take, in seconds.
        :raises TikvBrError: as :func:`errors.from_grpc` classifies the failure.
        """
        self._check_open(method)
        call = self._callable(method)(timeout=timeout_s)
        try:
            with self._classified(method):
                # Writing on a call that has ended says only that; reading says why.
                with suppress(asyncio.InvalidStateError):
                    await call.write(request)
                answer = await call.read()
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            raise ProtocolError(
                f"{self.name} ended {method.name} without an answer", address=self.address, method=method.path
            )
        response: Resp = answer
        return response

    async def close(self) -> None:
        """End every call and close the channel; a second time does nothing."""
        self._closed = True
        await self._channel.close()

    @property
    def name(self) -> str:
        """How messages call the server."""
        return errors.server_name(self.address, self.store_id)

    def _callable(self, method: Method[Any, Any]) -> Callable[..., Any]:
        made = self._callables.get(method.path)
        if made is None:
            kinds = {
                (False, False): self._channel.unary_unary,
                (False, True): self._channel.unary_stream,
                (True, True): self._channel.stream_stream,
            }
            made = self._callables[method.path] = kinds[method.client_streams, method.server_streams](
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return made

    @contextmanager
    def _classified(self, method: Method[Any, Any]) -> Iterator[None]:
        """Let what goes wrong with a call be one of this package's errors."""
        try:
            yield
        except grpc.RpcError as err:
            raise errors.from_grpc(err, method=method.path, address=self.address, store_id=self.store_id) from err
        except asyncio.CancelledError:
            self._check_cancelled_from_outside(method)
            raise

    def _unavailable(self, message: str, method: Method[Any, Any]) -> TikvBrError:
        if self.store_id is None:
            return PDUnavailableError(message, address=self.address, method=method.path, endpoints=(self.address,))
        return StoreUnavailableError(message, address=self.address, method=method.path, store_id=self.store_id)

    def _silent(self, method: Method[Any, Any], idle_s: float | None) -> TikvBrError:
        return self._unavailable(f"{self.name} was silent for {idle_s:g} s ({method.name})", method)

    def _check_open(self, method: Method[Any, Any]) -> None:
        if self._closed:
            raise self._unavailable(f"the connection to {self.name} is closed ({method.name})", method)

    def _check_cancelled_from_outside(self, method: Method[Any, Any]) -> None:
        """Closing a channel cancels the tasks that wait on it: tell this from a cancelled task.

        Python 3.10 cannot tell; there the cancellation stands.
        """
        task = asyncio.current_task()
        cancelling = getattr(task, "cancelling", None)
        if self._closed and cancelling is not None and not cancelling():
            self._check_open(method)
