"""Faults that tests inject into the servers: a status or an answer instead of the real one, or a delay before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from airflow_provider_tikvbr.proto.methods import Method


@dataclass(slots=True, kw_only=True)
class Failpoint:
    """One fault.

    :param path: path of the gRPC method.
    :param store_id: only at this store; None for everywhere.
    :param code: status to end the call with.
    :param details: text of the status.
    :param response: message to answer with, if no code is given; neither for the real answer after the delay.
    :param delay_s: seconds to wait first.
    :param times: how many more calls it strikes; None for all.
    :param hits: how many calls it has struck.
    """

    path: str
    store_id: int | None = None
    code: grpc.StatusCode | None = None
    details: str = "injected fault"
    response: Message | None = None
    delay_s: float = 0.0
    times: int | None = 1
    hits: int = 0

    def disarm(self) -> None:
        """Strike no more."""
        self.times = 0


class Failpoints:
    """The faults of one cluster."""

    def __init__(self) -> None:
        self._points: list[Failpoint] = []

    def fail(
        self,
        method: Method[Any, Any],
        *,
        code: grpc.StatusCode | None = None,
        details: str = "injected fault",
        response: Message | None = None,
        delay_s: float = 0.0,
        times: int | None = 1,
        store_id: int | None = None,
    ) -> Failpoint:
        """Inject a fault into a method; see :class:`Failpoint`. The fault that was injected first strikes first."""
        point = Failpoint(
            path=method.path,
            store_id=store_id,
            code=code,
            details=details,
            response=response,
            delay_s=delay_s,
            times=times,
        )
        self._points.append(point)
        return point

    def clear(self) -> None:
        """Remove every fault."""
        self._points.clear()

    def strike(self, path: str, store_id: int | None) -> Failpoint | None:
        """The fault that a call meets now, if any."""
        for point in self._points:
            if point.path == path and point.times != 0 and point.store_id in (None, store_id):
                point.hits += 1
                if point.times is not None:
                    point.times -= 1
                return point
        return None

    def interceptor(self, store_id: int | None) -> grpc.aio.ServerInterceptor:
        """What a server asks on each call."""
        return _Interceptor(self, store_id)


class _Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Puts a fault in the place of the handler that a call would have reached."""

    def __init__(self, failpoints: Failpoints, store_id: int | None) -> None:
        self._failpoints = failpoints
        self._store_id = store_id

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> grpc.RpcMethodHandler | None:
        handler = await continuation(handler_call_details)
        point = self._failpoints.strike(handler_call_details.method, self._store_id)
        if point is None or handler is None:
            return handler
        if point.code is None and point.response is None:
            await asyncio.sleep(point.delay_s)
            return handler
        return _substitute(handler, point)


def _substitute(handler: grpc.RpcMethodHandler, point: Failpoint) -> grpc.RpcMethodHandler:
    async def answer(_request: Any, context: Any) -> Message:
        await asyncio.sleep(point.delay_s)
        if point.code is not None or point.response is None:
            await context.abort(point.code, point.details)
        return point.response  # type: ignore[return-value]

    async def stream(request: Any, context: Any) -> AsyncIterator[Message]:
        yield await answer(request, context)

    make, behaviour = {
        (False, False): (grpc.unary_unary_rpc_method_handler, answer),
        (False, True): (grpc.unary_stream_rpc_method_handler, stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, answer),
        (True, True): (grpc.stream_stream_rpc_method_handler, stream),
    }[handler.request_streaming, handler.response_streaming]
    return make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
