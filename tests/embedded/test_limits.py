from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded import limits
from airflow_provider_tikvbr.embedded.limits import ImportMode, RateLimiter
from tests.support.clock import Clock


def test_import_mode_ends_by_itself() -> None:
    clock = Clock(100.0)
    mode = ImportMode(clock=clock)
    seen = [mode.is_on]
    mode.switch(True)
    for wait in (599, 1):
        clock.now += wait
        seen.append(mode.is_on)
    assert seen == [False, True, False]


def test_import_mode_can_be_prolonged_and_left() -> None:
    clock = Clock(100.0)
    mode = ImportMode(clock=clock)
    mode.switch(True)
    clock.now += 599
    mode.switch(True)
    clock.now += 599
    seen = [mode.is_on]
    mode.switch(False)
    seen.append(mode.is_on)
    assert seen == [True, False]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a limiter wants to wait, in place of waiting."""
    found: list[float] = []

    async def within(limit_s: float, waiting: Coroutine[Any, Any, object]) -> None:
        waiting.close()
        found.append(limit_s)
        raise asyncio.TimeoutError

    monkeypatch.setattr(limits, "within", within)
    return found


async def test_bytes_are_spaced_out(waits: list[float]) -> None:
    clock = Clock(100.0)
    limiter = RateLimiter(1000, clock=clock)
    await limiter.spend(500)
    await limiter.spend(1500)  # at the same moment: it queues behind the first
    clock.now += 10
    await limiter.spend(100)  # what was not used is not saved up
    assert waits == pytest.approx([0.5, 2.0, 0.1])


async def test_no_limit_means_no_wait(waits: list[float]) -> None:
    limiter = RateLimiter()
    await limiter.spend(1 << 40)
    limiter.set_rate(10)
    limiter.set_rate(0)
    await limiter.spend(1 << 40)
    assert waits == []


async def test_a_new_limit_frees_those_who_wait() -> None:
    limiter = RateLimiter(1)
    waiting = [asyncio.ensure_future(limiter.spend(1_000_000)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(w.done() for w in waiting)
    limiter.set_rate(0)
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
