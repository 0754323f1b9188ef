"""A short campaign; ``make chaos`` runs a long one."""

from __future__ import annotations

import multiprocessing.context
from pathlib import Path

import pytest

from tests.chaos.campaign import run_isolated
from tests.chaos.kills import FACES, run_kills, start_zygote

# Seeds that have found something once. What each stood for has a test of its own too:
REGRESSIONS = (
    20,  # tests/tikv/test_cluster.py: no status server answers for a moment
    43,
    1043,  # ... or answers 429
    50,  # tests/tikv/test_pd.py: a new leader that is not ready
    1110,  # tests/tikv/test_channel.py: PD ends a timestamp request without an answer
    90,  # a storage that failed has left a lock of ours
)
CALM_SEEDS = range(500, 505)
SEEDS = range(30)
KILLS = (
    *zip(FACES, (1, 2, 3), strict=True),
    ("triggerer", 101),  # tests/storage/test_local.py: unfinished files of a killed writer
)


@pytest.mark.parametrize("seed", CALM_SEEDS)
def test_fine_weather(seed: int, tmp_path: Path) -> None:
    outcome = run_isolated(seed, tmp_path, False)
    assert not outcome.findings, "\n".join(outcome.log)


@pytest.mark.parametrize("seed", [*REGRESSIONS, *SEEDS])
def test_faults(seed: int, tmp_path: Path) -> None:
    outcome = run_isolated(seed, tmp_path)
    assert not outcome.findings, "\n".join(outcome.log)


@pytest.fixture(scope="module")
def zygote() -> multiprocessing.context.ForkServerContext:
    """The process that others are forked from; it ends with this one."""
    return start_zygote()


@pytest.mark.parametrize(("face", "seed"), KILLS)
def test_kills(face: str, seed: int, tmp_path: Path, zygote: multiprocessing.context.ForkServerContext) -> None:
    outcome, _ = run_kills(seed, tmp_path, face, zygote)
    assert not outcome.findings, "\n".join(outcome.log)
