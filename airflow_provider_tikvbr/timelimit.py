"""Waiting for something for so long and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(limit_s: float | None, work: Awaitable[T]) -> T:
    """Wait for work; it is cancelled, and its end waited for, when its time is over or the caller is cancelled.

    Unlike :func:`asyncio.wait_for` of Python before 3.12 it never loses a cancellation that comes just as the work ends:
    a job that loses one goes on to its end although somebody has stopped it.

    :param limit_s: how long it may take, in seconds; None means for ever.
    :raises asyncio.TimeoutError: it took longer.
    """
    if limit_s is None:
        return await work
    task = asyncio.ensure_future(work)
    # Seen, so that asyncio does not complain of an error: that the caller is stopped, or the time is over, matters more.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait((task,), timeout=limit_s)
        over = not task.done()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    if over and task.cancelled():
        raise asyncio.TimeoutError
    return task.result()
