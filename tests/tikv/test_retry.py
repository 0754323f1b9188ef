from __future__ import annotations

import asyncio

import pytest

from airflow_provider_tikvbr.exceptions import (
    BudgetExceededError,
    ProtocolError,
    ServerIsBusyError,
    StoreUnavailableError,
    TransientError,
)
from airflow_provider_tikvbr.tikv.retry import Backoff, retry
from tests.support.clock import Clock


def make(clock: Clock, *, jitter: float = 1.0, budget_s: float = 60.0, least_tries: int = 1) -> Backoff:
    return Backoff(
        base_s=1.0, cap_s=5.0, budget_s=budget_s, least_tries=least_tries, clock=clock, jitter=lambda: jitter
    )


def test_pauses_double_up_to_the_cap() -> None:
    backoff = make(Clock(100.0))
    assert [backoff.pause_s(TransientError("x")) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.tries == 5


def test_many_tries_do_not_overflow() -> None:
    backoff = make(Clock(100.0))
    assert [backoff.pause_s(TransientError("x")) for _ in range(3000)][-1] == 5


def test_jitter_is_full() -> None:
    error = TransientError("x")
    assert make(Clock(100.0), jitter=0.0).pause_s(error) == 0
    assert make(Clock(100.0), jitter=0.25).pause_s(error) == 0.25


def test_a_busy_store_is_given_what_it_asks_for() -> None:
    backoff = make(Clock(100.0), jitter=0.0)
    assert backoff.pause_s(ServerIsBusyError("x", kind="server_is_busy", backoff_s=7.0)) == 7


def test_no_pause_goes_beyond_the_budget() -> None:
    clock = Clock(100.0)
    backoff = make(clock, budget_s=10)
    clock.now += 8
    assert backoff.pause_s(ServerIsBusyError("x", kind="server_is_busy", backoff_s=7.0)) == 2


def test_tries_that_take_longer_than_the_budget() -> None:
    clock = Clock(100.0)
    backoff = make(clock, budget_s=10, least_tries=3)
    for pause in (1, 2):
        clock.now += 11
        assert backoff.pause_s(TransientError("x")) == pause
    with pytest.raises(BudgetExceededError):
        backoff.pause_s(TransientError("x"))


def test_a_spent_budget_names_the_last_error_and_carries_its_fields() -> None:
    clock = Clock(100.0)
    backoff = make(clock, budget_s=10)
    clock.now += 10
    cause = StoreUnavailableError("store 4 is not available", store_id=4, address="a:1", code="UNAVAILABLE")
    with pytest.raises(BudgetExceededError, match="gave up after 10 s without progress: store 4 is not") as caught:
        backoff.pause_s(cause)
    assert caught.value.__cause__ is cause
    assert caught.value.attrs() == {"budget_s": 10, "store_id": 4, "address": "a:1", "code": "UNAVAILABLE"}


def test_progress_starts_anew() -> None:
    clock = Clock(100.0)
    backoff = make(clock, budget_s=10)
    backoff.pause_s(TransientError("x"))
    clock.now += 11
    backoff.reset()
    assert backoff.remaining_s == 10
    assert backoff.pause_s(TransientError("x")) == 1


async def test_retry_until_it_works() -> None:
    tries: list[int] = []

    async def work() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise StoreUnavailableError(f"try {len(tries)}")
        return "done"

    backoff = Backoff(base_s=0.001, cap_s=0.001, budget_s=30)
    assert await retry(work, backoff) == "done"
    assert len(tries) == 3


async def test_retry_stops_at_an_error_that_would_come_again() -> None:
    async def work() -> None:
        raise ProtocolError("no")

    with pytest.raises(ProtocolError):
        await retry(work, Backoff(base_s=0.001, cap_s=0.001, budget_s=30))


async def test_retry_does_not_multiply_budgets() -> None:
    tries: list[int] = []

    async def work() -> None:
        tries.append(1)
        raise BudgetExceededError("inner")

    with pytest.raises(BudgetExceededError, match="inner"):
        await retry(work, Backoff(base_s=0.001, cap_s=0.001, budget_s=30))
    assert len(tries) == 1


async def test_cancelling_ends_the_pause() -> None:
    backoff = Backoff(base_s=60, cap_s=60, budget_s=600, jitter=lambda: 1.0)
    task = asyncio.create_task(backoff.sleep(TransientError("x")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
