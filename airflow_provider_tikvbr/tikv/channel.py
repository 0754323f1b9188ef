"""One gRPC connection to one server: options, TLS, calls by the method table, errors of this package.

A connection belongs to the event loop it was made in and is not used across a fork: nothing here exists at import time.

It outlives its channel: when the certificates have been renewed on disk, further calls go over a new channel, while those
under way end on the old one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    PDUnavailableError,
    StoreUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.tikv import errors
from airflow_provider_tikvbr.tikv.addresses import Target
from airflow_provider_tikvbr.tikv.certificates import Certificates
from airflow_provider_tikvbr.tikv.options import GrpcOptions, TlsOptions
from airflow_provider_tikvbr.tikv.security import diagnose
from airflow_provider_tikvbr.timelimit import within

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)

DIAGNOSIS_S = 2.0


def channel_options(options: GrpcOptions) -> list[tuple[str, int]]:
    """The settings of a channel, by the names that gRPC's core knows."""
    return [
        ("grpc.keepalive_time_ms", round(options.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(options.keepalive_timeout_s * 1000)),
        # Recent cores measure every ping by this alone, which is a minute by default.
        ("grpc.http2.ping_timeout_ms", round(options.keepalive_timeout_s * 1000)),
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


def open_channel(target: Target, tls: TlsOptions | None, options: GrpcOptions) -> grpc.aio.Channel:
    """Make a channel; it connects at the first call.

    :param target: the server.
    :param tls: certificates; None means a plain connection.
    """
    name = f"dns:///{target.reach}"
    settings: list[tuple[str, int | str]] = [*channel_options(options)]
    if target.is_mapped:
        # The server is still asked for by its own name, and its certificate must be for that name.
        settings.append(("grpc.default_authority", target.address))
    if tls is None:
        return grpc.aio.insecure_channel(name, options=settings)
    if target.is_mapped:
        # Newer cores go by the authority here too.
        settings.append(("grpc.ssl_target_name_override", target.host))
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.cert)
    return grpc.aio.secure_channel(name, credentials, options=settings)


class _Lane:
    """One channel of a connection, made with one set of certificates.

    :param target: the server.
    :param tls: certificates; None means a plain connection.
    :param options: settings of the channel.
    """

    def __init__(self, target: Target, tls: TlsOptions | None, options: GrpcOptions) -> None:
        self.tls = tls
        self.calls = 0
        self.channel = open_channel(target, tls, options)
        self._callables: dict[str, Callable[..., Any]] = {}

    def callable(self, method: Method[Any, Any]) -> Callable[..., Any]:
        """What makes a call; the same one each time."""
        made = self._callables.get(method.path)
        if made is None:
            kinds = {
                (False, False): self.channel.unary_unary,
                (False, True): self.channel.unary_stream,
                (True, True): self.channel.stream_stream,
            }
            made = self._callables[method.path] = kinds[method.client_streams, method.server_streams](
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return made


class Connection:
    """A way to one server, and calls on it. Create it inside the running loop and close it.

    :param target: the server; ``host:port`` where it is reached where it says.
    :param tls: certificates, or what keeps them up to date; None means a plain connection.
    :param options: settings of the channel.
    :param store_id: the store behind the address; None for PD.
    """

    def __init__(
        self,
        target: Target | str,
        *,
        tls: Certificates | TlsOptions | None,
        options: GrpcOptions,
        store_id: int | None = None,
    ) -> None:
        asyncio.get_running_loop()
        self.target = target if isinstance(target, Target) else Target.at(target)
        self.address = self.target.address
        self.store_id = store_id
        self._options = options
        self._certificates = Certificates.of(tls)
        self._current = _Lane(self.target, self._certificates.current(), options)
        self._retired: set[_Lane] = set()
        self._closing: set[asyncio.Task[None]] = set()
        # Whether the server has ever answered, or has been looked at: TLS that is wrong is so from the start.
        self._acquainted = False
        self._closed = False

    async def call(self, method: Method[Req, Resp], request: Req, *, timeout_s: float) -> Resp:
        """Make a unary call.

        :param method: an entry of the method table.
        :param timeout_s: how long it may take, in seconds.
        :raises TikvBrError: as :func:`errors.from_grpc` classifies the failure.
        """
        while True:
            with self._lane(method) as lane:
                try:
                    with self._classified(method):
                        response: Resp = await lane.callable(method)(request, timeout=timeout_s)
                except TikvBrError as err:
                    if await self._try_again(lane, err):
                        continue
                    raise
                self._acquainted = True
                return response

    async def stream(
        self, method: Method[Req, Resp], request: Req, *, idle_timeout_s: float | None = None
    ) -> AsyncGenerator[Resp, None]:
        """Make a call that answers with a stream. Closing the iterator cancels the call.

        :param method: an entry of the method table.
        :param idle_timeout_s: how long the server may be silent between two answers; None means for ever.
        :raises TikvBrError: as :func:`errors.from_grpc` classifies the failure.
        """
        answered = False
        while True:
            with self._lane(method) as lane:
                call = lane.callable(method)(request)
                try:
                    while True:
                        response = await self._read(call, method, idle_timeout_s)
                        self._acquainted = answered = True
                        if response is grpc.aio.EOF:
                            return
                        yield response
                except TikvBrError as err:
                    if not answered and await self._try_again(lane, err):
                        continue
                    raise
                finally:
                    call.cancel()

    async def exchange(self, method: Method[Req, Resp], request: Req, *, timeout_s: float) -> Resp:
        """Open a stream in both directions for one question and its first answer.

        :param method: an entry of the method table.
        :param timeout_s: how long it may take, in seconds.
        :raises TikvBrError: as :func:`errors.from_grpc` classifies the failure.
        """
        while True:
            with self._lane(method) as lane:
                call = lane.callable(method)(timeout=timeout_s)
                try:
                    with self._classified(method):
                        # Writing on a call that has ended says only that; reading says why.
                        with suppress(asyncio.InvalidStateError):
                            await call.write(request)
                        answer = await call.read()
                except TikvBrError as err:
                    if await self._try_again(lane, err):
                        continue
                    raise
                finally:
                    call.cancel()
                self._acquainted = True
            if answer is grpc.aio.EOF:
                # As a server does that shuts down in good order.
                raise self._unavailable(f"{self.name} ended {method.name} without an answer", method)
            response: Resp = answer
            return response

    async def close(self) -> None:
        """End every call and close the channels; a second time does nothing."""
        self._closed = True
        lanes = [self._current, *self._retired]
        self._retired.clear()
        await asyncio.gather(*(lane.channel.close() for lane in lanes), *self._closing)

    @property
    def name(self) -> str:
        """How messages call the server."""
        return errors.server_name(self.address, self.store_id, self.target.reach)

    async def _read(self, call: Any, method: Method[Any, Any], idle_timeout_s: float | None) -> Any:
        with self._classified(method):
            try:
                return await within(idle_timeout_s, call.read())
            except asyncio.TimeoutError:
                raise self._silent(method, idle_timeout_s) from None

    # --- channels that follow the certificates ---

    @contextmanager
    def _lane(self, method: Method[Any, Any]) -> Iterator[_Lane]:
        """The channel for one more call, which it is kept open for."""
        self._check_open(method)
        lane = self._renew(self._certificates.current())
        lane.calls += 1
        try:
            yield lane
        finally:
            lane.calls -= 1
            if not lane.calls and lane in self._retired:
                self._drop(lane)

    def _renew(self, tls: TlsOptions | None) -> _Lane:
        old = self._current
        if tls is not old.tls:
            self._current = _Lane(self.target, tls, self._options)
            self._retired.add(old)
            if not old.calls:
                self._drop(old)
        return self._current

    def _drop(self, lane: _Lane) -> None:
        self._retired.discard(lane)
        task = asyncio.get_running_loop().create_task(lane.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _try_again(self, lane: _Lane, err: TikvBrError) -> bool:
        """Whether a call that never reached the server may do so now, with certificates renewed just before.

        :raises AuthenticationError: TLS is why the server has not been reached, and what is wrong.
        """
        refused = isinstance(err, AuthenticationError)
        if refused and self._certificates.current(look=True) is not lane.tls:
            return True
        unreached = refused or err.code == grpc.StatusCode.UNAVAILABLE.name
        if unreached and self.store_id is not None and not self._acquainted and not self._closed:
            # gRPC says the same of a refused certificate and of a broken network. PD's discovery looks for itself.
            self._acquainted = True
            reason = await diagnose(self.target, lane.tls, timeout_s=DIAGNOSIS_S, who=self.name)
            if reason is not None:
                raise reason from err
        return False

    # --- failures ---

    @contextmanager
    def _classified(self, method: Method[Any, Any]) -> Iterator[None]:
        """Let what goes wrong with a call be one of this package's errors."""
        try:
            yield
        except grpc.RpcError as err:
            raise errors.from_grpc(
                err, method=method.path, address=self.address, store_id=self.store_id, reach=self.target.reach
            ) from err
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
