from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import (
    ApiVersionError,
    BackupExistsError,
    BackupFileError,
    BudgetExceededError,
    ChecksumMismatchError,
    InvalidOptionError,
    PDUnavailableError,
    StorageError,
    StorageLockedError,
    UnsupportedError,
    UnverifiedError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, methods
from airflow_provider_tikvbr.rawbr import lock, safepoint
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.events import Progress
from airflow_provider_tikvbr.rawbr.files import read_file
from airflow_provider_tikvbr.rawbr.lock import LockTimes
from airflow_provider_tikvbr.rawbr.lock_record import BACKUP_LOCK, LockRecord
from airflow_provider_tikvbr.rawbr.meta import META_NAME, read_meta
from airflow_provider_tikvbr.rawbr.options import backup_options
from airflow_provider_tikvbr.rawbr.summary import BackupSummary
from airflow_provider_tikvbr.rawbr.tasks import expect_handover
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.storage.sst import SstReader
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiVersion, KeyCodec, KeyRange, RegionKey, UserKey
from airflow_provider_tikvbr.tikv.values import decode_value
from tests.rawbr.jobs import Events, SlowToTell, checksum_of, cluster, failed, key, make_pairs, meanwhile, names
from tests.support.waiting import several_times

V1, V1TTL, V2 = ApiVersion
SST_MAGIC = (0x88E241B785F4CFF7).to_bytes(8, "little")
AES = {"crypter_method": "aes192-ctr", "crypter_key": "07" * 24}


async def run(client: Cluster, place: Path, listener: Any = None, **options: Any) -> BackupSummary:
    async with open_storage(f"local://{place}") as storage:
        return await backup(client, storage, backup_options(**options), listener or Events())


async def content(
    place: Path, cipher: Cipher = PLAINTEXT
) -> tuple[brpb_pb2.BackupMeta, list[tuple[UserKey, bytes, int]]]:
    """The backupmeta of a backup, and its user pairs with their expire times, from the files themselves."""
    async with open_storage(f"local://{place}") as storage:
        meta = await read_meta(storage, cipher)
        version = ApiVersion(meta.api_version)
        codec = KeyCodec(version)
        found = []
        for file in meta.files:
            reader = SstReader(await read_file(storage, file, cipher), name=file.name)
            reader.verify()
            for engine_key, stored in reader:
                value = decode_value(version, stored)
                found.append((codec.user_key(codec.split_engine_key(engine_key)[0]), value.value, value.expire_at))
        return meta, found


def check_meta(meta: brpb_pb2.BackupMeta, embedded: EmbeddedCluster, dst: ApiVersion, keys: KeyRange[UserKey]) -> None:
    """What every backup says of itself."""
    assert meta.cluster_id == embedded.topology.cluster_id
    assert meta.cluster_version == "8.5.0"
    assert meta.is_raw_kv
    assert meta.version == 0
    assert meta.ddls == b"[]"
    assert ApiVersion(meta.api_version) is dst
    covered = KeyCodec(dst).api_range(keys)
    (raw_range,) = meta.raw_ranges
    assert (raw_range.start_key, raw_range.end_key, raw_range.cf) == (covered.start, covered.end, "default")
    assert meta.files[0].start_key == covered.start
    assert meta.files[-1].end_key == covered.end
    for left, right in itertools.pairwise(meta.files):
        assert left.end_key == right.start_key


def undisturbed(embedded: EmbeddedCluster, left: BackupSummary | None = None) -> bool:
    """Whether nothing is left on the cluster of what a backup sets there.

    :param left: a backup that may leave the GC safepoint that it promises.
    """
    pd = embedded.pd
    points = [left.backup_ts - 1] if left is not None and left.backup_ts is not None else []
    return (
        [service.safe_point for service in pd.safe_points.services().values()] == points
        and not pd.schedulers.paused()
        and not pd.config.ttl_values(after_s=1)
    )


async def test_credentials_are_not_looked_for_in_the_event_loop(tmp_path: Path) -> None:
    storage = SlowToTell(path=tmp_path / "place")
    async with cluster(tmp_path, stores=1) as (_, client):
        assert (await backup(client, storage, backup_options(), Events())).total_kv > 0


@pytest.mark.parametrize("version", [V1, V1TTL, V2])
async def test_everything(version: ApiVersion, tmp_path: Path) -> None:
    place, events = tmp_path / "new" / "place", Events()
    pairs = make_pairs()
    async with cluster(tmp_path, version) as (embedded, client):
        summary = await run(client, place, events, checksum=True)
        meta, found = await content(place)
        assert undisturbed(embedded, left=summary)
        check_meta(meta, embedded, version, EVERYTHING)
    assert found == [(*pair, 0) for pair in pairs]
    assert summary.checksum == checksum_of(pairs, KeyCodec(version).prefix)
    assert summary.checksum.crc64xor
    assert (summary.total_kv, summary.total_kv_size) == (len(pairs), summary.checksum.total_bytes)
    assert (summary.total_ranges, summary.ranges_succeed, summary.ranges_failed) == (8, 8, 0)
    assert summary.backup_total_regions == 8
    assert summary.backup_data_size == sum(file.size for file in meta.files)
    assert summary.verified
    assert (summary.api_version, summary.dst_api_version) == (version, version)
    assert names(place) == {META_NAME, *(file.name for file in meta.files)}
    assert json.loads(json.dumps(summary.as_dict()))["total_ranges"] == 8
    if version is V2:
        now_ms = time.time() * 1000
        assert 60_000 <= now_ms - (summary.backup_ts or 0) / (1 << 18) <= 120_000
        assert f"[backup-ts={summary.backup_ts}]" in summary.line()
    else:
        assert summary.backup_ts is None
    for step, regions in (("Raw backup", 8), ("Raw backup checksum", 8)):
        told = [event for event in events.progress if event.step == step]
        assert told[0].done == 0
        assert (told[-1].done, told[-1].total, told[-1].kvs) == (regions, regions, len(pairs))
        assert [event.done for event in told] == sorted(event.done for event in told)
    assert all("time to live" in note for note in events.notes)
    assert bool(events.notes) == (version is not V1)


@pytest.mark.parametrize("version", [V1, V1TTL])
async def test_conversion_to_v2(version: ApiVersion, tmp_path: Path) -> None:
    pairs = make_pairs()
    stored: list[Any] = [(k, v, 3600) if version is V1TTL and i % 3 == 0 else (k, v) for i, (k, v) in enumerate(pairs)]
    async with cluster(tmp_path, version, pairs=stored) as (embedded, client):
        truth = await embedded.pairs()
        summary = await run(client, tmp_path / "place", dst_api_version="v2", checksum=True)
        meta, found = await content(tmp_path / "place")
        check_meta(meta, embedded, V2, EVERYTHING)
    assert found == [tuple(pair) for pair in truth]
    assert any(expire for _, _, expire in found) == (version is V1TTL)
    assert summary.checksum == checksum_of(pairs, b"r\0\0\0")
    assert (summary.api_version, summary.dst_api_version) == (version, V2)
    assert summary.backup_ts is None


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize(
    ("start", "end", "format"),
    [
        ("6b65792d30303630", "6b65792d30323333", "hex"),
        ("key-0060", "key-0233", "raw"),
        (r"\x6bey-006\060", "key\\x2d0233", "escaped"),
    ],
)
async def test_a_range(version: ApiVersion, start: str, end: str, format: str, tmp_path: Path) -> None:  # noqa: A002
    pairs = make_pairs()[60:233]
    async with cluster(tmp_path, version) as (embedded, client):
        summary = await run(client, tmp_path / "place", start=start, end=end, format=format, checksum=True)
        meta, found = await content(tmp_path / "place")
        check_meta(meta, embedded, version, KeyRange(key(60), key(233)))
    assert found == [(*pair, 0) for pair in pairs]
    assert summary.checksum == checksum_of(pairs, KeyCodec(version).prefix)
    assert summary.backup_total_regions == summary.total_ranges == 4
    assert (summary.start, summary.end) == (key(60).hex(), key(233).hex())


@pytest.mark.parametrize("compression", ["lz4", "snappy", "zstd"])
async def test_compression_and_cipher(compression: str, tmp_path: Path) -> None:
    cipher = Cipher.parse(AES["crypter_method"], key_hex=AES["crypter_key"])
    pairs = [(key(i), b"abcd" * 300) for i in range(200)]
    async with cluster(tmp_path, pairs=pairs) as (_, client):
        summary = await run(client, tmp_path / "place", compression=compression, checksum=True, **AES)
    meta, found = await content(tmp_path / "place", cipher)
    assert found == [(*pair, 0) for pair in pairs]
    assert summary.backup_data_size < summary.total_kv_size / 3
    # Encrypted files do not look like SSTs.
    assert not any((tmp_path / "place" / file.name).read_bytes().endswith(SST_MAGIC) for file in meta.files)


@pytest.mark.parametrize("version", [V1, V1TTL, V2])
async def test_no_data_is_told(version: ApiVersion, tmp_path: Path) -> None:
    events = Events()
    async with cluster(tmp_path, version, pairs=[]) as (_, client):
        summary = await run(client, tmp_path / "place", events, checksum=True)
    meta, found = await content(tmp_path / "place")
    assert found == []
    assert (summary.total_ranges, summary.total_kv, summary.backup_total_regions) == (0, 0, 8)
    assert "[total-kv=0]" in summary.line()
    assert any("there is no data in the range" in note for note in events.notes)
    assert events.progress[-1].done == 8
    assert len(meta.raw_ranges) == 1


async def test_a_range_without_data(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, client):
        summary = await run(client, tmp_path / "place", start="7a", checksum=True)
    assert summary.total_kv == 0
    assert names(tmp_path / "place") == {META_NAME}


async def test_an_existing_backup_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, V2) as (embedded, client):
        first = await run(client, place)
        before = {name: (place / name).read_bytes() for name in names(place)}
        with pytest.raises(BackupExistsError, match="holds a backup already"):
            await run(client, place)
        assert {name: (place / name).read_bytes() for name in names(place)} == before
        assert undisturbed(embedded, left=first)


async def test_a_locked_place_is_refused_but_to_its_owner(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    record = {"owner": "run-1", "holder": "h", "host": "w1", "pid": 4, "started": "t", "heartbeat": "t"}
    (place / BACKUP_LOCK).write_text(json.dumps(record))
    async with cluster(tmp_path) as (_, client):
        with pytest.raises(StorageLockedError, match="run-1") as caught:
            await run(client, place, owner="run-2")
        assert caught.value.owner == "run-1"
        assert names(place) == {BACKUP_LOCK}
        await run(client, place, owner="run-1")
    assert BACKUP_LOCK not in names(place)


async def test_a_place_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with cluster(tmp_path, V2) as (embedded, client):
        with pytest.raises(StorageError, match="file/place"):
            await run(client, tmp_path / "file" / "place")
        assert undisturbed(embedded)


async def test_a_store_that_cannot_write_ends_the_backup(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, V2) as (embedded, client):
        refusal = failed('Io(Os { code: 13, kind: PermissionDenied, message: "Permission denied" })')
        embedded.faults.fail(methods.BACKUP, response=refusal, store_id=2, times=None)
        with pytest.raises(StorageError, match=r"store 2 .* may not write to local:///.*/place") as caught:
            await run(client, place)
        assert caught.value.store_id == 2
        assert undisturbed(embedded)
    assert not names(place) & {META_NAME, BACKUP_LOCK}


@pytest.mark.parametrize(
    ("version", "dst", "cluster_version", "match"),
    [
        (V2, "v1", "8.5.0", "cannot be of API version V1"),
        (V2, "v1ttl", "8.5.0", "cannot be of API version V1TTL"),
        (V1, "v1ttl", "8.5.0", "give V1 or V2"),
        (V1TTL, "v1", "8.5.0", "give V1TTL or V2"),
        (V1, "v2", "6.0.5", "needs a cluster of version 6.1.0 or newer, this one has 6.0.5"),
        (V1, "v2", "6.1.0-alpha", "needs a cluster of version 6.1.0"),
    ],
)
async def test_conversions_that_do_not_exist(
    version: ApiVersion, dst: str, cluster_version: str, match: str, tmp_path: Path
) -> None:
    async with cluster(tmp_path, version, version=cluster_version, pairs=[]) as (_, client):
        with pytest.raises(ApiVersionError, match=match):
            await run(client, tmp_path / "place", dst_api_version=dst)
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize("dst", ["v1", "v2"])
async def test_a_pd_that_does_not_count_regions(dst: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(keys: KeyRange[RegionKey]) -> int:
        raise PDUnavailableError("PD at pd0:2379 failed on GET /pd/api/v1/stats/region: 500")

    events = Events()
    async with cluster(tmp_path) as (_, client):
        monkeypatch.setattr(client.http, "region_count", refuse)
        summary = await run(client, tmp_path / "place", events, dst_api_version=dst, checksum=True)
    assert (summary.total_kv, summary.backup_total_regions, summary.verified) == (len(make_pairs()), 8, True)
    assert any("without the number of regions: PD at pd0:2379 failed" in note for note in events.notes)


async def test_an_old_cluster_cannot_checksum(tmp_path: Path) -> None:
    async with cluster(tmp_path, version="6.1.0") as (_, client):
        with pytest.raises(UnsupportedError, match=r"checksum needs a cluster of version 6\.1\.1 or newer"):
            await run(client, tmp_path / "place", checksum=True)
        assert not (tmp_path / "place").exists()
        summary = await run(client, tmp_path / "place")
    assert summary.total_kv
    assert not summary.verified


async def test_an_old_cluster_cannot_encrypt(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, version="5.2.4") as (_, client):
        with pytest.raises(
            UnsupportedError, match=r"encryption needs a cluster of version 5\.3\.0 .* leave the files plain"
        ):
            await run(client, place, **AES)
        assert not place.exists()
        assert (await run(client, place)).total_kv
    meta, found = await content(place)
    assert [file.cipher_iv for file in meta.files] == [b""] * 8
    assert found == [(*pair, 0) for pair in make_pairs()]


@pytest.mark.parametrize(("cluster_version", "expected"), [("6.1.7", False), ("6.2.0", True)])
async def test_backup_ts_from_6_2_on(cluster_version: str, expected: bool, tmp_path: Path) -> None:
    async with cluster(tmp_path, V2, version=cluster_version) as (_, client):
        summary = await run(client, tmp_path / "place")
    assert (summary.backup_ts is not None) == expected


async def test_a_pd_that_gives_no_time_is_told(tmp_path: Path) -> None:
    async with cluster(tmp_path, V2) as (embedded, client):
        embedded.faults.fail(methods.PD_TSO, code=grpc.StatusCode.UNAVAILABLE, times=None)
        client.pd._budget_s = 0.3
        with pytest.raises(PDUnavailableError, match="no PD answered Tso"):
            await run(client, tmp_path / "place")
        assert undisturbed(embedded)


async def test_refused_when_gc_has_passed(tmp_path: Path) -> None:
    place = tmp_path / "place"
    async with cluster(tmp_path, V2) as (embedded, client):
        embedded.pd.safe_points.update_gc(await client.pd.tso())
        with pytest.raises(InvalidOptionError, match="garbage collection has passed backup-ts") as caught:
            await run(client, place, safe_interval="10m")
        assert caught.value.parameter == "safe_interval"
        assert undisturbed(embedded)
    assert not names(place)


@pytest.mark.parametrize(
    ("gcttl", "gcttl_from", "left"), [("0", "end", 0), ("24h", "end", 86400), ("24h", "start", 86400)]
)
async def test_gc_is_held_as_long_as_asked(gcttl: str, gcttl_from: str, left: int, tmp_path: Path) -> None:
    async with cluster(tmp_path, V2) as (embedded, client):
        summary = await run(client, tmp_path / "place", gcttl=gcttl, gcttl_from=gcttl_from, checksum=True)
        held = list(embedded.pd.safe_points.services().values())
        assert [service.safe_point for service in held] == ([(summary.backup_ts or 0) - 1] if left else [])
        assert all(left - 30 < embedded.pd.safe_points.ttl_s(service) <= left for service in held)


async def test_backup_ts_is_kept_in_the_backup(tmp_path: Path) -> None:
    async with cluster(tmp_path, V2) as (_, client):
        summary = await run(client, tmp_path / "place")
        meta, _ = await content(tmp_path / "place")
    assert summary.backup_ts
    assert (meta.start_version, meta.end_version) == (0, summary.backup_ts)


async def test_a_safepoint_that_was_lost_ends_the_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safepoint, "LEAST_TTL_S", 3)
    place = tmp_path / "place"
    async with cluster(tmp_path, V2) as (embedded, client):
        safe_points = embedded.pd.safe_points
        slow = embedded.faults.fail(methods.BACKUP, delay_s=2.0)

        def lose() -> None:
            (service,) = safe_points.services()
            safe_points.update_service(service, 0, 0)
            safe_points.update_gc(embedded.topology.tso())

        with pytest.raises(PDUnavailableError, match="the GC safepoint of the backup expired"):
            await meanwhile(run(client, place, gcttl="3s"), lambda: slow.hits == 1, lose)
        assert undisturbed(embedded)
    assert not names(place) & {META_NAME, BACKUP_LOCK}


async def test_a_lock_that_was_lost_ends_the_backup(tmp_path: Path) -> None:
    place = tmp_path / "place"
    other = {"owner": "run-2", "holder": "h", "host": "w1", "pid": 4, "started": "t", "heartbeat": "t"}
    async with cluster(tmp_path) as (_, client):

        def steal(_: Progress) -> None:
            (place / BACKUP_LOCK).write_text(json.dumps(other))

        with pytest.raises(StorageLockedError, match="was lost to run-2"):
            await run(client, place, Events(on_progress=steal), owner="run-1")
    assert META_NAME not in names(place)
    # It belongs to the other run now.
    assert BACKUP_LOCK in names(place)


async def test_a_backup_whose_lock_is_lost_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LockTimes", partial(LockTimes, heartbeat_s=0.02))
    place = tmp_path / "place"
    other = LockRecord(owner="run-2", holder="h", host="w1", pid=4, started="s", heartbeat="t")
    async with cluster(tmp_path, V2) as (embedded, client):
        slow = embedded.faults.fail(methods.BACKUP, store_id=1, delay_s=600)

        def steal() -> Coroutine[Any, Any, None]:
            return several_times(partial((place / BACKUP_LOCK).write_bytes, other.dump()))

        with pytest.raises(StorageLockedError, match=r"was lost to run-2 \(host w1, .* this job stops"):
            await asyncio.wait_for(meanwhile(run(client, place, owner="run-1"), lambda: slow.hits == 1, steal), 60)
        # Whoever has taken the place over goes on with the hold on GC too.
        assert len(embedded.pd.safe_points.services()) == 1
    assert META_NAME not in names(place)
    assert (place / BACKUP_LOCK).read_bytes() == other.dump()


async def test_schedulers_are_paused_meanwhile(tmp_path: Path) -> None:
    paused: set[str] = set()
    async with cluster(tmp_path) as (embedded, client):

        def look(_: Progress) -> None:
            paused.update(embedded.pd.schedulers.paused())

        await run(client, tmp_path / "place", Events(on_progress=look), remove_schedulers=True)
        assert undisturbed(embedded)
    assert "balance-region-scheduler" in paused


async def test_files_that_are_not_there_make_no_backup(tmp_path: Path) -> None:
    """As when every store writes to a directory of its own host."""
    place = tmp_path / "place"
    async with cluster(tmp_path) as (_, client):

        def lose(event: Progress) -> None:
            for path in sorted(place.rglob("*.sst"))[:1] if event.done == event.total else []:
                path.unlink()

        with pytest.raises(BackupFileError, match=r"is missing.*one place that they all share"):
            await run(client, place, Events(on_progress=lose))
    assert not names(place) & {META_NAME, BACKUP_LOCK}


def first_file(embedded: EmbeddedCluster) -> str:
    """The one whose name is the same in every try."""
    first = embedded.topology.region_of(RegionKey(b""))
    return f"{first.leader_store_id}/{first.id}_{first.version}_default.sst"


@pytest.mark.parametrize("how", ["other", "shorter", "gone"])
@pytest.mark.parametrize("options", [{}, {"dst_api_version": "v2", **AES}], ids=["plain", "converted"])
async def test_a_file_that_a_request_of_the_past_writes_over_is_written_again(
    options: dict[str, Any], how: str, tmp_path: Path
) -> None:
    """Nobody knows of that request: the try that made it was killed before it had saved anything."""
    place = tmp_path / "backup"
    async with cluster(tmp_path) as (embedded, client):
        name = first_file(embedded)
        overwritten: list[str] = []

        def overwrite(progress: Progress) -> None:
            if (place / name).exists() and progress.done == progress.total and not overwritten:
                overwritten.append(name)
                data = (place / name).read_bytes()
                (place / name).write_bytes(data[:-1] + (b"?" if how == "other" else b""))
                if how == "gone":
                    (place / name).unlink()

        events = Events(on_progress=overwrite)
        summary = await run(client, place, events, **options)
        meta, found = await content(place, backup_options(**options).cipher)
        assert overwritten
    assert found == [(*pair, 0) for pair in make_pairs()]
    assert summary.total_kv == len(found)
    assert summary.backup_data_size == sum(file.size for file in meta.files)
    assert names(place) == {META_NAME, *(file.name for file in meta.files)}
    assert [note for note in events.notes if f"{name} is not what the last answer told" in note]


async def test_a_first_file_that_is_never_what_was_told_makes_no_backup(tmp_path: Path) -> None:
    place = tmp_path / "backup"
    async with cluster(tmp_path) as (embedded, client):
        name = first_file(embedded)

        def overwrite(progress: Progress) -> None:
            if (place / name).exists() and progress.done == progress.total:
                (place / name).write_bytes((place / name).read_bytes()[:-1] + b"?")

        with pytest.raises(BackupFileError, match=rf"{name} is not the file.*one place that they all share"):
            await run(client, place, Events(on_progress=overwrite))
        assert undisturbed(embedded)
    assert META_NAME not in names(place)


class Stopping(LocalStorage):
    """A directory where a stop comes while a file is being written, and goes on all the same."""

    def __init__(self, place: Path, name: str) -> None:
        super().__init__(path=place)
        self.name = name
        self.job: asyncio.Task[Any] | None = None
        self.writing: asyncio.Task[bool] | None = None

    async def create(self, name: str, data: bytes) -> bool:
        writing = asyncio.ensure_future(super().create(name, data))
        if name == self.name and self.job is not None:
            self.writing = writing
            self.job.cancel()
        return await asyncio.shield(writing)


@pytest.mark.parametrize("name", [META_NAME, BACKUP_LOCK])
async def test_a_backup_that_is_stopped_can_be_started_again(name: str, tmp_path: Path) -> None:
    place = tmp_path / "backup"
    async with cluster(tmp_path) as (embedded, client):
        storage = Stopping(place, name)
        storage.job = asyncio.ensure_future(backup(client, storage, backup_options()))
        with pytest.raises(asyncio.CancelledError):
            await storage.job
        assert storage.writing is not None
        assert await storage.writing
        assert not names(place) & {META_NAME, BACKUP_LOCK}
        assert undisturbed(embedded)
        assert (await run(client, place)).checksum == checksum_of(make_pairs())


@pytest.mark.parametrize("resume", [True, False])
async def test_a_complete_backup_is_left_to_who_goes_on_with_it(resume: bool, tmp_path: Path) -> None:
    """As when the triggerer restarts right then."""
    place = tmp_path / "backup"
    async with cluster(tmp_path) as (_, client):
        storage = Stopping(place, META_NAME)
        expect_handover().announced = True
        storage.job = asyncio.ensure_future(backup(client, storage, backup_options(owner="run", resume=resume)))
        with pytest.raises(asyncio.CancelledError):
            await storage.job
        assert (META_NAME in names(place)) == resume
        assert BACKUP_LOCK not in names(place)
        assert (await run(client, place, owner="run", resume=resume)).checksum == checksum_of(make_pairs())


async def test_a_checksum_that_differs(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):

        def change(event: Progress) -> None:
            if event.step == "Raw backup" and event.done == event.total:
                engine_key = client.codec.engine_key(client.codec.api_key(key(7)))
                for engine in embedded.engines.values():
                    engine.write([(engine_key, b"!")])

        with pytest.raises(ChecksumMismatchError, match="the backup is written, but") as caught:
            await run(client, tmp_path / "place", Events(on_progress=change), checksum=True)
        pairs = make_pairs()
        assert caught.value.expected == checksum_of(pairs)
        assert caught.value.actual == checksum_of([*pairs[:7], (key(7), b"!"), *pairs[8:]])
    assert META_NAME in names(tmp_path / "place")
    assert BACKUP_LOCK not in names(tmp_path / "place")


async def test_a_backup_that_cannot_be_compared_is_not_made_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        embedded.faults.fail(methods.KV_RAW_CHECKSUM, code=grpc.StatusCode.UNAVAILABLE, times=None)
        with pytest.raises(UnverifiedError, match=r"place is complete, but could not be compared .*; do not back up"):
            await run(client, tmp_path / "place", checksum=True, budget="300ms", resume=False)
        assert undisturbed(embedded)
        async with open_storage("noop://") as nowhere:
            options = backup_options(checksum=True, budget="300ms")
            with pytest.raises(BudgetExceededError):
                await backup(client, nowhere, options)
    assert META_NAME in names(tmp_path / "place")
    assert BACKUP_LOCK not in names(tmp_path / "place")


async def test_nothing_is_kept_in_a_noop_storage(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, client), open_storage("noop://") as storage:
        summary = await backup(client, storage, backup_options(checksum=True))
    assert summary.checksum == checksum_of(make_pairs())
