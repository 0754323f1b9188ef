"""``python -m tests.chaos``: run many seeds."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

from tests.chaos.isolation import run_isolated
from tests.chaos.outcome import Outcome
from tests.chaos.report import sum_up, tell


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
                tell(outcome, args.log)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return sum_up(outcomes, time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
