"""Backups that are broken off and gone on with."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import (
    BackupExistsError,
    BudgetExceededError,
    ChecksumMismatchError,
    InvalidOptionError,
    PDUnavailableError,
    StorageError,
    TransientError,
    UnverifiedError,
)
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.rawbr import checkpoint as checkpoints
from airflow_provider_tikvbr.rawbr import coverage, gaps, push, safepoint
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.leases import SchedulerLease
from airflow_provider_tikvbr.rawbr.lock_record import BACKUP_LOCK
from airflow_provider_tikvbr.rawbr.meta import META_NAME, read_meta
from airflow_provider_tikvbr.rawbr.options import backup_options
from airflow_provider_tikvbr.rawbr.safepoint import SafepointLease
from airflow_provider_tikvbr.rawbr.summary import BackupSummary
from airflow_provider_tikvbr.rawbr.takeover import DIRECTORY
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiVersion, KeyCodec
from tests.rawbr.jobs import Events, checksum_of, cluster, failed, make_pairs, meanwhile, names
from tests.rawbr.test_backup import content
from tests.support.target import is_as_before

T = TypeVar("T")
V1, V1TTL, V2 = ApiVersion
AES: dict[str, Any] = {"crypter_method": "aes192-ctr", "crypter_key": "07" * 24}
REFUSED = failed('Io(Os { code: 13, kind: PermissionDenied, message: "Permission denied" })')


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "RETRY_BASE_S", 0.05)
    monkeypatch.setattr(gaps, "RETRY_BASE_S", 0.05)
    monkeypatch.setattr(gaps, "RETRY_CAP_S", 0.2)
    monkeypatch.setattr(coverage, "PROGRESS_INTERVAL_S", 0.0)


async def run(client: Cluster, place: Path, events: Events | None = None, **options: Any) -> BackupSummary:
    async with open_storage(f"local://{place}") as storage:
        return await backup(client, storage, backup_options(**{"owner": "run", **options}), events or Events())


async def cancelled(embedded: EmbeddedCluster, client: Cluster, place: Path, **options: Any) -> set[str]:
    """A try that is stopped when two of three stores have done their part; the files that it leaves."""
    slow = embedded.faults.fail(methods.BACKUP, store_id=1, delay_s=30)
    events = Events()
    job = asyncio.ensure_future(run(client, place, events, **options))
    keys = client.codec.region_range(client.codec.api_range(EVERYTHING))
    regions = [region for region in embedded.topology.regions if region.keys.intersect(keys)]
    there = sum(1 for region in regions if region.leader_store_id != 1)

    def done() -> bool:
        return slow.hits > 0 and bool(events.progress) and events.progress[-1].done == there

    with pytest.raises(asyncio.CancelledError):
        await meanwhile(job, done, job.cancel)
    slow.disarm()
    assert names(place) & {META_NAME, BACKUP_LOCK} == set()
    return sst_names(place)


def sst_names(place: Path) -> set[str]:
    return {name for name in names(place) if name.endswith(".sst")} if place.exists() else set()


async def check(place: Path, summary: BackupSummary, version: ApiVersion = V1, **cipher: Any) -> set[str]:
    """The backup is whole, and nothing lies beside it; the names of its files."""
    pairs = make_pairs()
    assert summary.checksum == checksum_of(pairs, KeyCodec(version).prefix)
    meta, found = await content(place, backup_options(**cipher).cipher)
    assert found == [(*pair, 0) for pair in pairs]
    files = {file.name for file in meta.files}
    assert names(place) == {META_NAME, *files}
    return files


@pytest.mark.parametrize(
    ("version", "options"),
    [
        (V1, {}),
        (V1TTL, {"compression": "lz4"}),
        (V2, {}),
        (V1, {"dst_api_version": "v2", **AES}),
        (V2, AES),
    ],
    ids=["v1", "v1ttl", "v2", "v1-to-v2-encrypted", "v2-encrypted"],
)
async def test_a_stopped_backup_is_gone_on_with(version: ApiVersion, options: dict[str, Any], tmp_path: Path) -> None:
    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path, version) as (embedded, client):
        kept = await cancelled(embedded, client, place, **options)
        assert not embedded.pd.safe_points.services()
        assert len(kept) >= 4
        summary = await run(client, place, events, checksum=True, **options)
    dst = summary.dst_api_version
    cipher = {name: value for name, value in options.items() if name.startswith("crypter")}
    files = await check(place, summary, dst, **cipher)
    assert len(files & kept) >= 4
    (note,) = [note for note in events.notes if "were finished by" in note]
    resumed = int(note.partition(" ")[0])
    assert 4 <= resumed <= len(files & kept)
    assert " of about 8 ranges were finished by a try that began at 20" in note
    told = [event for event in events.progress if event.step == "Raw backup"]
    assert {event.done_before for event in told[1:]} <= {resumed}
    assert (told[-1].done, told[-1].done_before, told[-1].total) == (8, resumed, 8)
    assert (summary.total_ranges, summary.backup_total_regions) == (8, 8)


async def test_only_the_rest_is_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path) as (embedded, client):
        kept = await cancelled(embedded, client, place)
        other = [embedded.faults.fail(methods.BACKUP, store_id=i, delay_s=0, times=None) for i in (2, 3)]
        summary = await run(client, place)
        assert [point.hits for point in other] == [0, 0]
    assert await check(place, summary) > kept


async def test_a_backup_of_which_all_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was broken off between its last answer and backupmeta."""
    place = tmp_path / "place"
    async with cluster(tmp_path) as (embedded, client):
        with monkeypatch.context() as patch:
            patch.setattr("airflow_provider_tikvbr.rawbr.backup.write_meta", _break_off)
            with pytest.raises(TransientError, match="broken off"):
                await run(client, place)
        asked = embedded.faults.fail(methods.BACKUP, delay_s=0, times=None)
        summary = await run(client, place)
        assert not asked.hits
    await check(place, summary)


async def _break_off(*_: Any, **__: Any) -> None:
    raise TransientError("broken off")


# --- a process that is killed ---


class Photographed(LocalStorage):
    """A directory that is copied each time before something is changed in it: what a kill -9 would leave."""

    def __init__(self, path: Path, photos: Path) -> None:
        super().__init__(path=path)
        self.photos = photos
        self.taken: list[str] = []
        self._turn = asyncio.Lock()

    async def _after_a_photo(self, doing: str, change: Awaitable[T]) -> T:
        async with self._turn:
            shutil.copytree(self.path, self.photos / f"{len(self.taken):03}")
            self.taken.append(doing)
            return await change

    async def write(self, name: str, data: bytes) -> None:
        await self._after_a_photo(f"write {name}", super().write(name, data))

    async def create(self, name: str, data: bytes) -> bool:
        return await self._after_a_photo(f"create {name}", super().create(name, data))

    async def delete(self, name: str) -> None:
        await self._after_a_photo(f"delete {name}", super().delete(name))


@pytest.mark.parametrize(("version", "cipher"), [(V1, {}), (V2, AES)], ids=["v1", "v2-encrypted"])
async def test_whatever_a_killed_backup_leaves_is_gone_on_with(
    version: ApiVersion, cipher: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "PIECES_PER_FILE", 3)
    (tmp_path / "place").mkdir()
    storage = Photographed(tmp_path / "place", tmp_path / "photos")
    options: dict[str, Any] = {"owner": "run", "checksum": True, **cipher}
    async with cluster(tmp_path, version) as (_, client):
        await backup(client, storage, backup_options(**options))
        assert {f"create {META_NAME}", f"create {BACKUP_LOCK}", f"delete {DIRECTORY}/head.json"} <= set(storage.taken)
        for number, doing in enumerate(storage.taken):
            place = tmp_path / "photos" / f"{number:03}"
            if doing == f"delete {BACKUP_LOCK}":
                # The job is over, all but its lock.
                with pytest.raises(BackupExistsError):
                    await run(client, place, **options)
                continue
            summary = await run(client, place, **options)
            assert summary.verified
            await check(place, summary, version, **cipher)


async def test_files_of_which_nobody_was_told_do_not_stay(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path) as (embedded, client):
        kept = await cancelled(embedded, client, place)
        # A killed try has not saved its last pieces, whose files are there.
        for path in (place / DIRECTORY).glob("*-0*"):
            path.unlink()
        summary = await run(client, place)
    files = await check(place, summary)
    timeless = {name for name in kept if len(name) < 60}
    assert files & kept <= timeless


# --- what may and what may not differ ---


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"end": "7a"}, "end"),
    ({"start": "00"}, "start"),
    ({"dst_api_version": "v2"}, "dst_api_version"),
    ({"compression": "lz4"}, "compression"),
    ({"compression_level": 3}, "compression_level"),
    ({"crypter_key": "08" * 24}, "crypter_key"),
    ({"crypter_method": "", "crypter_key": ""}, "crypter_key"),
]


@pytest.mark.parametrize(("change", "name"), CHANGES)
async def test_another_option_is_refused(change: Mapping[str, Any], name: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path) as (embedded, client):
        await cancelled(embedded, client, place, **AES)
        before = names(place)
        with pytest.raises(InvalidOptionError, match=f"with another {name}: give the same {name}") as caught:
            await run(client, place, **{**AES, **change})
        assert caught.value.parameter == name
        assert "07" * 24 not in str(caught.value)
        assert names(place) == before
        await check(place, await run(client, place, **AES), **AES)


async def test_another_cluster_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path) as (embedded, client):
        await cancelled(embedded, client, place)
    (tmp_path / "other").mkdir()
    async with cluster(tmp_path / "other") as (_, client):
        with pytest.raises(InvalidOptionError, match="with another cluster"):
            await run(client, place)


async def test_what_may_differ(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path) as (embedded, client):
        kept = await cancelled(embedded, client, place, ratelimit=100, concurrency=3, checksum_concurrency=2)
        summary = await run(client, place, checksum=True, budget="5m", gcttl="7m", remove_schedulers=True)
    assert await check(place, summary) > kept


@pytest.mark.parametrize(
    ("options", "why"),
    [({"resume": False}, "resume is off"), ({"owner": "run 2"}, "it is of run"), ({"owner": ""}, "it is of run")],
)
async def test_starting_over_leaves_nothing_of_the_other_try(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path) as (embedded, client):
        kept = await cancelled(embedded, client, place)
        summary = await run(client, place, events, **options)
    files = await check(place, summary)
    assert all(len(name) < 60 for name in files & kept)
    assert any(f"not gone on with: {why}" in note for note in events.notes)


async def test_the_same_command_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path) as (embedded, client):
        kept = await cancelled(embedded, client, place, owner="")
        assert await check(place, await run(client, place, owner="")) > kept


# --- files that are not there ---


@pytest.mark.parametrize("how", ["gone", "cut"])
async def test_files_that_are_lost_are_written_again(how: str, tmp_path: Path) -> None:
    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path) as (embedded, client):
        await cancelled(embedded, client, place)
        lost = max(sst_names(place), key=len)
        if how == "gone":
            (place / lost).unlink()
        else:
            (place / lost).write_bytes((place / lost).read_bytes()[:-1])
        summary = await run(client, place, events)
    assert lost not in await check(place, summary)
    assert any(f"1 files of that try are missing or not what was written, such as {lost}" in n for n in events.notes)


async def test_the_first_file_may_have_been_written_over(tmp_path: Path) -> None:
    """Its name is the same in each try, so size alone does not tell whether it is the one of which the answer was."""
    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path, replicas=3) as (embedded, client):
        first = min(embedded.topology.regions, key=lambda region: region.start)
        embedded.topology.transfer_leader(first.id, 2)
        await cancelled(embedded, client, place)
        (name,) = (name for name in sst_names(place) if len(name) < 60)
        assert name.startswith("2/")
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        summary = await run(client, place, events)
    await check(place, summary)
    assert any(name in note for note in events.notes)


# --- over, but still there ---


async def test_an_old_backup_whose_checkpoint_is_left_is_not_taken_for_the_new_one(tmp_path: Path) -> None:
    """As with a key for S3 that may not delete; commands have no run that tells one from the other."""

    class Immovable(LocalStorage):
        async def delete(self, name: str) -> None:
            raise StorageError("AccessDenied: DeleteObject")

    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path) as (_, client):
        await backup(client, Immovable(path=place), backup_options(), events)
        assert any("backup.checkpoint could not be deleted" in note for note in events.notes)
        (place / BACKUP_LOCK).unlink()
        with pytest.raises(BackupExistsError):
            await backup(client, Immovable(path=place), backup_options(), Events())


# --- complete, but not compared ---


@pytest.mark.parametrize("version", [V1, V2])
async def test_a_complete_backup_is_only_compared(version: ApiVersion, tmp_path: Path) -> None:
    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path, version) as (embedded, client):
        down = embedded.faults.fail(methods.KV_RAW_CHECKSUM, code=grpc.StatusCode.UNAVAILABLE, times=None)
        with pytest.raises(
            BudgetExceededError, match=r"place is complete, but could not be compared .* which another try does: "
        ):
            await run(client, place, checksum=True, budget="300ms")
        down.disarm()
        with pytest.raises(BackupExistsError):
            await run(client, place, owner="run 2")
        with pytest.raises(BackupExistsError):
            await run(client, place, resume=False)
        held = embedded.pd.safe_points.services()
        assert len(held) == (version is V2)
        asked = embedded.faults.fail(methods.BACKUP, delay_s=0, times=None)
        summary = await run(client, place, events, checksum=True)
        assert not asked.hits
        assert list(embedded.pd.safe_points.services()) == list(held)
        assert {s.safe_point + 1 for s in held.values()} == ({summary.backup_ts} if summary.backup_ts else set())
    await check(place, summary, version)
    assert summary.verified
    assert (summary.total_ranges, summary.backup_total_regions) == (8, 8)
    assert any("only its last steps are left" in note for note in events.notes)


async def test_a_backup_that_was_killed_when_it_was_complete_is_put_right(tmp_path: Path) -> None:
    """Between ``backupmeta`` and the end of the pause, which the next try has to end."""
    place = tmp_path / "place"
    async with cluster(tmp_path) as (embedded, client):
        embedded.faults.fail(methods.KV_RAW_CHECKSUM, code=grpc.StatusCode.UNAVAILABLE, times=None)
        with pytest.raises(BudgetExceededError):
            await run(client, place, checksum=True, budget="300ms", remove_schedulers=True)
        embedded.faults.clear()
        lease = SchedulerLease(client)
        await lease.begin()
        await lease.pause()
        assert not is_as_before(embedded)
        summary = await run(client, place, remove_schedulers=True)
        assert is_as_before(embedded)
    await check(place, summary)


async def test_without_resuming_nobody_is_promised_another_try(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, V2) as (embedded, client):
        embedded.faults.fail(methods.KV_RAW_CHECKSUM, code=grpc.StatusCode.UNAVAILABLE, times=None)
        with pytest.raises(UnverifiedError, match="do not back up again, but compare the two later"):
            await run(client, place, checksum=True, budget="300ms", resume=False)
        # It is whole, and change capture can go on from it.
        assert len(embedded.pd.safe_points.services()) == 1
    assert names(place) == {META_NAME, *sst_names(place)}


async def test_a_backup_that_differs_is_not_compared_again(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path) as (embedded, client):
        await _unverified(embedded, client, place)
        await embedded.put([(make_pairs()[0][0], b"!")])
        with pytest.raises(ChecksumMismatchError, match="the backup is written, but"):
            await run(client, place, checksum=True)
    assert names(place) == {META_NAME, *sst_names(place)}


async def _unverified(embedded: EmbeddedCluster, client: Cluster, place: Path) -> None:
    down = embedded.faults.fail(methods.KV_RAW_CHECKSUM, code=grpc.StatusCode.UNAVAILABLE, times=None)
    with pytest.raises(BudgetExceededError):
        await run(client, place, checksum=True, budget="300ms")
    down.disarm()


# --- the GC safepoint between tries ---


async def broken_off(embedded: EmbeddedCluster, client: Cluster, place: Path, **options: Any) -> None:
    """A try that fails for now."""
    down = embedded.faults.fail(methods.BACKUP, store_id=1, code=grpc.StatusCode.UNAVAILABLE, times=None)
    with pytest.raises(BudgetExceededError):
        await run(client, place, budget="200ms", **options)
    down.disarm()


@pytest.mark.parametrize(
    ("options", "ttl"),
    [({}, 300), ({"gcttl": "1s"}, 30), ({"retry_in_s": 900.0}, 1200), ({"gcttl": "1h", "retry_in_s": 5.0}, 3600)],
)
async def test_gc_is_held_back_until_the_next_try(options: dict[str, Any], ttl: int, tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, V2) as (embedded, client):
        points = embedded.pd.safe_points
        await broken_off(embedded, client, place, **options)
        (held,) = points.services().values()
        assert ttl - 20 < points.ttl_s(held) <= ttl
        summary = await run(client, place)
        assert list(points.services()) == [held.service_id]
        assert summary.backup_ts == held.safe_point + 1
        async with open_storage(f"local://{place}") as storage:
            assert (await read_meta(storage)).end_version == summary.backup_ts
    await check(place, summary, V2)


@pytest.mark.parametrize("end", ["refused", "not-resumed"])
async def test_gc_is_not_held_back_if_nobody_goes_on(end: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, V2) as (embedded, client):
        if end == "refused":
            embedded.faults.fail(methods.BACKUP, response=REFUSED, store_id=2, times=None)
            with pytest.raises(StorageError, match="may not write"):
                await run(client, place)
        else:
            await broken_off(embedded, client, place, resume=False)
        assert not embedded.pd.safe_points.services()


async def test_a_stopped_backup_registers_where_it_began(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, V2) as (embedded, client):
        await cancelled(embedded, client, place)
        assert not embedded.pd.safe_points.services()
        state = json.loads((place / DIRECTORY / "head.json").read_text())["state"]
        summary = await run(client, place)
        assert summary.backup_ts == state["backup_ts"]
        assert list(embedded.pd.safe_points.services()) == [state["service_id"]]


@pytest.mark.parametrize("release", ["8.5.0", "9.0.0"])
async def test_a_backup_that_gc_has_passed_starts_over(release: str, tmp_path: Path) -> None:
    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path, V2, version=release) as (embedded, client):
        kept = await cancelled(embedded, client, place, safe_interval="1h")
        embedded.pd.safe_points.update_gc(await client.pd.tso() - (60_000 << 18))
        summary = await run(client, place, events)
        (held,) = embedded.pd.safe_points.services().values()
        assert summary.backup_ts == held.safe_point + 1
    assert not await check(place, summary, V2) & kept
    assert any("garbage collection has passed backup-ts" in note and "starts over" in note for note in events.notes)


async def test_a_complete_backup_that_gc_has_passed(tmp_path: Path) -> None:
    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path, V2) as (embedded, client):
        await _unverified(embedded, client, place)
        points = embedded.pd.safe_points
        for name in points.services():
            points.update_service(name, 0, 0)
        points.update_gc(await client.pd.tso())
        summary = await run(client, place, events, checksum=True)
        assert not points.services()
    assert summary.verified
    assert any("change capture cannot go on from it" in note for note in events.notes)
    await check(place, summary, V2)


async def test_a_safepoint_that_was_lost_makes_the_next_try_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safepoint, "LEAST_TTL_S", 3)
    place, events = tmp_path / "place", Events()
    async with cluster(tmp_path, V2) as (embedded, client):
        points = embedded.pd.safe_points
        slow = embedded.faults.fail(methods.BACKUP, delay_s=2.0)

        def lose() -> None:
            (service,) = points.services()
            points.update_service(service, 0, 0)
            points.update_gc(embedded.topology.tso())

        with pytest.raises(PDUnavailableError, match="the GC safepoint of the backup expired"):
            await meanwhile(run(client, place, gcttl="3s"), lambda: slow.hits == 1, lose)
        summary = await run(client, place, events, safe_interval="0")
    await check(place, summary, V2)
    assert any("starts over" in note for note in events.notes)


async def test_a_safepoint_is_removed_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, V2, pairs=[]) as (embedded, client):
        lease = SafepointLease(client, safe_interval_s=0)
        await lease.stop()
        await lease.begin()
        lease.stop_soon()
        await lease.stop()
        assert not embedded.pd.safe_points.services()


# --- stops ---


async def test_a_backup_whose_servers_are_gone_stops_in_time(tmp_path: Path) -> None:
    """PD and the storage say nothing any more: everything that is undone waits at the same time."""
    place = tmp_path / "place"
    place.mkdir()

    class Hanging(LocalStorage):
        hangs = False

        async def write(self, name: str, data: bytes) -> None:
            if self.hangs and name != BACKUP_LOCK:
                await asyncio.sleep(60)
            await super().write(name, data)

    async with cluster(tmp_path, V2) as (embedded, client):
        storage = Hanging(path=place)
        slow = embedded.faults.fail(methods.BACKUP, store_id=1, delay_s=60)
        options = backup_options(owner="run", remove_schedulers=True)
        job = asyncio.ensure_future(backup(client, storage, options, Events()))
        loop = asyncio.get_running_loop()
        stopped_at = 0.0

        def stop() -> None:
            nonlocal stopped_at
            storage.hangs = True
            embedded.faults.fail(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT, delay_s=60, times=None)
            stopped_at = loop.time()
            job.cancel()

        with pytest.raises(asyncio.CancelledError):
            await meanwhile(job, lambda: slow.hits == 1 and len(sst_names(place)) >= 4, stop)
        assert loop.time() - stopped_at < 5
