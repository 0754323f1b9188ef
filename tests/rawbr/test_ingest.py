"""What goes wrong while files are downloaded and ingested, and what must be true all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import (
    BackupFileError,
    BudgetExceededError,
    ProtocolError,
    RegionRefusedError,
    TikvBrError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, errorpb_pb2, import_sstpb_pb2, methods
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.rawbr import ingest, leases, pieces
from airflow_provider_tikvbr.rawbr.download import Downloader, timeout_s
from airflow_provider_tikvbr.rawbr.events import Event, Progress
from airflow_provider_tikvbr.rawbr.meta import read_meta
from airflow_provider_tikvbr.rawbr.options import restore_options
from airflow_provider_tikvbr.rawbr.pieces import FileWork, Restorer
from airflow_provider_tikvbr.rawbr.plan import make_plan
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, KeyRange, RegionKey, UserKey
from tests.support.golden import Golden
from tests.support.target import expected, held, is_as_before, target

V1_FULL = Golden("v1", "full")
V2_FULL = Golden("v2", "full")


async def run(cluster: Cluster, listener: Callable[[Event], None] = lambda event: None, **options: Any) -> None:
    golden = V2_FULL if cluster.codec.is_v2 else V1_FULL
    options = {"budget": "15s", **options}
    await restore(cluster, open_storage(golden.url), restore_options(**options), listener)


def at_file(number: int, act: Callable[[], None]) -> Callable[[Event], None]:
    """A listener that does something when so many files are restored."""

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.step == "Raw restore" and event.done == number:
            act()

    return listen


def nobody_died(embedded: EmbeddedCluster) -> bool:
    """Whether no peer was told to ingest a file that it does not have."""
    return not any(s.death for s in embedded.topology.stores.values())


def test_slow_storages_and_large_files_get_more_time() -> None:
    mib = 1 << 20
    assert timeout_s(0, 0) == 600
    assert timeout_s(96 * mib, 0) == 600 + 2 * 64 * 96 / 16
    assert timeout_s(96 * mib, 1000 * mib) == timeout_s(96 * mib, 0)
    assert timeout_s(1024 * mib, 8 * mib) == 600 + 2 * 64 * 1024 / 8


# --- errors that pass ---


def ingest_error(message: str = "injected", **fields: Message) -> import_sstpb_pb2.IngestResponse:
    return import_sstpb_pb2.IngestResponse(error=errorpb_pb2.Error(message=message, **fields))  # type: ignore[arg-type]


def download_error(message: str) -> import_sstpb_pb2.DownloadResponse:
    return import_sstpb_pb2.DownloadResponse(error=import_sstpb_pb2.Error(message=message))


PASSING: list[tuple[str, Method[Any, Any], Message]] = [
    ("epoch", methods.IMPORT_MULTI_INGEST, ingest_error(epoch_not_match=errorpb_pb2.EpochNotMatch())),
    ("no region", methods.IMPORT_MULTI_INGEST, ingest_error(region_not_found=errorpb_pb2.RegionNotFound(region_id=9))),
    ("busy", methods.IMPORT_MULTI_INGEST, ingest_error(server_is_busy=errorpb_pb2.ServerIsBusy(backoff_ms=5))),
    # What a store answers to a repeated ingest after the first answer was lost.
    ("stale", methods.IMPORT_MULTI_INGEST, ingest_error(stale_command=errorpb_pb2.StaleCommand())),
    ("conflict", methods.IMPORT_MULTI_INGEST, ingest_error("ingest file conflict")),
    ("no leader", methods.IMPORT_MULTI_INGEST, ingest_error(not_leader=errorpb_pb2.NotLeader(region_id=9))),
    (
        "merging",
        methods.IMPORT_MULTI_INGEST,
        ingest_error(proposal_in_merging_mode=errorpb_pb2.ProposalInMergingMode()),
    ),
    ("storage", methods.IMPORT_DOWNLOAD, download_error("put object timeout")),
    ("throttled", methods.IMPORT_DOWNLOAD, download_error("503 SlowDown")),
]


@pytest.mark.parametrize(("method", "response"), [p[1:] for p in PASSING], ids=[p[0] for p in PASSING])
async def test_an_error_that_passes_costs_nothing(method: Method[Any, Any], response: Message, tmp_path: Path) -> None:
    # Every other kind with the keys of V2, which have three forms.
    golden = V2_FULL if PASSING.index(next(p for p in PASSING if p[2] is response)) % 2 else V1_FULL
    async with target(tmp_path, golden.api_version, stores=2, replicas=2, split_keys=[b"user:"]) as (embedded, cluster):
        point = embedded.faults.fail(method, response=response, times=3)
        await run(cluster, checksum=True)
        assert point.hits == 3
        assert await held(embedded) == expected(golden)
        assert nobody_died(embedded)


BUSY = ingest_error(server_is_busy=errorpb_pb2.ServerIsBusy(backoff_ms=20))


@pytest.mark.parametrize(
    ("response", "fresh"), [(BUSY, False), (ingest_error("ingest file conflict"), True)], ids=["busy", "unknown"]
)
async def test_what_is_there_is_not_downloaded_again_for_a_busy_store(
    response: Message, fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "UNKNOWN_BUDGET_S", 0.05)
    monkeypatch.setattr(ingest, "INSIST_S", 0.1)
    async with target(tmp_path) as (embedded, cluster):
        downloads = embedded.faults.fail(methods.IMPORT_DOWNLOAD, times=None)
        # All to the first file.
        embedded.faults.fail(methods.IMPORT_MULTI_INGEST, response=response, times=12)
        await run(cluster, checksum=True, concurrency=1)
    files = len((await read_meta(open_storage(V1_FULL.url))).files)
    assert (downloads.hits > files) == fresh


async def test_a_download_that_takes_longer_than_the_budget_is_tried_again(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, cluster):
        embedded.faults.fail(methods.IMPORT_DOWNLOAD, code=grpc.StatusCode.DEADLINE_EXCEEDED, delay_s=0.4)
        await run(cluster, checksum=True, budget="300ms")
        assert await held(embedded) == expected(V1_FULL)


async def test_a_peer_that_is_another_by_now_is_looked_up(tmp_path: Path) -> None:
    another = ingest_error(mismatch_peer_id=errorpb_pb2.MismatchPeerId(request_peer_id=1, store_peer_id=2))
    async with target(tmp_path) as (embedded, cluster):
        looks = embedded.faults.fail(methods.PD_GET_REGION_BY_ID, times=None)
        point = embedded.faults.fail(methods.IMPORT_MULTI_INGEST, response=another)
        await run(cluster, checksum=True)
        assert (point.hits, looks.hits) == (1, 1)


async def test_credentials_that_run_out_are_renewed(tmp_path: Path) -> None:
    class Renewing(LocalStorage):
        """As if each look at the credentials gave others."""

        looks = 0

        def backend(self) -> brpb_pb2.StorageBackend:
            self.looks += 1
            return brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(self.path) + "/." * (self.looks % 99)))

    storage = Renewing(path=Path(V1_FULL.url.removeprefix("local://")))
    async with target(tmp_path) as (embedded, cluster):
        embedded.faults.fail(methods.IMPORT_DOWNLOAD, response=download_error("ExpiredToken"), times=2)
        await restore(cluster, storage, restore_options(budget="15s", checksum=True))
        assert await held(embedded) == expected(V1_FULL)
    files = len((await read_meta(storage)).files)
    # Once to check that they may be sent, once for each file and once for each file that was refused.
    assert storage.looks == 1 + files + 2


@pytest.mark.parametrize("method", [methods.IMPORT_DOWNLOAD, methods.IMPORT_MULTI_INGEST], ids=lambda m: m.name)
async def test_a_lost_answer_costs_nothing(method: Method[Any, Any], tmp_path: Path) -> None:
    async with target(tmp_path, stores=2, replicas=2) as (embedded, cluster):
        for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.UNKNOWN):
            embedded.faults.fail(method, code=code)
        await run(cluster, checksum=True)
        assert await held(embedded) == expected(V1_FULL)
        assert nobody_died(embedded)


async def test_the_leader_that_a_store_hints_at_is_asked_next(tmp_path: Path) -> None:
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):

        def move() -> None:
            for region in embedded.topology.regions:
                stores = sorted(region.store_ids)
                now = stores.index(region.leader_store_id)
                embedded.topology.transfer_leader(region.id, stores[(now + 1) % 3])

        downloads = embedded.faults.fail(methods.IMPORT_DOWNLOAD, times=None)
        await run(cluster, at_file(0, move), concurrency=1, checksum=True)
        assert await held(embedded) == expected(V1_FULL)
        # Nothing had to be downloaded again.
        assert downloads.hits == 13 * 3


# --- regions that change meanwhile ---


def split_everywhere(embedded: EmbeddedCluster) -> None:
    embedded.split(p.key for p in V1_FULL.pairs[10::300])


def move_peers(embedded: EmbeddedCluster) -> None:
    for region in embedded.topology.regions:
        free = [s for s in embedded.topology.stores if region.peer_on(s) is None]
        if free and not embedded.topology.is_pinned(region):
            embedded.topology.move_peer(region.id, region.peers[0].store_id, free[0])


def scatter(embedded: EmbeddedCluster) -> None:
    embedded.scatter()


@pytest.mark.parametrize("change", [split_everywhere, move_peers, scatter], ids=lambda c: c.__name__)
@pytest.mark.parametrize(("golden", "concurrency"), [(V1_FULL, 4), (V2_FULL, 1)], ids=str)
async def test_regions_may_change_meanwhile(
    golden: Golden, change: Callable[[EmbeddedCluster], None], concurrency: int, tmp_path: Path
) -> None:
    async with target(tmp_path, golden.api_version, stores=4, replicas=2, split_keys=[b"user:"]) as (embedded, cluster):

        def listen(event: Event) -> None:
            if isinstance(event, Progress) and event.step == "Raw restore" and event.done in (0, 2, 5, 9):
                change(embedded)

        await run(cluster, listen, concurrency=concurrency, checksum=True)
        assert await held(embedded) == expected(golden)
        assert nobody_died(embedded)


# --- stores that go down ---


async def test_a_store_that_is_down_is_waited_for(tmp_path: Path) -> None:
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):
        tasks: list[asyncio.Task[None]] = []

        async def bounce() -> None:
            await embedded.stop_store(3)
            ingests = embedded.faults.fail(methods.IMPORT_MULTI_INGEST, times=None)
            await asyncio.sleep(0.6)
            # A peer without the file must not be told to ingest it, so nothing is ingested now.
            assert ingests.hits <= 2
            await embedded.start_store(3)

        await run(
            cluster,
            at_file(4, lambda: tasks.append(asyncio.create_task(bounce()))),
            concurrency=2,
            checksum=True,
        )
        await asyncio.gather(*tasks)
        assert await held(embedded) == expected(V1_FULL)
        assert nobody_died(embedded)


async def test_a_store_that_stays_down_ends_the_restore_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "UNDO_S", 0.3)
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):
        await embedded.stop_store(2)
        with pytest.raises(
            BudgetExceededError,
            match=r"gave up after 1 s without progress, with 13 pieces of 13 files left: store 2 \(127\.0\.0\.1:\d+\) is "
            r"not available .* \(which keeps 13 of them in region \d+.*\)\. Left are \[.*\) of .*_default\.sst, ",
        ) as caught:
            await run(cluster, budget="1s")
        assert caught.value.store_id == 2
        assert caught.value.region_id
        assert nobody_died(embedded)
        assert not embedded.pd.schedulers.paused()
        assert not embedded.engines[1].import_mode.is_on
        # Once the store is back, all is well.
        await embedded.start_store(2)
        await run(cluster, checksum=True)
        assert await held(embedded) == expected(V1_FULL)


async def test_only_the_store_that_failed_downloads_again(tmp_path: Path) -> None:
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):
        failing = embedded.faults.fail(
            methods.IMPORT_DOWNLOAD, store_id=2, response=download_error("connection reset by peer"), times=3
        )
        others = [embedded.faults.fail(methods.IMPORT_DOWNLOAD, store_id=i, times=None) for i in (1, 3)]
        await run(cluster, checksum=True)
        assert failing.hits == 3
        assert [point.hits for point in others] == [13, 13]


async def test_a_peer_that_pd_replaces_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "UNDO_S", 0.3)
    async with target(tmp_path, stores=4, replicas=3, split_keys=[b"idx", b"user:"]) as (embedded, cluster):
        await embedded.stop_store(3)
        asyncio.get_running_loop().call_later(0.5, move_away, embedded, 3)
        await run(cluster, budget="20s")
        assert await held(embedded) == expected(V1_FULL)
        assert all(region.peer_on(3) is None for region in embedded.topology.regions)


def move_away(embedded: EmbeddedCluster, store_id: int) -> None:
    """What PD does with the peers of a store that is down for long."""
    for region in embedded.topology.regions:
        free = [s for s in embedded.topology.stores if s != store_id and region.peer_on(s) is None]
        if region.peer_on(store_id) is not None:
            embedded.topology.move_peer(region.id, store_id, free[0])


# --- errors that do not pass ---


@pytest.mark.parametrize(
    ("method", "response", "error", "reason"),
    [
        (
            methods.IMPORT_MULTI_INGEST,
            ingest_error(disk_full=errorpb_pb2.DiskFull(store_id=[1], reason="it is full")),
            RegionRefusedError,
            r"restoring file .*_default\.sst into region \d+: store 1 .*it is full",
        ),
        (
            methods.IMPORT_MULTI_INGEST,
            ingest_error(key_not_in_region=errorpb_pb2.KeyNotInRegion(region_id=1)),
            RegionRefusedError,
            r"restoring file .* into region \d+: store 1 .*key not in region",
        ),
        (
            methods.IMPORT_DOWNLOAD,
            download_error("Corruption: block checksum mismatch"),
            BackupFileError,
            r"restoring file .* into region \d+: store 1 .*checksum mismatch",
        ),
    ],
)
async def test_an_error_that_does_not_pass_ends_it_at_once(
    method: Method[Any, Any], response: Message, error: type[TikvBrError], reason: str, tmp_path: Path
) -> None:
    async with target(tmp_path) as (embedded, cluster):
        embedded.faults.fail(method, response=response, times=None)
        with pytest.raises(error, match=reason) as caught:
            await run(cluster)
        assert str(caught.value).count("restoring file") == 1
        assert caught.value.store_id == 1
        assert is_as_before(embedded)


async def test_stores_that_see_different_files_are_not_told_to_ingest(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2, replicas=2) as (embedded, cluster):
        empty = import_sstpb_pb2.DownloadResponse(is_empty=True)
        embedded.faults.fail(methods.IMPORT_DOWNLOAD, store_id=2, response=empty, times=None)
        with pytest.raises(BudgetExceededError, match="found different keys"):
            await run(cluster, budget="0.3s")
        assert await held(embedded) == []


async def test_a_file_without_its_pairs_is_no_success(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, cluster):
        empty = import_sstpb_pb2.DownloadResponse(is_empty=True)
        embedded.faults.fail(methods.IMPORT_DOWNLOAD, response=empty, times=None)
        with pytest.raises(BackupFileError, match="but none of them in the key range"):
            await run(cluster)


# --- how files go in ---


async def test_files_of_one_region_go_in_together(tmp_path: Path) -> None:
    async with target(tmp_path, stores=3, replicas=3) as (embedded, cluster):
        ingests = embedded.faults.fail(methods.IMPORT_MULTI_INGEST, delay_s=0.2, times=None)
        await run(cluster, checksum=True)
        assert await held(embedded) == expected(V1_FULL)
        # The first ones while the others come, then all that came meanwhile.
        assert ingests.hits <= 4


async def test_stores_without_multi_ingest_are_served_one_by_one(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2, replicas=2) as (embedded, cluster):
        embedded.faults.fail(methods.IMPORT_MULTI_INGEST, code=grpc.StatusCode.UNIMPLEMENTED, times=None)
        single = embedded.faults.fail(methods.IMPORT_INGEST, times=None)
        await run(cluster, checksum=True)
        assert single.hits == 13
        assert await held(embedded) == expected(V1_FULL)


async def test_regions_are_not_looked_up_for_each_file(tmp_path: Path) -> None:
    async with target(tmp_path, stores=3, split_keys=[b"idx", b"user:"]) as (embedded, cluster):
        scans = embedded.faults.fail(methods.PD_SCAN_REGIONS, times=None)
        single = embedded.faults.fail(methods.PD_GET_REGION, times=None)
        await run(cluster)
        # For the look at the target's data, for the split, and once before the download.
        assert scans.hits <= 3
        assert single.hits == 0


async def test_nothing_outside_the_wanted_range_arrives_whatever_the_regions(tmp_path: Path) -> None:
    """The downloader alone, with a range narrower than its files."""
    async with target(tmp_path, split_keys=[b"idx\x0013", b"user:00000100"]) as (embedded, cluster):
        storage = open_storage(V1_FULL.url)
        meta = await read_meta(storage)
        plan = make_plan(meta, cluster.codec, EVERYTHING)
        wanted = KeyRange(RegionKey(b"idx\x0012"), RegionKey(b"user:00000300"))
        downloader = Downloader(cluster, storage=storage, cipher=PLAINTEXT.message(), keys=wanted)
        restorer = Restorer(cluster, downloader=downloader, budget_s=10)
        touching = [f for f in plan.files if wanted.intersect(KeyRange(RegionKey(f.keys.start), RegionKey(f.keys.end)))]
        done: list[brpb_pb2.File] = []
        works = [FileWork(planned=planned, todo=(planned.keys,)) for planned in touching]
        await restorer.run(works, concurrency=4, on_done=lambda planned: done.append(planned.file))
        assert len(done) == len(touching)
        narrow = KeyRange(UserKey(wanted.start), UserKey(wanted.end))
        assert await held(embedded) == expected(V1_FULL, narrow)


async def test_an_unexpected_error_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with target(tmp_path) as (embedded, cluster):
        embedded.faults.fail(methods.IMPORT_MULTI_INGEST, code=grpc.StatusCode.INVALID_ARGUMENT)
        with pytest.raises(ProtocolError, match="restoring file"):
            await run(cluster)
        assert is_as_before(embedded)
