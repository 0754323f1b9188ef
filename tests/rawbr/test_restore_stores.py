"""Stores that go away in the middle of a restore, for a while or for good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.exceptions import BudgetExceededError
from airflow_provider_tikvbr.proto import errorpb_pb2, import_sstpb_pb2, methods
from airflow_provider_tikvbr.rawbr import ingest, leases
from airflow_provider_tikvbr.rawbr.events import Event, Progress
from airflow_provider_tikvbr.rawbr.options import restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from tests.support.golden import Golden
from tests.support.target import expected, held, is_as_before, target
from tests.support.waiting import until

V1_FULL = Golden("v1", "full")
V2_FULL = Golden("v2", "full")
BORDERS = [p.key for p in V1_FULL.pairs[40::130]]


async def run(cluster: Cluster, listener: Callable[[Event], None] = lambda event: None, **options: Any) -> None:
    golden = V2_FULL if cluster.codec.is_v2 else V1_FULL
    await restore(cluster, open_storage(golden.url), restore_options(**{"budget": "20s", **options}), listener)


def nobody_died(embedded: EmbeddedCluster) -> bool:
    return not any(s.death for s in embedded.topology.stores.values())


def living(embedded: EmbeddedCluster, store_id: int) -> list[tuple[bytes, bytes]]:
    """The backup's pairs of the regions that have no peer on a store."""
    codec = embedded.topology.codec

    def elsewhere(key: bytes) -> bool:
        region = embedded.topology.region_of(codec.region_key(codec.api_key(key)))  # type: ignore[arg-type]
        return region.peer_on(store_id) is None

    return [pair for pair in expected(V1_FULL) if elsewhere(pair[0])]


def replace_peers(embedded: EmbeddedCluster, store_id: int) -> None:
    """What PD does with the peers of a store that is down for long."""
    for region in embedded.topology.regions:
        free = [s for s in embedded.topology.stores if s != store_id and region.peer_on(s) is None]
        if region.peer_on(store_id) is not None:
            embedded.topology.move_peer(region.id, store_id, free[0])


@pytest.fixture
def _short_undo(monkeypatch: pytest.MonkeyPatch) -> None:
    """For stores that stay away: nothing can be undone there."""
    monkeypatch.setattr(leases, "UNDO_S", 0.3)


@pytest.mark.usefixtures("_short_undo")
@pytest.mark.parametrize("concurrency", [1, 64])
async def test_regions_whose_peers_all_live_go_on_and_the_next_try_does_the_rest(
    concurrency: int, tmp_path: Path
) -> None:
    async with target(tmp_path, stores=5, replicas=3, split_keys=BORDERS) as (embedded, cluster):
        await embedded.stop_store(5)
        with pytest.raises(BudgetExceededError) as caught:
            await run(cluster, concurrency=concurrency, budget="1s", online=True)
        assert caught.value.store_id == 5
        message = str(caught.value)
        assert "gave up after 1 s without progress, with " in message
        assert "store 5 (127.0.0.1:" in message
        assert " in region " in message
        assert "). Left are [" in message
        pairs = living(embedded, 5)
        assert 0 < len(pairs) < len(expected(V1_FULL))
        assert set(await held(embedded)) >= set(pairs)
        assert nobody_died(embedded)
        # Back again: only the rest is downloaded.
        await embedded.start_store(5)
        downloads = {s: embedded.faults.fail(methods.IMPORT_DOWNLOAD, store_id=s, times=None) for s in range(1, 6)}
        await run(cluster, concurrency=concurrency, checksum=True, online=True)
        assert await held(embedded) == expected(V1_FULL)
        assert sum(rule.hits for rule in downloads.values()) == 3 * downloads[5].hits
        assert is_as_before(embedded)


@pytest.mark.usefixtures("_short_undo")
async def test_pd_replaces_the_peers_of_a_store_that_is_gone_for_good(tmp_path: Path) -> None:
    async with target(tmp_path, stores=4, replicas=3, split_keys=BORDERS) as (embedded, cluster):
        await embedded.stop_store(4)
        done: list[int] = []

        def listen(event: Event) -> None:
            if isinstance(event, Progress) and event.step == "Raw restore":
                done.append(event.done)

        asyncio.get_running_loop().call_later(1.5, replace_peers, embedded, 4)
        await run(cluster, listen)
        assert await held(embedded) == expected(V1_FULL)
        assert all(region.peer_on(4) is None for region in embedded.topology.regions)
        assert nobody_died(embedded)


@pytest.mark.parametrize("api_version", [ApiVersion.V1, ApiVersion.V2], ids=str)
@pytest.mark.parametrize("at", [1, 6, 12])
async def test_a_store_that_goes_and_comes_back(at: int, api_version: ApiVersion, tmp_path: Path) -> None:
    async with target(tmp_path, api_version, stores=3, replicas=3, split_keys=BORDERS) as (embedded, cluster):
        tasks: list[asyncio.Task[None]] = []

        async def bounce() -> None:
            await embedded.stop_store(2)
            await asyncio.sleep(1.0)
            await embedded.start_store(2)

        def listen(event: Event) -> None:
            if isinstance(event, Progress) and event.step == "Raw restore" and event.done == at and not tasks:
                tasks.append(asyncio.create_task(bounce()))

        await run(cluster, listen, concurrency=4)
        await asyncio.gather(*tasks)
        assert tasks
        assert await held(embedded) == expected(V2_FULL if api_version is ApiVersion.V2 else V1_FULL)
        assert nobody_died(embedded)
        assert is_as_before(embedded)


async def test_one_region_that_is_busy_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "INSIST_S", 0.1)
    async with target(tmp_path, split_keys=BORDERS) as (embedded, cluster):
        busy = errorpb_pb2.Error(message="injected", server_is_busy=errorpb_pb2.ServerIsBusy())
        region = embedded.topology.regions[0]
        rule = Rule(
            kind=Kind.ANSWER,
            method=methods.IMPORT_MULTI_INGEST,
            region_id=region.id,
            response=import_sstpb_pb2.IngestResponse(error=busy),
        )
        embedded.faults.add(rule)
        with pytest.raises(
            BudgetExceededError, match=rf"the store is busy.* in region {region.id}\)\. Left are \["
        ) as caught:
            await run(cluster, concurrency=1, budget="300ms")
        assert caught.value.region_id == region.id
        outside = [pair for pair in expected(V1_FULL) if region.end and pair[0] >= region.end]
        assert outside
        assert set(await held(embedded)) >= set(outside)
        rule.disarm()
        await run(cluster, checksum=True)
        assert await held(embedded) == expected(V1_FULL)


async def test_a_peer_that_comes_between_download_and_ingest_gets_the_file_first(tmp_path: Path) -> None:
    """The epoch that an ingest carries is the one whose peers have the file."""
    async with target(tmp_path, stores=4, replicas=2, split_keys=[b"user:"]) as (embedded, cluster):
        # The download is over, and its answer still on the way, when PD moves the peers.
        embedded.faults.fail(methods.IMPORT_MULTI_INGEST, delay_s=0.5, times=3)
        ingests = embedded.faults.fail(methods.IMPORT_MULTI_INGEST, times=None)

        async def move() -> None:
            await until(lambda: ingests.hits > 0)
            for region in embedded.topology.regions:
                free = [s for s in embedded.topology.stores if region.peer_on(s) is None]
                if not embedded.topology.is_pinned(region):
                    embedded.topology.move_peer(region.id, region.peers[0].store_id, free[0])

        task = asyncio.create_task(move())
        await run(cluster, checksum=True)
        await task
        assert await held(embedded) == expected(V1_FULL)
        assert nobody_died(embedded)


@pytest.mark.usefixtures("_short_undo")
async def test_a_store_that_never_answers_keeps_leases_only_for_its_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STORE_TIMEOUT_S", 0.2)
    async with target(tmp_path, stores=3, replicas=1) as (embedded, cluster):
        for method in (methods.IMPORT_SWITCH_MODE, methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT):
            embedded.faults.fail(method, store_id=3, delay_s=60, times=None)
        events: list[Event] = []
        await asyncio.wait_for(run(cluster, events.append, ratelimit=1000), 30)
        assert await held(embedded) == expected(V1_FULL)
        assert not embedded.import_modes()[1]
        assert not embedded.download_limits()[2]
