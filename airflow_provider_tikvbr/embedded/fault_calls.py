"""Faults of gRPC calls: what a server does in the place of, before, or after the handler that a call would reach."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.fault_answers import refusal
from airflow_provider_tikvbr.embedded.fault_rules import METHODS, Kind, Place, Rule
from airflow_provider_tikvbr.embedded.faults import Event, Faults, Strike, pause
from airflow_provider_tikvbr.proto import pdpb_pb2
from airflow_provider_tikvbr.proto.methods import Method

_ERRORS = (Kind.REGION_ERROR, Kind.TEXT_ERROR, Kind.PD_ERROR)
# Their delay is not one before everything else.
_OWN_DELAY = (Kind.SLOW, Kind.SILENT, Kind.HANG, Kind.LATE, Kind.DUPLICATE)


class _GoneClientError(Exception):
    """Nobody is there to be told."""


class _GoneClient:
    """Stands for the call where a request is carried out without one."""

    async def abort(self, *_args: Any) -> None:
        raise _GoneClientError


class FaultInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks the faults at each call of one server, and at each message of its streams.

    :param faults: the cluster's.
    :param store_id: the store that the server belongs to.
    :param pd_member: name of the member of PD that the server belongs to; empty for none.
    """

    def __init__(self, faults: Faults, *, store_id: int | None = None, pd_member: str = "") -> None:
        self._faults = faults
        self._store_id = store_id
        self._pd_member = pd_member
        self._old: dict[tuple[int, str, bytes], Message] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> grpc.RpcMethodHandler | None:
        """The handler, with the faults around it."""
        handler = await continuation(handler_call_details)
        method = METHODS.get(handler_call_details.method)
        if handler is None or method is None:
            return handler
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        # Streams are asked about even without a rule now: they may outlive the rules that come.
        if method.client_streams:
            stream = self._stream(method, handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(stream, **codec)
        if method.server_streams:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream), **codec)
        if not self._faults.rules:
            return handler
        return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), **codec)

    def _event(self, place: Place, method: Method[Any, Any], about: Any, messages: int = 0) -> Event:
        return Event(
            place=place,
            name=method.path,
            store_id=self._store_id,
            pd_member=self._pd_member,
            about=about if isinstance(about, Message) else None,
            messages=messages,
        )

    async def _strike(self, event: Event) -> Strike | None:
        """Wait as long as delays want, and tell what else strikes."""
        for strike in self._faults.strikes(event):
            if strike.rule.kind not in _OWN_DELAY:
                await asyncio.sleep(strike.rule.delay_s or 0)
            if strike.rule.kind is not Kind.DELAY:
                return strike
        return None

    # --- one answer ---

    def _unary(self, method: Method[Any, Any], inner: Callable[[Any, Any], Awaitable[Message]]) -> Any:
        async def behave(request: Any, context: Any) -> Message:
            event = self._event(Place.CALL, method, request)
            strike = await self._strike(event)
            if strike is None:
                answer = await inner(request, context)
                self._remember(method, request, answer)
                return answer
            rule = strike.rule
            if rule.kind is Kind.ANSWER and rule.response is not None:
                return rule.response
            if rule.kind in _ERRORS:
                return self._refusal(strike, event, method, request, None)
            if rule.kind is Kind.STALE:
                old = self._old.get((rule.number, method.path, request.SerializeToString(deterministic=True)))
                return old or await inner(request, context)
            if rule.kind is Kind.SLOW:
                answer = await inner(request, context)
                await asyncio.sleep(rule.delay_s or 0)
                return answer
            if rule.kind is Kind.DUPLICATE:
                return await self._twice(rule, inner, request, context)
            if rule.kind is Kind.LOST:
                await inner(request, context)
            elif rule.kind is Kind.LATE:
                self._faults.later(_alone(inner, request, rule.delay_s))
            elif rule.kind is Kind.HANG:
                await pause(rule.delay_s)
            await context.abort(rule.code, rule.details)
            raise _GoneClientError

        return behave

    async def _twice(self, rule: Rule, inner: Any, request: Any, context: Any) -> Message:
        answer: Message = await inner(request, context)
        again = _alone(inner, request, rule.delay_s)
        if rule.delay_s:
            self._faults.later(again)
        else:
            await again
        return answer

    def _remember(self, method: Method[Any, Any], request: Any, answer: Message) -> None:
        for rule in self._faults.rules:
            if rule.kind is Kind.STALE and rule.names(method.path):
                self._old.setdefault((rule.number, method.path, request.SerializeToString(deterministic=True)), answer)

    def _refusal(
        self, strike: Strike, event: Event, method: Method[Any, Any], request: Any, answer: Message | None
    ) -> Message:
        kind = strike.rule.kind
        if kind is Kind.REGION_ERROR:
            error: Message | str = self._faults.region_error(strike, event, request)
        elif kind is Kind.PD_ERROR:
            error = pdpb_pb2.Error(type=strike.rule.error, message=strike.rule.details)
        else:
            error = strike.rule.details
        made = refusal(answer, method.response, kind.value, error)
        if kind is Kind.PD_ERROR and self._faults.topology is not None:
            made.header.cluster_id = self._faults.topology.cluster_id  # type: ignore[attr-defined]
        return made

    # --- a stream of answers ---

    def _stream(self, method: Method[Any, Any], inner: Callable[[Any, Any], Any]) -> Any:
        async def behave(request: Any, context: Any) -> AsyncIterator[Message]:
            strike = await self._strike(self._event(Place.STREAM, method, request))
            rule = strike.rule if strike is not None else None
            if rule is not None and rule.response is not None:
                yield rule.response
                return
            if rule is not None and rule.kind is Kind.HANG:
                await pause(rule.delay_s)
            if rule is not None and rule.kind is not Kind.LOST:
                await context.abort(rule.code, rule.details)
            async with contextlib.aclosing(inner(request, context)) as messages:
                if rule is not None:
                    async for _ in messages:
                        pass
                    await context.abort(rule.code, rule.details)
                passed = 0
                async for message in messages:
                    event = self._event(Place.MESSAGE, method, message, passed)
                    strike = await self._strike(event)
                    if strike is not None and strike.rule.kind is Kind.CUT:
                        return
                    for each in await self._sent(strike, event, method, request, message, context):
                        yield each
                    passed += 1
            event = self._event(Place.END, method, request, passed)
            strike = await self._strike(event)
            for each in await self._sent(strike, event, method, request, None, context):
                yield each

        return behave

    async def _sent(
        self,
        strike: Strike | None,
        event: Event,
        method: Method[Any, Any],
        request: Any,
        message: Message | None,
        context: Any,
    ) -> list[Message]:
        """What goes out in the place of one message, or of the end (None)."""
        messages = [] if message is None else [message]
        if strike is None:
            return messages
        rule = strike.rule
        if rule.kind is Kind.RESET:
            await context.abort(rule.code, rule.details)
        if rule.kind in _ERRORS:
            return [self._refusal(strike, event, method, request, message)]
        if rule.kind is Kind.DROP:
            return []
        if rule.kind is Kind.DUPLICATE:
            return [*messages, *messages]
        await pause(rule.delay_s)
        return messages


async def _alone(inner: Callable[[Any, Any], Awaitable[Message]], request: Any, delay_s: float | None) -> None:
    """Carry a request out for nobody."""
    await asyncio.sleep(delay_s or 0)
    with contextlib.suppress(_GoneClientError):
        await inner(request, _GoneClient())
