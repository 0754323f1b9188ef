"""Waiting for what happens elsewhere: in a server, in a task, in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

LIMIT_S = 30.0
POLL_S = 0.005


async def until(happens: Callable[[], object]) -> None:
    """Wait until something has happened; a test that waits in vain fails."""
    deadline = time.monotonic() + LIMIT_S
    while not happens():  # what happens lies in an object that knows of no events
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen within {LIMIT_S:g} s")
        await asyncio.sleep(POLL_S)


async def several_times(act: Callable[[], Any]) -> None:
    """Do something that others may undo who are just about to write, until one of the times must have come to stay."""
    for _ in range(20):
        done = act()
        if asyncio.iscoroutine(done):
            await done
        await asyncio.sleep(0.02)
