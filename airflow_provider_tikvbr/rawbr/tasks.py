"""Many things at a time, none of which outlives the others' failure, and things that must be done to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")


class Handover:
    """Whether a job that is cancelled will be gone on with soon, by another process.

    Then what is held for it, such as GC, is left to that one. A host says so before it cancels the job.

    :ivar announced: it will.
    """

    __slots__ = ("announced",)

    def __init__(self) -> None:
        self.announced = False


_handover: ContextVar[Handover | None] = ContextVar("tikvbr_handover", default=None)


def expect_handover() -> Handover:
    """Let a host say it of the job that it is about to run in this context."""
    handover = Handover()
    _handover.set(handover)
    return handover


def current_handover() -> Handover:
    """What is said of the job of this context; the works that it begins from now on find it too."""
    return _handover.get() or expect_handover()


def is_handover() -> bool:
    """Whether the host has said so."""
    handover = _handover.get()
    return handover is not None and handover.announced


class Threads(ThreadPoolExecutor):
    """A loop's threads, which are not waited for once its job is stopped: one may hang in a storage or a look-up.

    :ivar stopped: whether it is.
    """

    stopped = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let them end, and wait for that unless the job is stopped."""
        super().shutdown(wait and not self.stopped, cancel_futures=cancel_futures or self.stopped)


async def all_or_cancel(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all works at once; the first error, or a cancellation, ends the others before it is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, concurrency: int) -> None:
    """Do a work for every item, some at a time; the first error ends the others before it is raised.

    Items are taken one by one, so there may be half a million of them.

    :param concurrency: how many at a time.
    """
    rest = iter(items)

    async def worker() -> None:
        for item in rest:
            await work(item)

    await all_or_cancel(worker() for _ in range(max(1, concurrency)))


async def settle(work: Coroutine[Any, Any, T], *, limit_s: float | None = None) -> T:
    """Run work to its end even if the caller is cancelled meanwhile; the cancellation comes after it.

    :param limit_s: how long that may take, in seconds; then the work is given up. For what may hang, such as a storage.
    :raises asyncio.CancelledError: the caller was cancelled; the work is done all the same, unless it took too long.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    over_at: float | None = None
    while not task.done() and (over_at is None or loop.time() < over_at):
        try:
            await asyncio.wait((task,), timeout=None if over_at is None else over_at - loop.time())
        except asyncio.CancelledError as err:
            cancelled = err
            if limit_s is not None and over_at is None:
                over_at = loop.time() + limit_s
    if cancelled is not None:
        task.cancel()
        # Seen, so that asyncio does not complain of it: that somebody wants us to stop matters more.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise cancelled
    return task.result()
