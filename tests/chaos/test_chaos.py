"""A short campaign; ``make chaos`` runs a long one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.chaos.isolation import run_isolated
from tests.chaos.kills import run_kills
from tests.chaos.outcome import Outcome

# Seeds that have found something once. What each stood for has a test of its own too:
REGRESSIONS = (
    20,  # tests/tikv/test_cluster.py: no status server answers for a moment
    1043,  # ... or answers 429
    50,  # tests/tikv/test_pd.py: a new leader that is not ready
    1110,  # tests/tikv/test_channel.py: PD ends a timestamp request without an answer
    90,  # a storage that failed has left a lock of ours
    710,  # tests/test_timelimit.py: a cancellation that is lost
    40010,  # ... and an error that comes with one
    60033,  # tests/rawbr/test_split.py: a new region that is merged away
    50711,  # tests/rawbr/test_meta_damage.py: keys of V1 that begin like those of V2
    100411,  # a store switched to import mode after it had been told to leave it: found by a check that was wrong
)
FAULTS = range(7, 25)
CALM = range(500, 503)
KILLS = (
    ("worker", 1),
    ("triggerer", 41),  # tests/rawbr/test_backup_resume.py: killed between the end of the backup and that of the pause
    ("triggerer", 101),  # tests/storage/test_local.py: unfinished files of a killed writer
)
# Runs mostly wait, so that more of them than there are processors are no slower.
JOBS = 3

Outcomes = Callable[[str, int], Outcome]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """What the runs show that are asked for; they have all begun, in processes of their own."""
    root = tmp_path_factory.mktemp("chaos")
    items = [i for i in request.session.items if isinstance(i, pytest.Function) and i.path == Path(__file__)]
    wanted = [(str(i.callspec.params["how"]), int(str(i.callspec.params["seed"]))) for i in items]
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        begun = {(how, seed): pool.submit(run, how, seed, root) for how, seed in wanted}
        yield lambda how, seed: begun[how, seed].result()
        pool.shutdown(cancel_futures=True)


def run(how: str, seed: int, root: Path) -> Outcome:
    """Run one seed."""
    directory = root / how
    directory.mkdir(exist_ok=True)
    if how in ("calm", "faults"):
        return run_isolated(seed, directory, faults=how == "faults")
    return run_kills(seed, directory, how)[0]


def told(outcome: Outcome, again: str) -> str:
    """How to see it again, what is wrong, and all that happened."""
    return "\n".join(
        [f"again: python -m tests.chaos{again} --seed {outcome.seed}", *outcome.findings, "", *outcome.log]
    )


@pytest.mark.parametrize(("how", "seed"), KILLS)
def test_goes_on_after_kills(how: str, seed: int, outcomes: Outcomes) -> None:
    outcome = outcomes(how, seed)
    findings = outcome.findings
    assert not findings, told(outcome, f".kills --kills 1 --face {how}")


@pytest.mark.parametrize(
    ("how", "seed"), [*(("faults", seed) for seed in (*REGRESSIONS, *FAULTS)), *(("calm", seed) for seed in CALM)]
)
def test_passes_all_checks(how: str, seed: int, outcomes: Outcomes) -> None:
    outcome = outcomes(how, seed)
    findings = outcome.findings
    assert not findings, told(outcome, f" --runs 1{' --calm' if how == 'calm' else ''}")
