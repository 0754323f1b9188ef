"""``python -m tests.chaos``: run many seeds."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from tests.chaos.campaign import Outcome, run_isolated


def main() -> int:
    """Run a campaign.

    :return: 1 if there is a finding.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="how many seeds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default %(default)s)")
    parser.add_argument("--calm", action="store_true", help="without any fault")
    parser.add_argument("--log", type=Path, help="file for the whole story of every run")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="tikvbr-chaos-"))
    started = time.monotonic()
    outcomes: list[Outcome] = []
    seeds = range(args.seed, args.seed + args.runs)
    try:
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
            for outcome in pool.map(run_isolated, seeds, repeat(root), repeat(not args.calm)):
                outcomes.append(outcome)
                _tell(outcome, args.log)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return _sum_up(outcomes, time.monotonic() - started)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _tell(outcome: Outcome, log: Path | None) -> None:
    for text in outcome.findings:
        _say(f"seed {outcome.seed}: {text}")
    if log is not None:
        with log.open("a") as file:
            file.write(f"=== seed {outcome.seed}, {outcome.took_s:.2f} s\n" + "\n".join(outcome.log) + "\n")


def _sum_up(outcomes: list[Outcome], took_s: float) -> int:
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
    width = max(map(len, counts), default=0)
    for name, number in sorted(counts.items()):
        _say(f"{name:<{width}}  {number}")
    bad = [outcome.seed for outcome in outcomes if outcome.findings]
    slowest = max(outcomes, key=lambda o: o.took_s, default=None)
    _say(
        f"{len(outcomes)} runs in {took_s:.0f} s, {len(bad)} with findings{f': {bad}' if bad else ''};"
        f" slowest {f'{slowest.took_s:.1f} s (seed {slowest.seed})' if slowest else '-'};"
        f" memory at most {max((o.memory_bytes for o in outcomes), default=0) >> 20} MiB"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
