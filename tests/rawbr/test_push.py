"""Backups that are disturbed: stores that fail, leaders and regions that move, jobs that are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    BudgetExceededError,
    ProtocolError,
    RegionRefusedError,
    StoreUnavailableError,
    TransientError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, errorpb_pb2, methods
from airflow_provider_tikvbr.rawbr import gaps, push
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.coverage import idle_timeout_s
from airflow_provider_tikvbr.rawbr.files import check_files
from airflow_provider_tikvbr.rawbr.lock_record import BACKUP_LOCK
from airflow_provider_tikvbr.rawbr.meta import META_NAME, read_meta
from airflow_provider_tikvbr.rawbr.options import backup_options
from airflow_provider_tikvbr.rawbr.summary import BackupSummary
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyCodec
from airflow_provider_tikvbr.tikv.retry import Backoff
from airflow_provider_tikvbr.tikv.store import StoreClient
from tests.rawbr.jobs import Events, checksum_of, cluster, failed, key, make_pairs, meanwhile, names

V1, V2 = ApiVersion.V1, ApiVersion.V2
BUSY = errorpb_pb2.ServerIsBusy(reason="testing")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "RETRY_BASE_S", 0.05)
    monkeypatch.setattr(gaps, "RETRY_BASE_S", 0.05)
    monkeypatch.setattr(gaps, "RETRY_CAP_S", 0.2)


async def run(client: Cluster, place: Path, events: Events | None = None, **options: Any) -> BackupSummary:
    async with open_storage(f"local://{place}") as storage:
        return await backup(client, storage, backup_options(**options), events or Events())


async def check(place: Path, summary: BackupSummary, version: ApiVersion = V1) -> None:
    """The backup is whole: all pairs once, nothing beside the files that it names."""
    assert summary.checksum == checksum_of(make_pairs(), KeyCodec(version).prefix)
    async with open_storage(f"local://{place}") as storage:
        meta = await read_meta(storage)
    assert sum(file.total_kvs for file in meta.files) == summary.total_kv
    assert names(place) == {META_NAME, *(file.name for file in meta.files)}


def undisturbed(
    embedded: EmbeddedCluster, place: Path, summary: BackupSummary | None = None, *, retried: bool = False
) -> bool:
    """Whether nothing is left of a backup that failed but files that no backupmeta names.

    :param summary: a backup that succeeded: it leaves the GC safepoint that it promises, and its backupmeta.
    :param retried: the next try goes on with the GC safepoint.
    """
    pd = embedded.pd
    points = [summary.backup_ts - 1] if summary is not None and summary.backup_ts is not None else []
    if not retried and [service.safe_point for service in pd.safe_points.services().values()] != points:
        return False
    left = pd.schedulers.paused() or pd.config.ttl_values(after_s=1)
    return not left and names(place) & {META_NAME, BACKUP_LOCK} == ({META_NAME} if summary is not None else set())


def move_leaders(embedded: EmbeddedCluster, from_store: int) -> None:
    for region in embedded.topology.regions:
        if region.leader_store_id == from_store:
            others = [peer.store_id for peer in region.peers if peer.store_id != from_store]
            embedded.topology.transfer_leader(region.id, others[region.id % len(others)])


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize(
    "answer",
    [
        failed(server_is_busy=BUSY),
        failed(not_leader=errorpb_pb2.NotLeader(region_id=2)),
        failed(epoch_not_match=errorpb_pb2.EpochNotMatch()),
        failed(message="something new"),
        # For good by itself, but in the first round another store may lead the region.
        failed(disk_full=errorpb_pb2.DiskFull(store_id=[1])),
        failed('Io(Custom { kind: Other, error: "code: Some("SlowDown")" })'),
        failed('Io(Custom { kind: Other, error: "error trying to connect: Connection refused" })'),
        brpb_pb2.BackupResponse(start_key=b"r\0\0\0a", end_key=b"r\0\0\0b", api_version=V2),  # type: ignore[arg-type]
    ],
    ids=["busy", "not-leader", "epoch", "unknown", "disk-full", "slow-down", "connect", "nothing-of-it"],
)
async def test_what_a_store_leaves_out_is_asked_for_again(
    version: ApiVersion, answer: brpb_pb2.BackupResponse, tmp_path: Path
) -> None:
    if version is V1 and not answer.HasField("error"):
        answer = brpb_pb2.BackupResponse(start_key=b"a", end_key=b"b")
    async with cluster(tmp_path, version) as (embedded, client):
        embedded.faults.fail(methods.BACKUP, response=answer, store_id=1)
        summary = await run(client, tmp_path / "place")
        assert undisturbed(embedded, tmp_path / "place", summary)
    await check(tmp_path / "place", summary, version)


@pytest.mark.parametrize("release", ["6.1.7", "8.5.0"])
async def test_a_try_after_one_that_died(release: str, tmp_path: Path) -> None:
    """The file of V1's first region has the same name in each try, and TiKV before 6.2 does not write over it."""
    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path, version=release) as (embedded, client):
        first = await run(client, place, owner="run")
        (place / META_NAME).unlink()
        left = names(place)
        summary = await run(client, place, events, owner="run")
        assert undisturbed(embedded, tmp_path / "place", summary)
    assert summary.checksum == first.checksum == checksum_of(make_pairs())
    async with open_storage(f"local://{place}") as storage:
        meta = await read_meta(storage)
        await check_files(storage, meta.files)
    (again,) = left & {file.name for file in meta.files}
    told = [note for note in events.notes if f"met {again} of an earlier try" in note]
    assert bool(told) == (release == "6.1.7")


async def test_a_store_that_is_asked_twice_meets_its_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = StoreClient.backup
    broken: list[str] = []

    async def breaks_once(self: StoreClient, request: Any, **settings: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(real(self, request, **settings)) as responses:
            async for response in responses:
                yield response
                if not response.start_key and not broken:
                    broken.append(response.files[0].name)
                    raise StoreUnavailableError("broken off", store_id=self.store.id)

    monkeypatch.setattr(StoreClient, "backup", breaks_once)
    async with cluster(tmp_path, version="6.1.7") as (_, client):
        summary = await run(client, tmp_path / "place")
    assert summary.checksum == checksum_of(make_pairs())
    assert (tmp_path / "place" / broken[0]).exists()


async def test_credentials_that_run_out_are_renewed(tmp_path: Path) -> None:
    place = tmp_path / "place"
    refused = failed('Io(Custom { kind: PermissionDenied, error: "code: Some("ExpiredToken")" })')

    class Renewing(LocalStorage):
        """As if each look at the credentials gave others."""

        looks = 0

        def backend(self) -> brpb_pb2.StorageBackend:
            self.looks += 1
            return brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(self.path) + "/." * self.looks))

    async with cluster(tmp_path) as (embedded, client):
        embedded.faults.fail(methods.BACKUP, response=refused, store_id=2)
        summary = await backup(client, Renewing(path=place), backup_options(), Events())
        await check(place, summary)
        embedded.faults.fail(methods.BACKUP, response=refused, store_id=2)
        with pytest.raises(AuthenticationError, match="ExpiredToken"):
            await run(client, tmp_path / "other")


def test_a_store_may_be_silent_for_as_long_as_it_waits_for_s3() -> None:
    assert idle_timeout_s(0) > 900
    # Eight regions of a GiB at 8 MiB/s.
    assert idle_timeout_s(8 << 20) > 900 + 1024


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.ABORTED])
async def test_a_stream_that_breaks_is_opened_again(code: grpc.StatusCode, tmp_path: Path) -> None:
    events = Events()
    async with cluster(tmp_path) as (embedded, client):
        twice = embedded.faults.fail(methods.BACKUP, code=code, store_id=3, times=2)
        summary = await run(client, tmp_path / "place", events)
        assert twice.hits == 2
    await check(tmp_path / "place", summary)
    assert not events.notes


async def test_what_came_before_a_stream_broke_off_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream breaks off when it has told something: the next one is asked for the rest alone."""
    real, told = StoreClient.backup, {}

    async def breaks_once(self: StoreClient, request: Any, **settings: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(real(self, request, **settings)) as responses:
            async for response in responses:
                yield response
                if self.store.id not in told:
                    told[self.store.id] = response.files[0].name
                    raise StoreUnavailableError("broken off", store_id=self.store.id)

    monkeypatch.setattr(StoreClient, "backup", breaks_once)
    async with cluster(tmp_path, V2) as (_, client):
        summary = await run(client, tmp_path / "place")
    assert sorted(told) == [1, 2, 3]
    assert summary.checksum == checksum_of(make_pairs(), KeyCodec(V2).prefix)
    assert summary.total_ranges == 8
    assert names(tmp_path / "place") > set(told.values())


async def test_a_region_that_is_refused_for_good(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        answer = failed(disk_full=errorpb_pb2.DiskFull(store_id=[1]))
        embedded.faults.fail(methods.BACKUP, response=answer, store_id=1, times=None)
        with pytest.raises(RegionRefusedError, match="disk full"):
            await run(client, tmp_path / "place")
        assert undisturbed(embedded, tmp_path / "place")


async def test_an_answer_beside_the_question_ends_the_backup(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        answer = brpb_pb2.BackupResponse(start_key=b"a", end_key=b"zzz")
        embedded.faults.fail(methods.BACKUP, response=answer, store_id=1)
        with pytest.raises(ProtocolError, match="when asked for"):
            await run(client, tmp_path / "place", start="6b", end="6c")
        assert undisturbed(embedded, tmp_path / "place")


async def test_leaders_that_move_before_their_store_looks(tmp_path: Path) -> None:
    async with cluster(tmp_path, replicas=3) as (embedded, client):
        slow = embedded.faults.fail(methods.BACKUP, store_id=1, delay_s=0.3)
        job = run(client, tmp_path / "place")
        summary = await meanwhile(job, lambda: slow.hits == 1, lambda: move_leaders(embedded, 1))
    await check(tmp_path / "place", summary)


async def test_regions_that_split_meanwhile(tmp_path: Path) -> None:
    async with cluster(tmp_path, V2) as (embedded, client):
        slow = embedded.faults.fail(methods.BACKUP, delay_s=0.3, times=3)
        job = run(client, tmp_path / "place")
        split = [key(i) for i in range(25, 400, 50)]
        summary = await meanwhile(job, lambda: slow.hits == 3, lambda: embedded.split(split))
    await check(tmp_path / "place", summary, V2)
    assert summary.total_ranges == 16


async def test_a_store_that_dies_leaves_its_regions_to_others(tmp_path: Path) -> None:
    events = Events()
    async with cluster(tmp_path, replicas=3) as (embedded, client):
        slow = embedded.faults.fail(methods.BACKUP, store_id=2, delay_s=30)
        job = run(client, tmp_path / "place", events)
        summary = await meanwhile(job, lambda: slow.hits == 1, lambda: embedded.stop_store(2))
    await check(tmp_path / "place", summary)
    assert any("store 2" in note for note in events.notes)


async def test_a_store_that_comes_back(tmp_path: Path) -> None:
    """With one replica nobody else has its regions, so the backup waits for it."""
    events = Events()
    async with cluster(tmp_path) as (embedded, client):
        await embedded.stop_store(2)
        job = run(client, tmp_path / "place", events)
        summary = await meanwhile(
            job, lambda: any("left to back up" in note for note in events.notes), lambda: embedded.start_store(2)
        )
    await check(tmp_path / "place", summary)


async def test_progress_gives_new_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause costs ten seconds of the budget here: four of them are too many, but not if something comes in."""
    pauses: list[float] = []

    class DearPauses(Backoff):
        def __init__(self, **settings: Any) -> None:
            self.time = 0.0
            super().__init__(**settings, clock=lambda: self.time)

        def pause_s(self, error: TransientError) -> float:
            super().pause_s(error)
            pauses.append(self.time)
            self.time += 10.0
            return 0.0

    monkeypatch.setattr(gaps, "Backoff", DearPauses)
    real, willing = StoreClient.backup, {2: key(50), 4: key(200), 6: key(350)}

    async def reluctant(self: StoreClient, request: Any, **settings: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(real(self, request, **settings)) as responses:
            async for response in responses:
                done = {start for pause, start in willing.items() if pause <= len(pauses)}
                refuse = self.store.id == 2 and response.start_key not in done
                yield failed(server_is_busy=BUSY) if refuse else response

    monkeypatch.setattr(StoreClient, "backup", reluctant)
    async with cluster(tmp_path) as (embedded, client):
        led = [region.start for region in embedded.topology.regions if region.leader_store_id == 2]
        assert set(map(bytes, led)) == set(map(bytes, willing.values()))
        summary = await run(client, tmp_path / "place", budget=25)
    await check(tmp_path / "place", summary)
    assert len(pauses) == 6


@pytest.mark.parametrize("version", [V1, V2])
async def test_a_store_that_stays_away_ends_the_backup(version: ApiVersion, tmp_path: Path) -> None:
    events = Events()
    async with cluster(tmp_path, version) as (embedded, client):
        await embedded.stop_store(2)
        with pytest.raises(BudgetExceededError, match=r"not complete: nothing came in for 0.5 s, left are \[.*store 2"):
            await run(client, tmp_path / "place", events, budget=0.5, remove_schedulers=True)
        assert undisturbed(embedded, tmp_path / "place", retried=True)
        assert len(embedded.pd.safe_points.services()) == (version is V2)
    # What the others have answered was not thrown away at the first failure.
    assert max(event.done for event in events.progress) >= 4
    assert len([note for note in events.notes if "left to back up" in note]) <= 3


async def test_a_store_that_answers_for_nothing(tmp_path: Path) -> None:
    """PD names a leader that leads nothing any more, and says so by a stream that just ends."""
    async with cluster(tmp_path, replicas=3) as (embedded, client):
        stale = [(await client.pd.region_by_id(region.id)) for region in embedded.topology.regions]
        move_leaders(embedded, 1)
        survey, calls = client.regions.survey, 0

        async def lag(keys: Any) -> Any:
            nonlocal calls
            calls += 1
            return (
                [region for region in stale if region and region.keys.intersect(keys)]
                if calls <= 4
                else await survey(keys)
            )

        client.regions.survey = lag  # type: ignore[method-assign]
        for store_id in (2, 3):
            embedded.faults.fail(methods.BACKUP, response=failed(server_is_busy=BUSY), store_id=store_id)
        summary = await run(client, tmp_path / "place")
    await check(tmp_path / "place", summary)


@pytest.mark.parametrize("version", [V1, V2])
async def test_a_job_that_is_stopped_leaves_nothing_behind(version: ApiVersion, tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, version) as (embedded, client):
        slow = embedded.faults.fail(methods.BACKUP, store_id=1, delay_s=30)
        job = asyncio.ensure_future(run(client, place, remove_schedulers=True))

        def stop() -> None:
            assert not undisturbed(embedded, place)
            job.cancel()

        with pytest.raises(asyncio.CancelledError):
            await meanwhile(job, lambda: slow.hits == 1, stop)
        assert undisturbed(embedded, place)
        # The place can be used again.
        summary = await run(client, place)
    assert summary.checksum == checksum_of(make_pairs(), KeyCodec(version).prefix)


async def test_the_rate_limit_goes_to_one_request_at_a_time(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        embedded.faults.fail(methods.BACKUP, response=failed(server_is_busy=BUSY), store_id=1)
        summary = await run(client, tmp_path / "place", ratelimit=1)
    await check(tmp_path / "place", summary)
