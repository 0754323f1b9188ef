"""One run in an event loop of its own, with every warning and every leak taken for a finding."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.chaos import checks
from tests.chaos.campaign import Run
from tests.chaos.outcome import Outcome
from tests.chaos.pace import hurried

MEMORY_LIMIT = 64 << 20
SOCKET = re.compile(r"unclosed <socket.socket fd=(\d+),.*laddr=\('[\d.]+', (\d+)\)")
DESCRIPTOR = re.compile(r"unclosed .* fd=(\d+)\b")


@contextmanager
def quiet() -> Iterator[None]:
    """Log nowhere: whoever collects records holds the errors in them, and with them what a run has to give back."""
    logger = logging.getLogger(checks.PACKAGE)
    before = logger.propagate, logger.handlers[:]
    logger.propagate, logger.handlers[:] = False, [logging.NullHandler()]
    try:
        yield
    finally:
        logger.propagate, logger.handlers[:] = before


def run_isolated(seed: int, root: Path, faults: bool = True) -> Outcome:
    """Run one seed."""
    complaints: list[str] = []

    def unraisable(found: Any) -> None:
        complaints.append(f"{found.err_msg or 'ignored'}: {found.exc_value!r} in {found.object!r}")

    before = checks.ProcessState.now()
    resident = checks.resident_bytes()
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        with warnings.catch_warnings(), hurried(), quiet():
            warnings.simplefilter("error")
            outcome = asyncio.run(Run(seed, root, faults=faults).run())
            after = _settled(before)
    finally:
        sys.unraisablehook = hook
    _report(outcome, complaints, after.grown(before))
    outcome.memory_bytes = checks.resident_bytes()
    if outcome.memory_bytes - resident > MEMORY_LIMIT:
        outcome.find(f"memory grew by {(outcome.memory_bytes - resident) >> 20} MiB")
    return outcome


def _settled(before: checks.ProcessState) -> checks.ProcessState:
    deadline = time.monotonic() + checks.GRACE_S
    while True:
        now = checks.ProcessState.now()
        if not list(now.grown(before)) or time.monotonic() > deadline:
            return now
        time.sleep(0.05)


def _report(outcome: Outcome, complaints: Sequence[str], grown: Iterable[str]) -> None:
    # The embedded cluster's web servers let go of a client that comes at the moment in which they stop.
    served = {found[1] for text in complaints if (found := SOCKET.search(text)) and int(found[2]) in outcome.ports}
    for text in complaints:
        found = DESCRIPTOR.search(text)
        if found is None or found[1] not in served:
            outcome.find(f"a warning: {text}")
    for text in grown:
        outcome.find(f"leak: {text}")
