"""What has to be carried out to its end, even by somebody who is told to stop meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

# How long somebody who is told to stop waits for it, in seconds: closing takes no time where nothing hangs.
FINISH_S = 1.0


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Do some short work to its end; who is cancelled meanwhile is so afterwards."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        done, _ = await asyncio.wait({task}, timeout=FINISH_S)
        if not done:
            task.cancel()
        elif not task.cancelled():
            # The cancellation is what counts now.
            task.exception()
        raise
