from __future__ import annotations

import asyncio
import gc

import pytest

from airflow_provider_tikvbr.timelimit import within


async def test_it_gives_what_the_work_gives() -> None:
    async def fails() -> None:
        raise ValueError("no")

    for limit in (None, 30.0):
        assert await within(limit, asyncio.sleep(0, "done")) == "done"
        with pytest.raises(ValueError, match="no"):
            await within(limit, fails())


async def test_work_that_takes_too_long_is_ended_first() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.01)
            ended.append("cleaned up")

    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, work())
    assert ended == ["cleaned up"]


async def test_what_the_work_says_at_its_end_counts() -> None:
    async def insists() -> str:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            return "done all the same"
        return "done"

    async def fails() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            raise ValueError("it broke")

    assert await within(0.01, insists()) == "done all the same"
    with pytest.raises(ValueError, match="it broke"):
        await within(0.01, fails())


async def test_work_that_is_cancelled_by_others_is_no_timeout() -> None:
    work = asyncio.ensure_future(asyncio.sleep(600))
    asyncio.get_running_loop().call_later(0.01, work.cancel)
    with pytest.raises(asyncio.CancelledError):
        await within(30, work)


@pytest.mark.parametrize("passes", range(8))
async def test_a_cancellation_that_comes_as_the_work_ends_counts(passes: int) -> None:
    """Whatever the loop has just done of what the end of the work sets off."""
    ends, went_on = asyncio.Event(), asyncio.Event()

    async def job() -> None:
        await within(30, ends.wait())
        await asyncio.sleep(0)
        went_on.set()
        await asyncio.sleep(0.05)

    task = asyncio.ensure_future(job())
    await asyncio.sleep(0.01)
    ends.set()
    for _ in range(passes):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert went_on.is_set() <= (passes > 3), "the job went on"


@pytest.mark.parametrize("passes", range(8))
async def test_an_error_that_comes_with_a_cancellation_is_not_complained_of(passes: int) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    breaks = asyncio.Event()

    async def work() -> None:
        await breaks.wait()
        raise ValueError("nobody hears this")

    task = asyncio.ensure_future(within(30, work()))
    await asyncio.sleep(0.01)
    breaks.set()
    for _ in range(passes):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled() or task.exception()
    # Whoever keeps an error keeps the tasks of its traceback.
    del task
    gc.collect()
    assert complaints == []


async def test_who_is_cancelled_ends_the_work_first() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("cleaned up")
            raise ValueError("nobody hears this")

    task = asyncio.ensure_future(within(30, work()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cleaned up"]
