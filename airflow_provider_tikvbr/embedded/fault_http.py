"""Faults of HTTP requests: to PD's API, and to the status port of a store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Place, Rule
from airflow_provider_tikvbr.embedded.faults import Event, Faults, pause

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def http_faults(faults: Faults, *, store_id: int | None = None, pd_member: str = "") -> Any:
    """The middleware that asks the faults at each request of one server.

    :param faults: the cluster's.
    :param store_id: the store that the server belongs to.
    :param pd_member: name of the member of PD that the server belongs to; empty for none.
    """

    @web.middleware
    async def meet(request: web.Request, handler: Handler) -> web.StreamResponse:
        event = Event(place=Place.HTTP, name=f"{request.method} {request.path}", store_id=store_id, pd_member=pd_member)
        for strike in faults.strikes(event):
            if strike.rule.kind is not Kind.DELAY:
                return await _struck(strike.rule, request, handler, faults)
            await asyncio.sleep(strike.rule.delay_s or 0)
        return await handler(request)

    return meet


async def _struck(rule: Rule, request: web.Request, handler: Handler, faults: Faults) -> web.StreamResponse:
    # A body has to be there before the client goes.
    await request.read()
    if rule.kind in (Kind.SLOW, Kind.DUPLICATE, Kind.LOST):
        answer = await handler(request)
        if rule.kind is Kind.LOST:
            return _dropped(request)
        if rule.kind is Kind.DUPLICATE:
            faults.later(_again(handler, request, rule.delay_s))
        else:
            await asyncio.sleep(rule.delay_s or 0)
        return answer
    if rule.kind is Kind.LATE:
        faults.later(_again(handler, request, rule.delay_s))
    elif rule.kind is Kind.HANG:
        await pause(rule.delay_s)
        return _dropped(request)
    elif rule.kind is Kind.RESET:
        return _dropped(request)
    else:
        await asyncio.sleep(rule.delay_s or 0)
    return web.Response(status=rule.status, text=rule.details)


async def _again(handler: Handler, request: web.Request, delay_s: float | None) -> None:
    await asyncio.sleep(delay_s or 0)
    await handler(request)


def _dropped(request: web.Request) -> web.Response:
    """Close the connection; what is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
