from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.exceptions import (
    ApiVersionError,
    BackupFileError,
    BackupInvalidError,
    BudgetExceededError,
    KeyRangeError,
    RegionRefusedError,
    UnsupportedError,
)
from airflow_provider_tikvbr.proto import errorpb_pb2, kvrpcpb_pb2, methods
from airflow_provider_tikvbr.rawbr import checksum as checksum_module
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.checksum import cluster_checksum, verify_backup
from airflow_provider_tikvbr.rawbr.meta import read_meta
from airflow_provider_tikvbr.rawbr.options import backup_options, checksum_options
from airflow_provider_tikvbr.rawbr.summary import Checksum, ChecksumSummary
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiVersion, KeyCodec, KeyRange, UserKey
from tests.rawbr.jobs import Events, checksum_of, cluster, key, make_pairs, meanwhile

V1, V1TTL, V2 = ApiVersion
RAW_CHECKSUM = methods.KV_RAW_CHECKSUM


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum_module, "RETRY_BASE_S", 0.05)


def users(start: int | None, end: int | None) -> KeyRange[UserKey]:
    return KeyRange(UserKey(b"") if start is None else key(start), UserKey(b"") if end is None else key(end))


async def make(client: Cluster, place: Path, **options: Any) -> None:
    async with open_storage(f"local://{place}") as storage:
        await backup(client, storage, backup_options(**options))


async def verify(client: Cluster, place: Path, listener: Any = None, **options: Any) -> ChecksumSummary:
    async with open_storage(f"local://{place}") as storage:
        return await verify_backup(client, storage, checksum_options(**options), listener or Events())


def refused(**error: Any) -> kvrpcpb_pb2.RawChecksumResponse:
    return kvrpcpb_pb2.RawChecksumResponse(region_error=errorpb_pb2.Error(**error))


# --- the cluster's side ---


@pytest.mark.parametrize("version", [V1, V1TTL, V2])
@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (0, 1), (10, 20), (50, 100), (33, 333), (399, None), (None, 1), (399, 1000)]
)
async def test_ranges_of_a_cluster(version: ApiVersion, start: int | None, end: int | None, tmp_path: Path) -> None:
    async with cluster(tmp_path, version) as (_, client):
        found = await cluster_checksum(client, client.codec.api_range(users(start, end)), concurrency=3)
    wanted = make_pairs()[start or 0 : end]
    assert found == checksum_of(wanted, KeyCodec(version).prefix)


async def test_nothing_there(tmp_path: Path) -> None:
    async with cluster(tmp_path, V2, pairs=[]) as (_, client):
        assert await cluster_checksum(client, client.codec.api_range(users(None, None))) == Checksum()


@pytest.mark.parametrize(
    "answer",
    [
        refused(server_is_busy=errorpb_pb2.ServerIsBusy(reason="testing")),
        refused(not_leader=errorpb_pb2.NotLeader(region_id=1)),
        refused(epoch_not_match=errorpb_pb2.EpochNotMatch()),
        refused(region_not_found=errorpb_pb2.RegionNotFound(region_id=1)),
        refused(message="something new"),
    ],
)
async def test_regions_that_refuse_are_asked_again(answer: kvrpcpb_pb2.RawChecksumResponse, tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        embedded.faults.fail(RAW_CHECKSUM, response=answer, times=5)
        assert await cluster_checksum(client, client.codec.api_range(users(5, 395))) == checksum_of(make_pairs()[5:395])


async def test_a_store_that_is_not_there_for_a_moment(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        embedded.faults.fail(RAW_CHECKSUM, code=grpc.StatusCode.UNAVAILABLE, store_id=1, times=4)
        assert await cluster_checksum(client, client.codec.api_range(users(None, None))) == checksum_of(make_pairs())


@pytest.mark.parametrize("version", [V1, V2])
async def test_regions_and_leaders_that_move_meanwhile(version: ApiVersion, tmp_path: Path) -> None:
    events = Events()
    async with cluster(tmp_path, version, replicas=3) as (embedded, client):
        topology = embedded.topology
        slow = embedded.faults.fail(RAW_CHECKSUM, delay_s=0.3, times=8)

        def move() -> None:
            for region in topology.regions:
                topology.transfer_leader(region.id, region.leader_store_id % 3 + 1)
            embedded.split([key(i) for i in range(10, 400, 20)])

        keys = client.codec.api_range(users(15, 385))
        found = await meanwhile(cluster_checksum(client, keys, listener=events), lambda: slow.hits == 8, move)
    assert found == checksum_of(make_pairs()[15:385], KeyCodec(version).prefix)
    assert events.progress[-1].done == events.progress[-1].total > 20


async def test_a_region_that_never_answers(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        answer = refused(server_is_busy=errorpb_pb2.ServerIsBusy(reason="testing"))
        embedded.faults.fail(RAW_CHECKSUM, response=answer, store_id=2, times=None)
        with pytest.raises(BudgetExceededError, match=r"after 0.3 s without progress: store 2 .* is busy"):
            await cluster_checksum(client, client.codec.api_range(users(None, None)), budget_s=0.3)


async def test_a_call_that_takes_longer_than_the_budget_is_made_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        embedded.faults.fail(RAW_CHECKSUM, code=grpc.StatusCode.DEADLINE_EXCEEDED, delay_s=0.4)
        found = await cluster_checksum(client, client.codec.api_range(users(None, None)), budget_s=0.3)
    assert found == checksum_of(make_pairs())


async def test_a_store_counts_some_regions_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum_module, "PER_STORE", 1)
    events = Events()
    async with cluster(tmp_path) as (embedded, client):
        led = sum(region.led_by(1) for region in embedded.topology.regions)
        slow = embedded.faults.fail(RAW_CHECKSUM, store_id=1, delay_s=30, times=None)
        monkeypatch.setattr(checksum_module, "PROGRESS_INTERVAL_S", 0.0)
        keys = client.codec.api_range(users(None, None))
        job = asyncio.ensure_future(cluster_checksum(client, keys, listener=events))
        with pytest.raises(asyncio.CancelledError):
            await meanwhile(job, lambda: bool(events.progress) and events.progress[-1].done == 8 - led, job.cancel)
        assert led > 1
        assert slow.hits == 1


async def test_a_region_that_refuses_for_good(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        answer = refused(key_not_in_region=errorpb_pb2.KeyNotInRegion(region_id=1))
        embedded.faults.fail(RAW_CHECKSUM, response=answer)
        with pytest.raises(RegionRefusedError):
            await cluster_checksum(client, client.codec.api_range(users(None, None)))


async def test_stopping_ends_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        slow = embedded.faults.fail(RAW_CHECKSUM, delay_s=30, times=None)
        job = asyncio.ensure_future(cluster_checksum(client, client.codec.api_range(users(None, None))))
        with pytest.raises(asyncio.CancelledError):
            await meanwhile(job, lambda: slow.hits == 8, job.cancel)


# --- both sides ---


@pytest.mark.parametrize(
    ("version", "dst", "method"),
    [
        (V1, V1, "raw-checksum"),
        (V1TTL, V1TTL, "raw-checksum"),
        (V2, V2, "raw-checksum"),
        (V1, V2, "backup"),
        (V1TTL, V2, "backup"),
    ],
)
async def test_equal_until_somebody_writes(version: ApiVersion, dst: ApiVersion, method: str, tmp_path: Path) -> None:
    pairs, place, prefix = make_pairs(), tmp_path / "place", KeyCodec(dst).prefix
    events = Events()
    async with cluster(tmp_path, version) as (embedded, client):
        await make(client, place, dst_api_version=dst)
        summary = await verify(client, place, events)
        assert summary.matches
        assert summary.actual == summary.expected == checksum_of(pairs, prefix)
        assert (summary.method, summary.regions) == (method, 8)
        assert {event.step for event in events.progress} == {"Raw checksum"}
        assert (events.progress[-1].done, events.progress[-1].total) == (8, 8)
        await embedded.put([(key(123), b"new"), (UserKey(b"zzz"), b"more")])
        summary = await verify(client, place)
        assert not summary.matches
        assert summary.expected == checksum_of(pairs, prefix)
        changed = [*pairs[:123], (key(123), b"new"), *pairs[124:], (UserKey(b"zzz"), b"more")]
        assert summary.actual == checksum_of(changed, prefix)


@pytest.mark.parametrize(("version", "dst"), [(V1, V1), (V1TTL, V1TTL), (V2, V2), (V1, V2), (V1TTL, V2)])
@pytest.mark.parametrize(("start", "end"), [(120, 130), (50, 150), (75, 226), (321, 390)])
async def test_a_part_of_a_backup(version: ApiVersion, dst: ApiVersion, start: int, end: int, tmp_path: Path) -> None:
    place = tmp_path / "place"
    cipher = {"crypter_method": "aes128-ctr", "crypter_key": "2a" * 16}
    async with cluster(tmp_path, version) as (embedded, client):
        await make(client, place, dst_api_version=dst, start=key(20).hex(), end=key(390).hex(), **cipher)
        # What lies outside of the part does not matter.
        await embedded.put([(key(start - 1), b"changed"), (key(end), b"changed")])
        summary = await verify(client, place, start=key(start).hex(), end=key(end).hex(), **cipher)
        assert summary.matches
        assert summary.expected == checksum_of(make_pairs()[start:end], KeyCodec(dst).prefix)
        whole = await verify(client, place, **cipher)
        assert not whole.matches


async def test_a_range_beyond_the_backup(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, client):
        await make(client, tmp_path / "place", start=key(20).hex(), end=key(30).hex())
        for start, end in [(key(19).hex(), key(30).hex()), (key(20).hex(), ""), (key(40).hex(), key(50).hex())]:
            with pytest.raises(KeyRangeError, match="not inside the backup's range"):
                await verify(client, tmp_path / "place", start=start, end=end)


async def test_versions_that_cannot_be_compared(tmp_path: Path) -> None:
    places = {}
    for version in (V1, V1TTL):
        places[version] = tmp_path / version.name / "place"
        async with cluster(tmp_path / version.name, version) as (_, client):
            await make(client, places[version])
    async with cluster(tmp_path, V2) as (_, client):
        with pytest.raises(ApiVersionError, match="has API version V1 and cannot be compared with a V2 cluster"):
            await verify(client, places[V1])
    async with cluster(tmp_path / "other", V1) as (_, client):
        with pytest.raises(ApiVersionError, match="has API version V1TTL"):
            await verify(client, places[V1TTL])


async def test_what_is_no_backup(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, client):
        with pytest.raises(BackupInvalidError, match="there is no backup in"):
            await verify(client, tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["missing", "cut"])
async def test_files_that_are_wrong(damage: str, tmp_path: Path) -> None:
    async with cluster(tmp_path) as (_, client):
        await make(client, tmp_path / "place")
        victim = min((tmp_path / "place").rglob("*.sst"))
        if damage == "missing":
            victim.unlink()
        else:
            victim.write_bytes(victim.read_bytes()[:-1])
        with pytest.raises(BackupFileError, match=victim.name):
            await verify(client, tmp_path / "place")


async def test_a_cut_file_that_was_changed(tmp_path: Path) -> None:
    """Its size is right, so only reading it tells."""
    async with cluster(tmp_path) as (_, client):
        await make(client, tmp_path / "place")
        async with open_storage(f"local://{tmp_path / 'place'}") as storage:
            (file,) = [f for f in (await read_meta(storage)).files if f.start_key == key(100)]
        path = tmp_path / "place" / file.name
        data = bytearray(path.read_bytes())
        data[20] ^= 1
        path.write_bytes(data)
        with pytest.raises(BackupFileError, match="is not the file that was written"):
            await verify(client, tmp_path / "place", start=key(101).hex(), end=key(102).hex())


async def test_an_old_cluster(tmp_path: Path) -> None:
    async with cluster(tmp_path, version="6.1.0") as (_, client):
        await make(client, tmp_path / "place")
        with pytest.raises(UnsupportedError, match=r"6\.1\.1 or newer"):
            await verify(client, tmp_path / "place")


async def test_a_call_that_hangs_is_given_up_by_the_budget(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (embedded, client):
        embedded.faults.add(Rule(kind=Kind.HANG, method=methods.KV_RAW_CHECKSUM, times=1))
        found = await cluster_checksum(client, client.codec.api_range(EVERYTHING), budget_s=0.3)
    assert found == checksum_of(make_pairs())
