from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import (
    ApiVersionError,
    BackupFileError,
    BackupInvalidError,
    BackupNotFoundError,
    ChecksumMismatchError,
    KeyRangeError,
    TikvBrError,
    UnsupportedError,
)
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.events import Event, Progress
from airflow_provider_tikvbr.rawbr.options import backup_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.rawbr.summary import RestoreSummary
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, UserKey
from tests.rawbr.jobs import SlowToTell
from tests.support.golden import AES256_KEY, Golden
from tests.support.target import expected, held, is_as_before, target, warnings_in

V1_FULL = Golden("v1", "full")
V2_FULL = Golden("v2", "full")
TTL_WARNING = "pairs may have a time to live here: those that expire meanwhile make the checksum differ"


async def run(
    cluster: Cluster, golden: Golden, listener: Callable[[Event], None] = lambda event: None, **options: Any
) -> RestoreSummary:
    return await restore(cluster, open_storage(golden.url), restore_options(**golden.crypter, **options), listener)


def keys(start: bytes, end: bytes) -> KeyRange[UserKey]:
    return KeyRange(UserKey(start), UserKey(end))


# --- the data ---


async def test_credentials_are_not_looked_for_in_the_event_loop(tmp_path: Path) -> None:
    async with target(tmp_path, ApiVersion.V1, stores=1) as (_, cluster):
        summary = await restore(cluster, SlowToTell(path=Path(V1_FULL.url.removeprefix("local://"))), restore_options())
    assert summary.total_kv > 0


@pytest.mark.parametrize(
    "golden", [V1_FULL, V2_FULL, Golden("v1ttl", "to_v2"), Golden("v1", "aes256"), Golden("v2", "range")], ids=str
)
async def test_regions_that_cut_through_files(golden: Golden, tmp_path: Path) -> None:
    truth = golden.pairs
    borders = [p.key for p in truth[17 :: len(truth) // 25]]
    async with target(tmp_path, golden.api_version, stores=2, replicas=2, split_keys=borders) as (embedded, cluster):
        summary = await run(cluster, golden, checksum=True)
        assert summary.verified
        assert summary.total_kv == len(truth)
        assert await held(embedded) == expected(golden)
        assert is_as_before(embedded)


async def test_keys_of_ten_and_more_ff_bytes_arrive(tmp_path: Path) -> None:
    last = [p.key for p in V1_FULL.pairs if p.key >= b"\xff" * 10]
    assert len(last) == 2
    async with target(tmp_path) as (embedded, cluster):
        await run(cluster, V1_FULL)
        assert [k for k, _ in await held(embedded)][-2:] == last


@pytest.mark.parametrize("golden", [V1_FULL, V2_FULL, Golden("v1", "to_v2"), Golden("v1", "aes256")], ids=str)
@pytest.mark.parametrize(
    ("start", "end"),
    [(b"idx", b"user:00000350"), (b"", b"idx\x0016"), (b"user:00000352", b""), (b"user:00000700", b"user:00000701")],
)
async def test_a_range_that_cuts_through_files(golden: Golden, start: bytes, end: bytes, tmp_path: Path) -> None:
    wanted = keys(start, end)
    pairs = expected(golden, wanted)
    assert pairs
    async with target(tmp_path, golden.api_version, stores=2, split_keys=[b"idx\x0015", b"user:00000300"]) as (
        embedded,
        cluster,
    ):
        summary = await run(cluster, golden, start=start.hex(), end=end.hex(), checksum=True)
        assert await held(embedded) == pairs
        prefix = 4 if golden.api_version is ApiVersion.V2 else 0
        assert summary.total_kv == len(pairs)
        assert summary.total_kv_size == sum(len(k) + len(v) + prefix for k, v in pairs)
        assert summary.verified
        assert 0 < summary.restore_files < 13
        assert (summary.start, summary.end) == (start.hex(), end.hex())


async def test_it_tells_the_backups_backup_ts(tmp_path: Path) -> None:
    async with target(tmp_path, ApiVersion.V2) as (embedded, cluster):
        await embedded.put([(UserKey(b"key"), b"value")])
        storage = open_storage(str(tmp_path / "backup"))
        made = await backup(cluster, storage, backup_options())
        summary = await restore(cluster, storage, restore_options())
        assert made.backup_ts
        assert summary.as_dict()["backup_ts"] == made.backup_ts
        # tikv-br keeps none.
        assert (await run(cluster, V2_FULL)).backup_ts is None


async def test_ranges_one_after_the_other_make_the_whole(tmp_path: Path) -> None:
    async with target(tmp_path, ApiVersion.V2, stores=3, replicas=3) as (embedded, cluster):
        borders = [b"", b"idx\x0012", b"user:00000100", b"user:00001000", b""]
        for start, end in itertools.pairwise(borders):
            await run(cluster, V2_FULL, start=start.hex(), end=end.hex())
        assert await held(embedded) == expected(V2_FULL)


async def test_a_range_without_data_restores_nothing_and_says_so(tmp_path: Path) -> None:
    events: list[Event] = []
    async with target(tmp_path) as (embedded, cluster):
        summary = await run(cluster, V1_FULL, events.append, start="zzzz", end="zzzzz", format="raw", checksum=True)
        assert (summary.total_kv, summary.total_kv_size) == (0, 0)
        assert await held(embedded) == []
        assert warnings_in(events) == ["the backup holds no data in the range: nothing is restored"]
        assert is_as_before(embedded)


async def test_a_second_restore_over_the_first_changes_nothing(tmp_path: Path) -> None:
    events: list[Event] = []
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):
        await run(cluster, V1_FULL)
        regions = [(r.id, r.version) for r in embedded.topology.regions]
        summary = await run(cluster, V1_FULL, events.append, checksum=True)
        assert summary.verified
        assert await held(embedded) == expected(V1_FULL)
        assert [(r.id, r.version) for r in embedded.topology.regions] == regions
        assert warnings_in(events) == [
            "the range holds data already: pairs whose keys are in the backup are overwritten, the others stay, and a "
            "checksum will tell the difference"
        ]


async def test_older_data_is_overwritten_in_v1_and_the_checksum_sees_the_rest(tmp_path: Path) -> None:
    key = V1_FULL.pairs[5].key
    async with target(tmp_path) as (embedded, cluster):
        await embedded.put([(key, b"old"), (UserKey(b"zzz-own"), b"stays")])
        with pytest.raises(ChecksumMismatchError) as caught:
            await run(cluster, V1_FULL, checksum=True)
        assert caught.value.actual.total_kvs == caught.value.expected.total_kvs + 1
        assert dict(await held(embedded)) == {**dict(expected(V1_FULL)), b"zzz-own": b"stays"}
        assert is_as_before(embedded)


async def test_newer_data_wins_in_v2(tmp_path: Path) -> None:
    key = V2_FULL.pairs[5].key
    events: list[Event] = []
    async with target(tmp_path, ApiVersion.V2) as (embedded, cluster):
        await embedded.put([(key, b"new")])
        await run(cluster, V2_FULL, events.append)
        assert dict(await held(embedded)) == {**dict(expected(V2_FULL)), key: b"new"}
        assert "the newer timestamp counts" in warnings_in(events)[0]


# --- how it goes about it ---


async def test_tells_how_far_it_is(tmp_path: Path) -> None:
    events: list[Event] = []
    async with target(tmp_path, ApiVersion.V2) as (_, cluster):
        summary = await run(cluster, V2_FULL, events.append, checksum=True)
    steps = [e for e in events if isinstance(e, Progress) and e.step == "Raw restore"]
    assert [e.done for e in steps] == list(range(summary.restore_files + 1))
    assert {e.total for e in steps} == {summary.restore_files}
    assert (steps[-1].kvs, steps[-1].bytes) == (summary.total_kv, summary.total_kv_size)
    assert any(isinstance(e, Progress) and e.step == "Raw restore checksum" for e in events)
    assert warnings_in(events) == [TTL_WARNING]


async def test_files_share_regions_up_to_the_limit_and_the_leaders_are_spread(tmp_path: Path) -> None:
    async with target(tmp_path, stores=3, replicas=2) as (embedded, cluster):
        await run(cluster, V1_FULL)
        # All of it is far below the size of a region.
        assert len(embedded.topology.regions) == 1
        await run(cluster, V1_FULL, merge_region_key_count=300)
        assert len(embedded.topology.regions) == 11
        assert {r.leader_store_id for r in embedded.topology.regions} == {1, 2, 3}
        assert await held(embedded) == expected(V1_FULL)


class Watch:
    """What the cluster is like while files are restored."""

    def __init__(self, embedded: EmbeddedCluster) -> None:
        self.embedded = embedded
        self.modes: set[bool] = set()
        self.rates: set[int] = set()
        self.paused: set[int] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress) and event.step == "Raw restore":
            self.modes |= {e.import_mode.is_on for e in self.embedded.engines.values()}
            self.rates |= {e.download_limiter.rate for e in self.embedded.engines.values()}
            self.paused.add(len(self.embedded.pd.schedulers.paused()))


async def test_import_mode_pauses_and_the_limit_hold_meanwhile(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2) as (embedded, cluster):
        watch = Watch(embedded)
        await run(cluster, V1_FULL, watch, ratelimit=100)
        assert (watch.modes, watch.rates, watch.paused) == ({True}, {100 << 20}, {3})
        assert is_as_before(embedded)


async def test_an_online_restore_leaves_the_mode_and_the_schedulers(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2) as (embedded, cluster):
        watch = Watch(embedded)
        await run(cluster, V1_FULL, watch, online=True, ratelimit=100)
        assert (watch.modes, watch.rates, watch.paused) == ({False}, {100 << 20}, {0})
        assert await held(embedded) == expected(V1_FULL)


async def test_an_old_cluster_is_not_split_beforehand_and_cannot_count(tmp_path: Path) -> None:
    async with target(tmp_path, version="5.1.4") as (embedded, cluster):
        with pytest.raises(UnsupportedError, match=r"6\.1\.1"):
            await run(cluster, V1_FULL, checksum=True)
        await run(cluster, V1_FULL, merge_region_key_count=1)
        assert len(embedded.topology.regions) == 1
        assert await held(embedded) == expected(V1_FULL)


async def test_an_old_cluster_cannot_decrypt(tmp_path: Path) -> None:
    async with target(tmp_path, version="5.2.4") as (embedded, cluster):
        with pytest.raises(UnsupportedError, match="encryption needs a cluster"):
            await run(cluster, Golden("v1", "aes256"))
        assert await held(embedded) == []


@pytest.mark.parametrize("version", ["5.0.0", "5.1.0"])
async def test_an_old_cluster_takes_files_one_by_one_or_together(version: str, tmp_path: Path) -> None:
    async with target(tmp_path, version=version) as (embedded, cluster):
        await run(cluster, V1_FULL)
        assert await held(embedded) == expected(V1_FULL)


# --- cancellation ---


@pytest.mark.parametrize("after", [0, 3])
async def test_a_cancelled_restore_leaves_nothing_behind_and_can_be_repeated(tmp_path: Path, after: int) -> None:
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):
        seen = 0

        def cancel(event: Event) -> None:
            nonlocal seen
            if isinstance(event, Progress):
                if seen == after:
                    assert not is_as_before(embedded)
                    task.cancel()
                seen += 1

        task = asyncio.create_task(run(cluster, V1_FULL, cancel, concurrency=2, ratelimit=1000))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_as_before(embedded)
        # Nothing goes on in the background.
        assert {t for t in asyncio.all_tasks() if "rawbr" in repr(t.get_coro())} == set()
        await run(cluster, V1_FULL)
        assert await held(embedded) == expected(V1_FULL)


# --- bad input ---


def damaged(tmp_path: Path, golden: Golden = V1_FULL) -> Path:
    """A copy of a golden backup, to be damaged."""
    copy = tmp_path / "backup"
    shutil.copytree(golden.path, copy)
    copy.chmod(0o755)
    for path in copy.rglob("*"):
        path.chmod(0o755)
    return copy


def without_meta(copy: Path) -> None:
    (copy / "backupmeta").unlink()


def with_torn_meta(copy: Path) -> None:
    data = (copy / "backupmeta").read_bytes()
    (copy / "backupmeta").write_bytes(data[: len(data) // 2 + 3])


def with_garbage_meta(copy: Path) -> None:
    (copy / "backupmeta").write_bytes(b"\xff" * 100)


def without_a_file(copy: Path) -> None:
    sorted(copy.rglob("*.sst"))[3].unlink()


def with_a_torn_file(copy: Path) -> None:
    path = sorted(copy.rglob("*.sst"))[3]
    path.write_bytes(path.read_bytes()[:-1])


def unchanged(copy: Path) -> None:
    """The backup is good; the options are not."""


KEY = {"crypter_method": "aes256-ctr", "crypter_key": AES256_KEY}
WRONG_KEY = {"crypter_method": "aes256-ctr", "crypter_key": "ff" * 32}
BAD: Sequence[tuple[str, Golden, Callable[[Path], None], dict[str, Any], type[TikvBrError], str]] = [
    ("no meta", V1_FULL, without_meta, {}, BackupNotFoundError, "there is no backup"),
    ("torn meta", V1_FULL, with_torn_meta, {}, BackupInvalidError, "damaged"),
    ("garbage", V1_FULL, with_garbage_meta, {}, BackupInvalidError, "damaged"),
    ("missing file", V1_FULL, without_a_file, {}, BackupFileError, "is missing"),
    ("torn file", V1_FULL, with_a_torn_file, {}, BackupFileError, "bytes instead of"),
    ("no key", Golden("v1", "aes256"), unchanged, {}, BackupInvalidError, "encrypted"),
    ("wrong key", Golden("v1", "aes256"), unchanged, WRONG_KEY, BackupInvalidError, "this key"),
    ("needless key", V1_FULL, unchanged, KEY, BackupInvalidError, "not encrypted"),
    ("V2 into V1", V2_FULL, unchanged, {}, ApiVersionError, "the backup has API version V2 and the cluster has V1"),
    ("V1TTL into V1", Golden("v1ttl", "full"), unchanged, {}, ApiVersionError, "cluster of API version V1TTL"),
    ("below the range", Golden("v1", "range"), unchanged, {"start": "60", "end": "62"}, KeyRangeError, "not inside"),
    ("above the range", Golden("v1", "range"), unchanged, {"start": "7a"}, KeyRangeError, "not inside"),
    ("open end", Golden("v1", "range"), unchanged, {"start": "61"}, KeyRangeError, "not inside"),
]


@pytest.mark.parametrize(
    ("golden", "damage", "options", "error", "reason"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
async def test_bad_input_is_refused_before_anything_changes(
    golden: Golden,
    damage: Callable[[Path], None],
    options: dict[str, Any],
    error: type[TikvBrError],
    reason: str,
    tmp_path: Path,
) -> None:
    copy = damaged(tmp_path, golden)
    damage(copy)
    async with target(tmp_path) as (embedded, cluster):
        changes = [
            embedded.faults.fail(method, times=None)
            for method in (methods.KV_SPLIT_REGION, methods.IMPORT_SWITCH_MODE, methods.IMPORT_DOWNLOAD)
        ]
        with pytest.raises(error, match=reason) as caught:
            await restore(cluster, open_storage(f"local://{copy}"), restore_options(**options))
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)
        assert "ff" * 32 not in str(caught.value)
        assert not any(point.hits for point in changes)
        assert is_as_before(embedded)
        assert await held(embedded) == []


async def test_a_file_that_is_damaged_inside_fails_the_restore(tmp_path: Path) -> None:
    copy = damaged(tmp_path)
    path = sorted(copy.rglob("*.sst"))[3]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):
        with pytest.raises(
            BackupFileError, match=f"restoring file .*{path.name} into region [0-9]+: store [123] "
        ) as caught:
            await restore(cluster, open_storage(f"local://{copy}"), restore_options())
        assert caught.value.file is not None
        assert caught.value.file.endswith(path.name)
        assert is_as_before(embedded)
        assert not any(s.death for s in embedded.topology.stores.values())


async def test_a_damaged_file_at_the_edge_of_a_range_is_found_before_anything_changes(tmp_path: Path) -> None:
    copy = damaged(tmp_path)
    for path in copy.rglob("*.sst"):
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
    async with target(tmp_path) as (embedded, cluster):
        with pytest.raises(BackupFileError, match="is not the file that was written"):
            await restore(cluster, open_storage(f"local://{copy}"), restore_options(start=b"user:00000700".hex()))
        assert len(embedded.topology.regions) == 1
