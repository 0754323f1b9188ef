"""Backups that have to end well whatever happens to stores, leaders, regions, PD and the storage meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_answers import REGION_ERRORS
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.exceptions import BudgetExceededError
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.rawbr import coverage, gaps, push
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.options import backup_options
from airflow_provider_tikvbr.rawbr.summary import BackupSummary
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from tests.rawbr.jobs import COUNT, Events, cluster, key, meanwhile
from tests.rawbr.test_backup_resume import check, sst_names
from tests.rawbr.test_push import undisturbed
from tests.support.waiting import until

V1, V2 = ApiVersion.V1, ApiVersion.V2
BOTH = pytest.mark.parametrize("version", [V1, V2])
MANY: dict[str, Any] = {"replicas": 3, "split_keys": [key(i) for i in range(10, COUNT, 10)]}
# It knows no refusal that lasts; a backup has no business with the first three.
PASSING = sorted(set(REGION_ERRORS) - {"raft_entry_too_large", "flashback_in_progress", "disk_full"})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (push, gaps):
        monkeypatch.setattr(module, "RETRY_BASE_S", 0.05)
        monkeypatch.setattr(module, "RETRY_CAP_S", 0.2)
    monkeypatch.setattr(coverage, "PROGRESS_INTERVAL_S", 0.0)


async def run(client: Cluster, place: Path, events: Events | None = None, **options: Any) -> BackupSummary:
    async with open_storage(f"local://{place}") as storage:
        return await backup(client, storage, backup_options(**{"owner": "run", **options}), events or Events())


def slowly(embedded: EmbeddedCluster, delay_s: float = 0.05) -> Rule:
    """Let each file take its time, so that something can happen half-way."""
    return embedded.faults.add(Rule(kind=Kind.STORAGE_DELAY, method=methods.BACKUP, delay_s=delay_s))


async def half_way(
    embedded: EmbeddedCluster, client: Cluster, place: Path, then: Callable[[], Any], version: ApiVersion
) -> BackupSummary:
    """Let something happen when half of the backup is done, and look at what comes of it."""
    slow, events = slowly(embedded), Events()
    job = run(client, place, events)
    done: Callable[[], bool] = lambda: bool(events.progress) and events.progress[-1].done >= 20  # noqa: E731
    summary: BackupSummary = await meanwhile(job, done, then)
    slow.disarm()
    assert undisturbed(embedded, place, summary)
    await check(place, summary, version)
    return summary


async def over_and_over(work: Awaitable[Any], act: Callable[[], Any], pause_s: float) -> Any:
    """Do something again and again while a job runs."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            done = act()
            if asyncio.iscoroutine(done):
                await done
            await asyncio.wait((task,), timeout=pause_s)
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@BOTH
async def test_a_store_that_is_killed_for_good(version: ApiVersion, tmp_path: Path) -> None:
    async with cluster(tmp_path, version, **MANY) as (embedded, client):
        await half_way(embedded, client, tmp_path / "place", lambda: embedded.stop_store(2), version)


@BOTH
async def test_every_region_splits_once(version: ApiVersion, tmp_path: Path) -> None:
    split = [key(i) for i in range(5, COUNT, 10)]
    async with cluster(tmp_path, version, **MANY) as (embedded, client):
        summary = await half_way(embedded, client, tmp_path / "place", lambda: embedded.split(split), version)
    assert summary.total_ranges > 40


@BOTH
async def test_leaders_that_are_shuffled_all_the_time(version: ApiVersion, tmp_path: Path) -> None:
    rnd = random.Random(5)
    async with cluster(tmp_path, version, **MANY) as (embedded, client):
        slowly(embedded)

        def shuffle() -> None:
            for region in embedded.topology.regions:
                embedded.topology.transfer_leader(region.id, rnd.choice(region.peers).store_id)

        summary = await over_and_over(run(client, tmp_path / "place"), shuffle, 0.2)
    await check(tmp_path / "place", summary, version)


@BOTH
async def test_a_pd_that_restarts(version: ApiVersion, tmp_path: Path) -> None:
    async with cluster(tmp_path, version, **MANY) as (embedded, client):
        # What is missing has to be looked up at PD while it is away.
        embedded.faults.add(Rule(kind=Kind.RESET, method=methods.BACKUP, store_id=1, messages=2, times=1))

        async def restart() -> None:
            await embedded.stop_pd(0)
            await asyncio.sleep(1.0)
            await embedded.start_pd(0)

        await half_way(embedded, client, tmp_path / "place", restart, version)


@pytest.mark.parametrize("seed", range(3))
async def test_a_storage_that_fails_and_throttles(seed: int, tmp_path: Path) -> None:
    async with cluster(tmp_path, **MANY) as (embedded, client):
        embedded.faults.seed(seed)
        rules = [
            embedded.faults.add(Rule(kind=kind, method=methods.BACKUP, probability=probability))
            for kind, probability in ((Kind.STORAGE_503, 0.25), (Kind.STORAGE_SLOW_DOWN, 0.3))
        ]
        summary = await run(client, tmp_path / "place")
        assert all(rule.hits for rule in rules)
        assert undisturbed(embedded, tmp_path / "place", summary)
    await check(tmp_path / "place", summary)


@pytest.mark.parametrize("kind", [Kind.DUPLICATE, Kind.DROP, Kind.RESET, Kind.CUT, Kind.SLOW, Kind.REGION_ERROR])
async def test_streams_that_go_wrong(kind: Kind, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"error": "not_leader"} if kind is Kind.REGION_ERROR else {}
    settings |= {"delay_s": 0.02} if kind is Kind.SLOW else {}
    async with cluster(tmp_path, V2, **MANY) as (embedded, client):
        embedded.faults.seed(3)
        rule = embedded.faults.add(Rule(kind=kind, method=methods.BACKUP, probability=0.3, **settings))
        summary = await run(client, tmp_path / "place")
        assert rule.hits
        assert undisturbed(embedded, tmp_path / "place", summary)
    await check(tmp_path / "place", summary, V2)


@pytest.mark.parametrize("error", PASSING)
async def test_every_region_error(error: str, tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        rule = embedded.faults.add(Rule(kind=Kind.REGION_ERROR, method=methods.BACKUP, error=error, times=2))
        summary = await run(client, tmp_path / "place")
        assert rule.hits == 2
    await check(tmp_path / "place", summary)


@pytest.mark.parametrize("kind", [Kind.SILENT, Kind.HANG])
async def test_a_store_that_falls_silent(kind: Kind, tmp_path: Path) -> None:
    """It is given up after a while that goes by the budget, and asked again."""
    async with cluster(tmp_path, **MANY) as (embedded, client):
        where: dict[str, Any] = {"messages": 2} if kind is Kind.SILENT else {}
        rule = embedded.faults.add(Rule(kind=kind, method=methods.BACKUP, store_id=2, times=1, **where))
        events = Events()
        summary = await run(client, tmp_path / "place", events, budget="500ms")
        assert rule.hits == 1
        assert undisturbed(embedded, tmp_path / "place", summary)
    await check(tmp_path / "place", summary)


async def test_a_store_that_stays_silent_ends_the_backup(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, **MANY) as (embedded, client):
        silent = embedded.faults.add(Rule(kind=Kind.SILENT, method=methods.BACKUP, store_id=2, messages=0))
        with pytest.raises(BudgetExceededError, match=r"store 2 .* was silent for"):
            await run(client, place, budget="150ms")
        kept = sst_names(place)
        silent.disarm()
        summary = await run(client, place)
    assert len(await check(place, summary) & kept) > 20


@pytest.mark.parametrize("seed", range(2))
async def test_everything_at_once(seed: int, tmp_path: Path) -> None:
    """Tries fail for now, or are stopped, until one comes through; none loses what the others have done."""
    place, rnd = tmp_path / "place", random.Random(seed)
    async with cluster(tmp_path, V2, **MANY) as (embedded, client):
        faults = embedded.faults
        faults.seed(seed)
        slowly(embedded, 0.02)
        for kind in (Kind.STORAGE_503, Kind.STORAGE_SLOW_DOWN, Kind.DROP, Kind.DUPLICATE, Kind.RESET):
            faults.add(Rule(kind=kind, method=methods.BACKUP, probability=0.1))
        faults.add(Rule(kind=Kind.STATUS, method=methods.PD_SCAN_REGIONS, probability=0.2))
        down: list[int] = []

        async def act() -> None:
            region = rnd.choice(list(embedded.topology.regions))
            embedded.topology.transfer_leader(region.id, rnd.choice(region.peers).store_id)
            if down:
                await embedded.start_store(down.pop())
            elif rnd.random() < 0.2:
                down.append(rnd.choice([1, 2, 3]))
                await embedded.stop_store(down[0])

        summary: BackupSummary | None = None
        tries = 0
        while summary is None:
            tries += 1
            job = asyncio.ensure_future(over_and_over(run(client, place, budget="2s"), act, 0.1))
            if tries <= 2:
                before = len(sst_names(place))
                await until(lambda before=before: len(sst_names(place)) > before + 5 or job.done())  # type: ignore[misc] # noqa: B023
                job.cancel()
            try:
                summary = await job
            except (BudgetExceededError, asyncio.CancelledError):
                assert tries < 10
        faults.clear()
    await check(place, summary, V2)


async def test_a_status_that_comes_for_ever_is_said(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        embedded.faults.add(Rule(kind=Kind.STATUS, method=methods.BACKUP, code=grpc.StatusCode.UNAVAILABLE))
        with pytest.raises(BudgetExceededError, match=r"is not complete: nothing came in for 0\.2 s"):
            await run(client, tmp_path / "place", budget="200ms")
