from __future__ import annotations

import asyncio

import pytest

from airflow_provider_tikvbr.exceptions import ProtocolError
from airflow_provider_tikvbr.rawbr.tasks import all_or_cancel, for_each, settle


async def test_all_results_in_order() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0.001 * (3 - number))
        return 2 * number

    assert await all_or_cancel(double(number) for number in range(3)) == [0, 2, 4]
    assert await all_or_cancel([]) == []


async def test_the_first_error_ends_the_others() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append("waiter")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("no")

    with pytest.raises(KeyError):
        await all_or_cancel([wait(), fail(), wait()])
    assert ended == ["waiter", "waiter"]


async def test_a_cancellation_ends_all() -> None:
    ended: list[int] = []

    async def wait(number: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(number)

    task = asyncio.create_task(all_or_cancel(wait(number) for number in range(3)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == [0, 1, 2]


async def test_some_at_a_time() -> None:
    running = most = 0
    done: list[int] = []

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(number)

    await for_each(range(100), work, concurrency=7)
    assert sorted(done) == list(range(100))
    assert most == 7
    await for_each([], work, concurrency=0)


async def test_an_error_stops_the_rest() -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        if number == 3:
            raise ValueError(number)
        done.append(number)

    with pytest.raises(ValueError, match="3"):
        await for_each(range(1000), work, concurrency=2)
    assert len(done) < 10


async def test_settled_work_ends_before_the_cancellation_comes() -> None:
    steps: list[str] = []
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        for step in ("one", "two", "three"):
            await asyncio.sleep(0.01)
            steps.append(step)

    task = asyncio.create_task(settle(work()))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["one", "two", "three"]


async def test_settled_work_gives_its_result_or_its_error() -> None:
    async def good() -> int:
        return 7

    async def bad() -> int:
        raise ProtocolError("no")

    assert await settle(good()) == 7
    with pytest.raises(ProtocolError, match="no"):
        await settle(bad())


async def test_a_cancellation_matters_more_than_an_error_of_the_undo() -> None:
    begun = asyncio.Event()

    async def bad() -> None:
        begun.set()
        await asyncio.sleep(0.01)
        raise ProtocolError("no")

    task = asyncio.create_task(settle(bad()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_settled_work_that_hangs_is_given_up() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    task = asyncio.create_task(settle(hang(), limit_s=0.05))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    await asyncio.wait_for(ended.wait(), 30)


async def test_settled_work_has_all_its_time_while_nobody_cancels() -> None:
    async def slow() -> int:
        await asyncio.sleep(0.05)
        return 7

    assert await settle(slow(), limit_s=0.001) == 7
