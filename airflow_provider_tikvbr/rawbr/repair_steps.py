"""Things that a killed job may have left: how each was found, how it is to be, and how to put it right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.tikv.retry import Backoff, retry

UNKNOWN = "not told"
# How long to insist where something may pass, in seconds.
PATIENCE_S = 10.0
RETRY_BASE_S = 0.2
RETRY_CAP_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One thing that was looked at.

    :param what: what it is, and where.
    :param before: how it was found.
    :param after: how it is now, or would be; empty if it is left as it is.
    :param why: why it is left as it is, or what else there is to say.
    :param failed: why it could not be put right; empty if it is.
    """

    what: str
    before: str
    after: str = ""
    why: str = ""
    failed: str = ""

    def __str__(self) -> str:
        """The line that people read."""
        change = f"{self.before} -> {self.after}" if self.after else f"{self.before}, left as it is"
        text = f"{self.what}: {change}"
        if self.why:
            text += f" ({self.why})"
        return f"{text}: failed: {self.failed}" if self.failed else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that can be put right.

    :param found: how it was found, and how it is to be.
    :param act: puts it right; None if there is nothing to do.
    :param otherwise: what becomes of it if that fails.
    """

    found: Repair
    act: Callable[[], Awaitable[None]] | None = None
    otherwise: str = ""


Reporter = Callable[[Repair], None]


async def carry_out(steps: Sequence[Step], *, dry_run: bool, report: Reporter) -> list[Repair]:
    """Do all steps at once and tell of them in their order; what has failed is returned."""
    if dry_run:
        done = [step.found for step in steps]
    else:
        done = await asyncio.gather(*(_do(step) for step in steps))
    for each in done:
        report(each)
    return [each for each in done if each.failed]


async def _do(step: Step) -> Repair:
    if step.act is None:
        return step.found
    try:
        await retry(step.act, Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=PATIENCE_S))
    except TikvBrError as err:
        return replace(step.found, failed=f"{err}; {step.otherwise}" if step.otherwise else str(err))
    return step.found


def unseen(what: str, error: TikvBrError, otherwise: str) -> Step:
    """What could not even be looked at."""
    return Step(found=Repair(what=what, before=UNKNOWN, failed=f"{error}; {otherwise}"))
