"""A restore that stops half-way, whatever the reason, is gone on with by the next try."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    BudgetExceededError,
    ChecksumMismatchError,
    InvalidOptionError,
    StorageError,
    StorageLockedError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, errorpb_pb2, import_sstpb_pb2, methods
from airflow_provider_tikvbr.rawbr import lock
from airflow_provider_tikvbr.rawbr.events import Event, Note, Progress
from airflow_provider_tikvbr.rawbr.lock import LockTimes
from airflow_provider_tikvbr.rawbr.lock_record import RESTORE_LOCK, LockRecord
from airflow_provider_tikvbr.rawbr.meta import read_meta
from airflow_provider_tikvbr.rawbr.options import restore_options
from airflow_provider_tikvbr.rawbr.plan import PlannedFile, borders_of
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.rawbr.resume import DIRECTORY, left_of
from airflow_provider_tikvbr.rawbr.summary import RestoreSummary
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange, UserKey
from tests.rawbr.test_leases import leave_all
from tests.support.golden import Golden
from tests.support.target import expected, held, is_as_before, target, warnings_in
from tests.support.waiting import several_times

V1_FULL = Golden("v1", "full")
V2_FULL = Golden("v2", "full")
AES = Golden("v1", "aes256")
STEP = "Raw restore"


class Job:
    """A restore of a copy of a backup, and what it says."""

    def __init__(self, tmp_path: Path, golden: Golden = V1_FULL, *, elsewhere: bool = False) -> None:
        self.golden = golden
        self.place = tmp_path / "backup"
        shutil.copytree(golden.path, self.place)
        self.kept = tmp_path / "kept"
        self.elsewhere = elsewhere
        self.events: list[Event] = []
        self.act: Callable[[Progress], None] = lambda event: None

    async def run(self, cluster: Cluster, **options: Any) -> RestoreSummary:
        self.events = []
        return await restore(
            cluster,
            open_storage(str(self.place)),
            restore_options(**{"budget": "15s", **self.golden.crypter, **options}),
            self._listen,
            checkpoint_storage=open_storage(str(self.kept)) if self.elsewhere else None,
        )

    def _listen(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Progress) and event.step == STEP:
            self.act(event)

    async def cancelled_at(self, cluster: Cluster, number: int, **options: Any) -> None:
        """Run, and be cancelled when so many files are done."""

        def act(event: Progress) -> None:
            if event.done == number:
                task.cancel()

        self.act = act
        task = asyncio.create_task(self.run(cluster, **{"concurrency": 1, **options}))
        with pytest.raises(asyncio.CancelledError):
            await task
        self.act = lambda event: None

    @property
    def files(self) -> list[Path]:
        """What is kept of it."""
        root = self.kept if self.elsewhere else self.place
        return sorted(path for path in (root / DIRECTORY).rglob("*") if path.is_file())

    @property
    def done(self) -> list[int]:
        """The files that it has told to be done, one after the other."""
        return [e.done for e in self.events if isinstance(e, Progress) and e.step == STEP]

    @property
    def notes(self) -> str:
        """All that it has said."""
        return "\n".join(e.message for e in self.events if isinstance(e, Note))


@pytest.mark.parametrize("number", [0, 1, 7, 11])
@pytest.mark.parametrize("golden", [V1_FULL, V2_FULL, AES], ids=str)
async def test_a_cancelled_restore_is_gone_on_with(golden: Golden, number: int, tmp_path: Path) -> None:
    job = Job(tmp_path, golden)
    async with target(tmp_path, golden.api_version, stores=3, replicas=3, split_keys=[b"user:"]) as (embedded, cluster):
        files = len((await read_meta(open_storage(str(job.place)), restore_options(**golden.crypter).cipher)).files)
        await job.cancelled_at(cluster, number)
        assert is_as_before(embedded)
        assert job.files
        ingested = embedded.faults.fail(methods.IMPORT_DOWNLOAD, store_id=1, times=None)
        summary = await job.run(cluster, checksum=True)
        # A file that a region's border cuts is downloaded for each side.
        assert ingested.hits <= files - number + 1
        assert job.done[0] == number
        assert job.done[-1] == files
        assert f"{number} of {files} files are restored already" in job.notes
        assert (summary.total_kv, summary.restore_files) == (len(golden.pairs), files)
        assert await held(embedded) == expected(golden)
        assert job.files == []
        assert sorted(p.name for p in job.place.iterdir()) == sorted(p.name for p in golden.path.iterdir())


async def test_a_restore_that_was_killed_when_all_was_ingested_is_put_right(tmp_path: Path) -> None:
    """Between the last save of its checkpoint and the end of import mode and the others, which the next try has to end."""
    job = Job(tmp_path)
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):
        embedded.faults.fail(methods.KV_RAW_CHECKSUM, code=grpc.StatusCode.UNAVAILABLE, times=None)
        with pytest.raises(BudgetExceededError):
            await job.run(cluster, checksum=True, budget="300ms")
        embedded.faults.clear()
        await leave_all(cluster)
        assert not is_as_before(embedded)
        asked = embedded.faults.fail(methods.IMPORT_DOWNLOAD, delay_s=0, times=None)
        await job.run(cluster, checksum=True)
        assert not asked.hits
        assert is_as_before(embedded)
        assert await held(embedded) == expected(V1_FULL)
    assert warnings_in(job.events) == []


async def test_a_restore_whose_lock_is_lost_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LockTimes", partial(LockTimes, heartbeat_s=0.02))
    other = LockRecord(owner="run-2", holder="h", host="w1", pid=4, started="s", heartbeat="t")
    job = Job(tmp_path)
    async with target(tmp_path) as (embedded, cluster):
        slow = embedded.faults.add(Rule(kind=Kind.DELAY, method=methods.IMPORT_DOWNLOAD, delay_s=600, after=5))

        def steal(event: Progress) -> None:
            if event.done == 3:
                (path,) = [path for path in job.files if path.name == RESTORE_LOCK]
                thefts.append(asyncio.create_task(several_times(partial(path.write_bytes, other.dump()))))

        thefts: list[asyncio.Task[None]] = []
        job.act = steal
        with pytest.raises(StorageLockedError, match=r"was lost to run-2 \(host w1, .* this job stops"):
            await job.run(cluster, concurrency=1, owner="run-1")
        await asyncio.gather(*thefts)
        assert slow.hits <= 1
        assert is_as_before(embedded)
        embedded.faults.clear()
        job.act = lambda event: None
        with pytest.raises(StorageLockedError, match=r"is being written by run-2 .* give another checkpoint_storage"):
            await job.run(cluster, owner="run-1")
        assert job.done == []
        for path in job.files:
            if path.name == RESTORE_LOCK:
                path.unlink()
        await job.run(cluster, owner="run-1", checksum=True)
        assert job.done[0] >= 3
        assert await held(embedded) == expected(V1_FULL)
        assert job.files == []


async def test_pieces_of_a_file_count_too(tmp_path: Path) -> None:
    job = Job(tmp_path)
    borders = [p.key for p in V1_FULL.pairs[17 :: len(V1_FULL.pairs) // 40]]
    async with target(tmp_path, stores=2, replicas=2, split_keys=borders) as (embedded, cluster):
        await job.cancelled_at(cluster, 5)
        # What is left lies in other regions by now.
        embedded.split(p.key for p in V1_FULL.pairs[5::50])
        embedded.scatter()
        await job.run(cluster, checksum=True)
        assert await held(embedded) == expected(V1_FULL)


async def test_what_is_left_to_compare_alone_is_compared(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path) as (embedded, cluster):
        embedded.faults.fail(methods.KV_RAW_CHECKSUM, code=grpc.StatusCode.UNAVAILABLE, times=None)
        with pytest.raises(BudgetExceededError):
            await job.run(cluster, checksum=True, budget="300ms")
        embedded.faults.clear()
        downloads = embedded.faults.fail(methods.IMPORT_DOWNLOAD, times=None)
        assert (await job.run(cluster, checksum=True)).verified
        assert downloads.hits == 0
        assert job.files == []


async def test_a_kept_place_of_ones_own_is_used(tmp_path: Path) -> None:
    job = Job(tmp_path, elsewhere=True)
    async with target(tmp_path) as (embedded, cluster):
        await job.cancelled_at(cluster, 6)
        assert job.files
        assert not (job.place / DIRECTORY).exists()
        await job.run(cluster, checksum=True)
        assert job.done[0] == 6
        assert job.files == []
        assert await held(embedded) == expected(V1_FULL)


async def test_another_range_is_refused_and_named(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path) as (embedded, cluster):
        await job.cancelled_at(cluster, 4)
        with pytest.raises(InvalidOptionError, match="another start: give the same start to go on") as caught:
            await job.run(cluster, start="61")
        assert caught.value.parameter == "start"
        assert is_as_before(embedded)
        await job.run(cluster, start="61", resume=False)
        assert job.files == []
        assert await held(embedded) == expected(V1_FULL)


async def test_other_rates_and_the_like_are_not(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path) as (_, cluster):
        await job.cancelled_at(cluster, 4)
        await job.run(cluster, ratelimit=1000, concurrency=9, online=True, checksum=True)
        assert job.done[0] == 4


async def test_without_resume_all_is_done_again(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path) as (embedded, cluster):
        await job.cancelled_at(cluster, 4)
        await job.run(cluster, resume=False)
        assert job.done[0] == 0
        assert "resume is off" in job.notes
        assert job.files == []
        assert await held(embedded) == expected(V1_FULL)


async def test_another_run_starts_over(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path) as (_, cluster):
        await job.cancelled_at(cluster, 4, owner="dag/task/1")
        await job.run(cluster, owner="dag/task/2")
        assert job.done[0] == 0
        assert "dag/task/1" in job.notes


async def test_another_cluster_has_its_own(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path / "one") as (_, one):
        await job.cancelled_at(one, 4)
        async with target(tmp_path / "two") as (embedded, two):
            await job.run(two, checksum=True)
            assert job.done[0] == 0
            assert await held(embedded) == expected(V1_FULL)
        assert job.files
        await job.run(one, checksum=True)
        assert job.done[0] == 4


async def test_what_is_damaged_of_it_is_done_again(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path) as (embedded, cluster):
        await job.cancelled_at(cluster, 4)
        kept = next(path for path in job.files if path.name != "head.json")
        kept.write_bytes(kept.read_bytes()[:-1])
        await job.run(cluster, checksum=True)
        assert job.done[0] == 0
        assert "is damaged: what it says was finished is done again" in job.notes
        assert await held(embedded) == expected(V1_FULL)


async def test_an_old_restore_whose_checkpoint_is_left_is_not_taken_for_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a key for S3 that may not delete: what was changed since has to be restored."""

    async def refuse(self: LocalStorage, name: str) -> None:
        raise StorageError("AccessDenied: DeleteObject")

    job = Job(tmp_path)
    async with target(tmp_path) as (embedded, cluster):
        with monkeypatch.context() as patched:
            patched.setattr(LocalStorage, "delete", refuse)
            await job.run(cluster)
        assert "restore.checkpoint" in job.notes
        assert "could not be deleted, and does no harm" in job.notes
        for path in job.files:
            if path.name == RESTORE_LOCK:
                path.unlink()
        (key, _), *_ = pairs = expected(V1_FULL)
        await embedded.put([(UserKey(key), b"changed")])
        assert await held(embedded) != pairs
        await job.run(cluster, checksum=True)
        assert await held(embedded) == pairs
    assert not job.files


async def test_a_difference_found_at_the_end_lets_the_next_try_do_it_all(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path) as (embedded, cluster):
        await embedded.put([(UserKey(b"zzz-own"), b"stays")])
        with pytest.raises(ChecksumMismatchError):
            await job.run(cluster, checksum=True)
        assert job.files == []


class ReadOnly(LocalStorage):
    """A directory that takes nothing."""

    async def write(self, name: str, data: bytes) -> None:
        raise StorageError(f"{self.display_url} may not be written to", url=self.display_url)

    async def create(self, name: str, data: bytes) -> bool:
        raise StorageError(f"{self.display_url} may not be written to", url=self.display_url)

    async def prepare(self) -> None:
        raise StorageError(f"{self.display_url} may not be written to", url=self.display_url)


async def test_a_backup_that_may_not_be_written_to_is_restored_all_the_same(tmp_path: Path) -> None:
    events: list[Event] = []
    async with target(tmp_path) as (embedded, cluster):
        await restore(cluster, ReadOnly(path=V1_FULL.path), restore_options(checksum=True), events.append)
        assert await held(embedded) == expected(V1_FULL)
    said = [text for text in warnings_in(events) if "checkpoint" in text]
    assert len(said) == 1
    assert "give checkpoint_storage to have it elsewhere" in said[0]


@pytest.mark.parametrize("place", ["read-only", "noop"])
async def test_a_given_place_that_cannot_be_used_ends_it_before_anything_changes(place: str, tmp_path: Path) -> None:
    given = ReadOnly(path=tmp_path) if place == "read-only" else open_storage("noop://")
    async with target(tmp_path) as (embedded, cluster):
        splits = embedded.faults.fail(methods.KV_SPLIT_REGION, times=None)
        with pytest.raises((StorageError, InvalidOptionError)):
            await restore(cluster, open_storage(V1_FULL.url), restore_options(), checkpoint_storage=given)
        assert splits.hits == 0
        assert is_as_before(embedded)


async def test_a_resumed_file_without_pairs_in_its_rest_is_fine(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path, split_keys=[V1_FULL.pairs[-3].key]) as (embedded, cluster):
        error = errorpb_pb2.Error(message="injected", not_leader=errorpb_pb2.NotLeader())
        refuse = Rule(
            kind=Kind.ANSWER,
            method=methods.IMPORT_MULTI_INGEST,
            region_id=embedded.topology.regions[-1].id,
            response=import_sstpb_pb2.IngestResponse(error=error),
        )
        embedded.faults.add(refuse)
        with pytest.raises(BudgetExceededError, match="this store does not lead the region"):
            await job.run(cluster, budget="300ms")
        embedded.faults.clear()
        empty = import_sstpb_pb2.DownloadResponse(is_empty=True)
        embedded.faults.fail(methods.IMPORT_DOWNLOAD, response=empty, times=None)
        await job.run(cluster)
        assert job.done == [12, 13]


async def test_a_restore_that_is_refused_at_once_leaves_nothing(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path) as (embedded, cluster):
        refuse = embedded.faults.fail(methods.IMPORT_DOWNLOAD, code=grpc.StatusCode.PERMISSION_DENIED, times=None)
        with pytest.raises(AuthenticationError):
            await job.run(cluster)
        assert refuse.hits
        assert job.files == []


# --- a target that was emptied meanwhile ---


@pytest.mark.parametrize("golden", [V1_FULL, V2_FULL], ids=str)
async def test_a_target_that_was_emptied_gets_all_again(golden: Golden, tmp_path: Path) -> None:
    """Without a checksum nothing else would notice that the first files are gone."""
    job = Job(tmp_path, golden, elsewhere=True)
    async with target(tmp_path / "one", golden.api_version, cluster_id=7) as (_, cluster):
        await job.cancelled_at(cluster, 5)
    async with target(tmp_path / "two", golden.api_version, cluster_id=7) as (embedded, cluster):
        await job.run(cluster)
        assert job.done[0] == 0
        assert "as if the range was emptied meanwhile: all of it is restored again" in job.notes
        assert await held(embedded) == expected(golden)
        assert job.files == []


@pytest.mark.parametrize("golden", [V1_FULL, V2_FULL], ids=str)
async def test_one_empty_file_is_proof_where_nothing_expires(golden: Golden, tmp_path: Path) -> None:
    job = Job(tmp_path, golden, elsewhere=True)
    async with target(tmp_path / "one", golden.api_version, cluster_id=7) as (embedded, cluster):
        await job.cancelled_at(cluster, 5)
        there = await held(embedded)
    async with target(tmp_path / "two", golden.api_version, cluster_id=7) as (embedded, cluster):
        await embedded.put([(UserKey(key), value) for key, value in there[:1]])
        await job.run(cluster)
        assert job.done[0] == (0 if golden is V1_FULL else 5)


async def test_no_answer_is_no_proof(tmp_path: Path) -> None:
    job = Job(tmp_path)
    async with target(tmp_path) as (embedded, cluster):
        await job.cancelled_at(cluster, 5)
        silent = embedded.faults.fail(methods.KV_RAW_SCAN, code=grpc.StatusCode.UNAVAILABLE, times=None)
        await job.run(cluster)
        assert silent.hits
        assert job.done[0] == 5
        assert await held(embedded) == expected(V1_FULL)


# --- ranges ---


def span(start: bytes, end: bytes) -> KeyRange[ApiKey]:
    return KeyRange(ApiKey(start), ApiKey(end))


@pytest.mark.parametrize(
    ("done", "left"),
    [
        ([], [(b"b", b"y")]),
        ([(b"b", b"y")], []),
        ([(b"", b"")], []),
        ([(b"a", b"c")], [(b"c", b"y")]),
        ([(b"x", b"")], [(b"b", b"x")]),
        ([(b"m", b"n"), (b"d", b"e")], [(b"b", b"d"), (b"e", b"m"), (b"n", b"y")]),
        ([(b"d", b"k"), (b"e", b"f"), (b"k", b"l")], [(b"b", b"d"), (b"l", b"y")]),
        ([(b"z", b"zz")], [(b"b", b"y")]),
        ([(b"", b"a")], [(b"b", b"y")]),
    ],
)
def test_left_of(done: list[tuple[bytes, bytes]], left: list[tuple[bytes, bytes]]) -> None:
    assert left_of(span(b"b", b"y"), [span(*d) for d in done]) == tuple(span(*part) for part in left)


def test_left_of_an_open_range() -> None:
    assert left_of(span(b"b", b""), [span(b"c", b"d")]) == (span(b"b", b"c"), span(b"d", b""))
    assert left_of(span(b"b", b""), [span(b"c", b"")]) == (span(b"b", b"c"),)


def test_only_borders_of_what_is_left_are_split_at() -> None:
    files = [
        PlannedFile(file=brpb_pb2.File(), keys=span(start, end), whole=True)
        for start, end in [(b"b", b"d"), (b"d", b"f"), (b"m", b"")]
    ]
    keys = [ApiKey(k) for k in (b"a", b"b", b"d", b"f", b"g", b"l", b"n")]
    assert borders_of(keys, files) == (b"b", b"d", b"f", b"n")
    assert borders_of(keys, []) == ()
