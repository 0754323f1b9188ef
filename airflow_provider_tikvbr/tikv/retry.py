"""Retries: exponential pauses with full jitter, inside a time budget."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from airflow_provider_tikvbr.exceptions import BudgetExceededError, ServerIsBusyError, TransientError

T = TypeVar("T")


class Backoff:
    """The pauses between the tries of one piece of work.

    Each pause is a random time between 0 and ``base_s`` doubled per try, at most ``cap_s``. A store that asks for time
    (:class:`ServerIsBusyError`) is given at least what it asks for. The budget runs from the creation of the object
    or from the last :meth:`reset`.

    :param base_s: upper bound of the first pause, in seconds.
    :param cap_s: upper bound of every pause, in seconds.
    :param budget_s: how long the work may go on without progress, in seconds.
    :param least_tries: how many tries it may fail whatever the budget: one try of some works takes longer than that.
    :param clock: monotonic time in seconds.
    :param jitter: random number in [0, 1).
    """

    def __init__(
        self,
        *,
        base_s: float,
        cap_s: float,
        budget_s: float,
        least_tries: int = 1,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.base_s = base_s
        self.cap_s = cap_s
        self.budget_s = budget_s
        self.least_tries = least_tries
        self.tries = 0
        self._clock = clock
        self._jitter = jitter
        self._started = clock()

    @property
    def remaining_s(self) -> float:
        """What is left of the budget, in seconds; never below 0."""
        return max(0.0, self.budget_s - (self._clock() - self._started))

    def reset(self) -> None:
        """Start anew: the work has made progress."""
        self.tries = 0
        self._started = self._clock()

    def pause_s(self, error: TransientError) -> float:
        """The next pause, in seconds, and count the try.

        :param error: why the last try failed.
        :raises BudgetExceededError: the budget is spent; it carries the last error's text and is chained to it.
        """
        remaining = self.remaining_s
        enough = self.tries + 1 >= self.least_tries
        if remaining <= 0 and enough:
            raise BudgetExceededError(
                f"gave up after {self.budget_s:g} s without progress: {error}",
                budget_s=self.budget_s,
                region_id=error.region_id,
                store_id=error.store_id,
                address=error.address,
                method=error.method,
                code=error.code,
            ) from error
        bound = min(self.cap_s, self.base_s * 2.0 ** min(self.tries, 64))
        self.tries += 1
        pause = bound * self._jitter()
        if isinstance(error, ServerIsBusyError):
            pause = max(pause, error.backoff_s)
        return min(pause, remaining) if enough else pause

    async def sleep(self, error: TransientError) -> None:
        """Wait before the next try.

        :param error: why the last try failed.
        :raises BudgetExceededError: the budget is spent.
        """
        await asyncio.sleep(self.pause_s(error))


async def retry(work: Callable[[], Awaitable[T]], backoff: Backoff) -> T:
    """Run work until it succeeds, fails for good, or the budget is spent.

    :param work: called once per try.
    :param backoff: pauses and budget.
    :raises BudgetExceededError: the budget is spent.
    """
    while True:
        try:
            return await work()
        except BudgetExceededError:
            # An inner budget has run out already; retrying here would only multiply the waiting.
            raise
        except TransientError as err:
            await backoff.sleep(err)
