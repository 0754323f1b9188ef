from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import ApiVersionError, TikvBrError, UnsupportedError
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.checksum import verify_backup
from airflow_provider_tikvbr.rawbr.events import Event
from airflow_provider_tikvbr.rawbr.options import backup_options, checksum_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from tests.rawbr.jobs import Events, checksum_of, key, make_pairs, names
from tests.support.golden import AES256_KEY, Golden
from tests.support.target import expected, held, is_as_before

V1, V1TTL, V2 = ApiVersion
PAIRS = make_pairs(200)
SST_MAGIC = (0x88E241B785F4CFF7).to_bytes(8, "little")
AES = {"crypter_method": "aes256-ctr", "crypter_key": AES256_KEY}
CHANGES = (
    methods.BACKUP,
    methods.IMPORT_DOWNLOAD,
    methods.IMPORT_INGEST,
    methods.IMPORT_MULTI_INGEST,
    methods.IMPORT_SWITCH_MODE,
    methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT,
    methods.KV_SPLIT_REGION,
    methods.PD_UPDATE_SERVICE_GC_SAFE_POINT,
    methods.PD_SCATTER_REGION,
)


@contextlib.asynccontextmanager
async def posing(directory: Path, api: ApiVersion, *versions: str, full: bool = True) -> AsyncIterator[EmbeddedCluster]:
    """A cluster of four regions with a store of each version."""
    async with EmbeddedCluster(
        data_dir=directory / "data", api_version=api, stores=len(versions), split_keys=[key(i) for i in (50, 100, 150)]
    ) as embedded:
        for store, version in zip(embedded.topology.stores.values(), versions, strict=True):
            store.version = version
        if full:
            await embedded.put(PAIRS)
        yield embedded


def connect(embedded: EmbeddedCluster, **options: Any) -> Any:
    """A connection that has yet to be made; only some gates are those of the connection."""
    return Cluster.connect(ClusterOptions(pd=embedded.pd_addresses, **options))


async def run_backup(cluster: Cluster, place: Path, **options: Any) -> Any:
    async with open_storage(f"local://{place}") as storage:
        return await backup(cluster, storage, backup_options(**options))


async def run_restore(
    cluster: Cluster, golden: Golden, listener: Callable[[Event], None] = lambda event: None, **options: Any
) -> Any:
    async with open_storage(golden.url) as storage:
        return await restore(cluster, storage, restore_options(**golden.crypter, **options), listener)


async def run_checksum(cluster: Cluster, golden: Golden) -> Any:
    async with open_storage(golden.url) as storage:
        return await verify_backup(cluster, storage, checksum_options(**golden.crypter))


def ssts(place: Path) -> list[bytes]:
    """The files of a backup as they are stored."""
    found = [path.read_bytes() for path in place.glob("**/*.sst")]
    assert found
    return found


Job = Callable[[Cluster, Path], Awaitable[Any]]


async def backup_checksum(cluster: Cluster, place: Path) -> None:
    assert (await run_backup(cluster, place, checksum=True)).verified


async def backup_cipher(cluster: Cluster, place: Path) -> None:
    assert (await run_backup(cluster, place, **AES)).total_kv == len(PAIRS)
    assert not any(data.endswith(SST_MAGIC) for data in ssts(place))


async def backup_conversion(cluster: Cluster, place: Path) -> None:
    summary = await run_backup(cluster, place, dst_api_version="V2")
    assert summary.checksum == checksum_of(PAIRS, b"r\0\0\0")


async def restore_checksum(cluster: Cluster, place: Path) -> None:
    assert (await run_restore(cluster, Golden("v1", "range"), checksum=True)).verified


async def restore_cipher(cluster: Cluster, place: Path) -> None:
    assert (await run_restore(cluster, Golden("v1", "aes256"))).total_kv


async def checksum(cluster: Cluster, place: Path) -> None:
    assert not (await run_checksum(cluster, Golden("v1", "range"))).actual.total_kvs


GATES: list[tuple[Job, ApiVersion, str, str, type[TikvBrError], str]] = [
    (backup_checksum, V1, "6.1.0", "6.1.1", UnsupportedError, "checksum needs a cluster of version 6.1.1 or newer"),
    (restore_checksum, V1, "6.1.0", "6.1.1", UnsupportedError, "checksum needs a cluster of version 6.1.1 or newer"),
    (checksum, V1, "6.1.0", "6.1.1", UnsupportedError, "checksum needs a cluster of version 6.1.1 or newer"),
    (backup_cipher, V1, "5.2.4", "5.3.0", UnsupportedError, "encryption needs a cluster of version 5.3.0 or newer"),
    (restore_cipher, V1, "5.2.4", "5.3.0", UnsupportedError, "encryption needs a cluster of version 5.3.0 or newer"),
    (backup_conversion, V1, "6.0.0", "6.1.0", ApiVersionError, "the conversion from V1 to V2 needs a cluster of"),
    (backup_conversion, V1TTL, "6.0.0", "6.1.0", ApiVersionError, "the conversion from V1TTL to V2 needs a cluster of"),
]


@pytest.mark.parametrize(("job", "api", "below", "at", "error", "says"), GATES)
async def test_what_older_clusters_cannot_do(
    job: Job, api: ApiVersion, below: str, at: str, error: type[TikvBrError], says: str, tmp_path: Path
) -> None:
    """Refused below the version, for a pre-release of it, and while one store is older than PD says; done at it."""
    place = tmp_path / "place"
    filled = job not in (restore_checksum, checksum, restore_cipher)
    async with posing(tmp_path, api, at, at, full=filled) as embedded:
        topology = embedded.topology
        (_, last) = topology.stores.values()
        made = [embedded.faults.fail(method, delay_s=0, times=None) for method in CHANGES]
        for older, pd in ((below, ""), (f"{at}-alpha", ""), (f"v{below}", at)):
            last.version, topology.version_set = older, pd
            async with await connect(embedded) as cluster:
                with pytest.raises(error, match=says) as caught:
                    await job(cluster, place)
            message = str(caught.value)
            assert f"this one has {older if pd else older.lstrip('v')}" in message
            assert (f"on store {last.id} ({last.address})" in message) == bool(pd)
            assert "\n" not in message
            assert message.count(": ") <= 1
            assert not place.exists()
            assert not any(point.hits for point in made)
            assert is_as_before(embedded)
        last.version, topology.version_set = at, ""
        async with await connect(embedded) as cluster:
            await job(cluster, place)


@pytest.mark.parametrize(
    ("versions", "pd", "told"),
    [
        (("6.1.7", "6.1.7"), "", False),
        (("6.2.0", "6.2.0-alpha"), "", False),
        (("6.2.0", "6.1.7"), "6.2.0", False),
        (("6.2.0", "6.2.0"), "", True),
    ],
)
async def test_a_backup_ts_needs_every_store(versions: tuple[str, ...], pd: str, told: bool, tmp_path: Path) -> None:
    """Below 6.2 the backup is made without one, and PD's GC is not held for it."""
    async with posing(tmp_path, V2, *versions) as embedded:
        embedded.topology.version_set = pd
        held_gc = embedded.faults.fail(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT, delay_s=0, times=None)
        async with await connect(embedded) as cluster:
            summary = await run_backup(cluster, tmp_path / "place", checksum=True)
        assert (summary.backup_ts is not None) == told
        assert bool(held_gc.hits) == told
        assert summary.checksum == checksum_of(PAIRS, b"r\0\0\0")


@pytest.mark.parametrize(
    ("versions", "pd", "split"),
    [
        (("5.1.4", "5.1.4"), "", False),
        (("5.2.0", "5.2.0-alpha"), "", False),
        (("5.1.4", "5.2.0"), "5.2.0", False),
        (("5.2.0", "5.2.0"), "", True),
    ],
)
async def test_regions_are_split_beforehand_from_5_2_on(
    versions: tuple[str, ...], pd: str, split: bool, tmp_path: Path
) -> None:
    golden = Golden("v1", "full")
    async with posing(tmp_path, V1, *versions, full=False) as embedded:
        embedded.topology.version_set = pd
        before, events = len(embedded.topology.regions), Events()
        asked = embedded.faults.fail(methods.KV_SPLIT_REGION, delay_s=0, times=None)
        async with await connect(embedded) as cluster:
            await run_restore(cluster, golden, events, merge_region_key_count=1)
        assert (bool(asked.hits), len(embedded.topology.regions) > before) == (split, split)
        assert any("older than 5.2.0, so its regions are not split" in note for note in events.notes) != split
        assert await held(embedded) == expected(golden)


@pytest.mark.parametrize(
    ("versions", "together", "one_by_one"),
    [
        (("5.0.0", "5.0.0"), False, True),
        (("5.0.1", "5.0.2"), True, True),
        (("5.0.2", "5.0.2"), True, False),
    ],
)
async def test_files_are_ingested_as_each_store_can(
    versions: tuple[str, ...], together: bool, one_by_one: bool, tmp_path: Path
) -> None:
    """The oldest releases take one file a call; the stores of a cluster may differ."""
    golden = Golden("v1", "full")
    async with posing(tmp_path, V1, *versions, full=False) as embedded:
        single = embedded.faults.fail(methods.IMPORT_INGEST, delay_s=0, times=None)
        async with await connect(embedded) as cluster:
            await run_restore(cluster, golden)
        assert bool(single.hits) == one_by_one
        assert await held(embedded) == expected(golden)
    assert together == ("5.0.2" in versions)


async def test_a_proxy_without_multi_ingest(tmp_path: Path) -> None:
    golden = Golden("v2", "full")
    async with posing(tmp_path, V2, "8.5.0", full=False) as embedded:
        embedded.faults.fail(methods.IMPORT_MULTI_INGEST, code=grpc.StatusCode.UNIMPLEMENTED, times=None)
        async with await connect(embedded) as cluster:
            await run_restore(cluster, golden, checksum=True)
        assert await held(embedded) == expected(golden)


@pytest.mark.parametrize(("older", "pd"), [("4.0.16", ""), ("v5.0.0-rc.1", ""), ("4.0.16", "5.0.0")])
async def test_stores_of_4_0(older: str, pd: str, tmp_path: Path) -> None:
    async with posing(tmp_path, V1, "5.0.0", older) as embedded:
        embedded.topology.version_set = pd
        with pytest.raises(UnsupportedError, match=rf"TiKV 5\.0\.0 or newer is needed.*version {older}\)"):
            await connect(embedded)
        async with await connect(embedded, check_requirements=False) as cluster:
            assert (await run_backup(cluster, tmp_path / "place")).checksum == checksum_of(PAIRS)


@pytest.mark.parametrize(
    ("versions", "pd", "says"),
    [
        (("6.0.0",), "", "this cluster has 6.0.0,"),
        (("6.1.0", "6.1.0-alpha"), "", "this cluster has 6.1.0-alpha,"),
        (("6.1.0", "6.0.0"), "6.1.0", "this cluster has 6.0.0 on store 2"),
    ],
)
async def test_v2_before_6_1(versions: tuple[str, ...], pd: str, says: str, tmp_path: Path) -> None:
    async with posing(tmp_path, V2, *versions) as embedded:
        embedded.topology.version_set = pd
        with pytest.raises(UnsupportedError, match=says):
            await connect(embedded)
        for store in embedded.topology.stores.values():
            store.version = "6.1.0"
        async with await connect(embedded) as cluster:
            assert cluster.codec.is_v2


# --- stores that come, go, or are of another kind ---


async def test_tiflash_nodes_are_refused_or_left_out(tmp_path: Path) -> None:
    """tikv-br does the same; the files of a learner on TiFlash hold no raw data."""
    golden, place = Golden("v1", "full"), tmp_path / "place"
    async with posing(tmp_path, V1, "8.5.0", "8.5.0", "5.0.0", full=False) as embedded:
        topology = embedded.topology
        flash = list(topology.stores.values())[-1]
        for region in topology.regions:
            if region.peer_on(flash.id) is not None:
                topology.move_peer(region.id, flash.id, 1)
        flash.labels["engine"] = "tiflash"
        called = [embedded.faults.fail(m, delay_s=0, times=None, store_id=flash.id) for m in CHANGES[:-2]]
        with pytest.raises(UnsupportedError, match=rf"has TiFlash nodes, .*store {flash.id} \({flash.address}"):
            await connect(embedded)
        # PD counts the TiFlash node's version; it does no work of ours.
        topology.version_set = "8.5.0"
        async with await connect(embedded, check_requirements=False) as cluster:
            await run_restore(cluster, golden, checksum=True)
            assert (await run_checksum(cluster, golden)).expected
            assert (await run_backup(cluster, place, checksum=True)).verified
        assert await held(embedded) == expected(golden)
        assert not any(point.hits for point in called)
        assert flash.id not in {int(p.parent.name) for p in place.glob("*/*.sst")}


@pytest.mark.parametrize("state", ["offline", "removing"])
async def test_a_store_that_is_being_removed_serves_what_it_has(state: str, tmp_path: Path) -> None:
    """It is asked for no more than its regions: no push-down, but gaps, downloads, import mode and the speed limit."""
    golden, place = Golden("v1", "full"), tmp_path / "place"
    async with posing(tmp_path, V1, "8.5.0", "8.5.0", full=False) as embedded:
        leaving = embedded.topology.stores[2]
        leaving.state, leaving.node_state = 1, 1 if state == "offline" else 2
        assert any(region.led_by(2) for region in embedded.topology.regions)
        touched = {
            method: embedded.faults.fail(method, delay_s=0, times=None, store_id=2)
            for method in (
                methods.IMPORT_DOWNLOAD,
                methods.IMPORT_MULTI_INGEST,
                methods.IMPORT_SWITCH_MODE,
                methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT,
                methods.KV_RAW_CHECKSUM,
                methods.BACKUP,
            )
        }
        async with await connect(embedded) as cluster:
            assert [store.id for store in await cluster.up_stores()] == [1]
            assert (await run_restore(cluster, golden, checksum=True, ratelimit=500)).verified
            summary = await run_backup(cluster, place, checksum=True)
        assert summary.verified
        assert all(point.hits for point in touched.values())
        assert await held(embedded) == expected(golden)
        assert is_as_before(embedded)
        assert {int(p.parent.name) for p in place.glob("*/*.sst")} == {1, 2}


async def test_a_restore_reaches_the_peers_on_a_store_that_is_being_removed(tmp_path: Path) -> None:
    """A peer that ingests what it has not downloaded would take the store down."""
    golden = Golden("v1", "full")
    settings: Any = {"stores": 3, "replicas": 3, "split_keys": [key(100)]}
    async with EmbeddedCluster(data_dir=tmp_path / "data", **settings) as embedded:
        embedded.topology.stores[3].state = 1
        async with await connect(embedded) as cluster:
            assert (await run_restore(cluster, golden, checksum=True)).verified
        assert not any(store.death for store in embedded.topology.stores.values())
        assert await held(embedded) == expected(golden)


@pytest.mark.parametrize(("state", "node_state"), [(2, 3), (0, 3)])
async def test_a_store_that_is_gone_counts_for_nothing(state: int, node_state: int, tmp_path: Path) -> None:
    """Neither its old version nor that nobody answers there."""
    golden = Golden("v1", "full")
    async with posing(tmp_path, V1, "8.5.0", "8.5.0", "4.0.16", full=False) as embedded:
        topology = embedded.topology
        gone = topology.stores[3]
        for region in topology.regions:
            if region.peer_on(3) is not None:
                topology.move_peer(region.id, 3, 1)
        gone.state, gone.node_state = state, node_state
        await embedded.stop_store(3)
        async with await connect(embedded) as cluster:
            assert (await run_restore(cluster, golden, checksum=True)).verified
            assert (await run_backup(cluster, tmp_path / "place", checksum=True, remove_schedulers=True)).verified
        assert names(tmp_path / "place")
