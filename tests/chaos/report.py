"""What a campaign tells people."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from tests.chaos.outcome import Outcome

ENDS = {
    "ok": "succeeded",
    "error": "failed and said why",
    "cancelled": "were cancelled",
    "killed": "were killed",
    "stuck": "did not end",
}
STRIKES = {"fault": "faults of TiKV and PD", "our storage": "faults of our storage", "weather": "weather"}


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def tell(outcome: Outcome, log: Path | None) -> None:
    """Tell what a run has found.

    :param log: gets the whole story.
    """
    for text in outcome.findings:
        say(f"seed {outcome.seed}: {text}")
    if log is not None:
        with log.open("a") as file:
            file.write(f"=== seed {outcome.seed}, {outcome.took_s:.2f} s\n" + "\n".join(outcome.log) + "\n")


def sum_up(outcomes: list[Outcome], took_s: float) -> int:
    """Tell what happened how often.

    :return: 1 if there is a finding.
    """
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
    width = max(map(len, counts), default=0)
    for name, number in sorted(counts.items()):
        say(f"{name:<{width}}  {number}")
    ends: Counter[str] = Counter()
    struck: Counter[str] = Counter()
    for name, number in counts.items():
        theme, _, rest = name.partition(": ")
        if theme.endswith(("backup", "checksum", "restore")) and rest in ENDS:
            ends[rest] += number
        elif theme in STRIKES and not rest.endswith("refused"):
            struck[theme] += number
    say(f"{sum(ends.values())} tries: {', '.join(f'{n} {ENDS[end]}' for end, n in ends.most_common())}")
    say(f"struck: {', '.join(f'{n} by {STRIKES[theme]}' for theme, n in struck.most_common())}")
    bad = [outcome.seed for outcome in outcomes if outcome.findings]
    slowest = max(outcomes, key=lambda o: o.took_s, default=None)
    say(
        f"{len(outcomes)} runs in {took_s:.0f} s, {len(bad)} with findings{f': {bad}' if bad else ''};"
        f" slowest {f'{slowest.took_s:.1f} s (seed {slowest.seed})' if slowest else '-'};"
        f" memory at most {max((o.memory_bytes for o in outcomes), default=0) >> 20} MiB"
    )
    return 1 if bad else 0
