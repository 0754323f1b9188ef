"""Backups and restores under every kind of weather: what comes out is bit for bit what went in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.raw import region_bounds
from airflow_provider_tikvbr.embedded.weather import Weather
from airflow_provider_tikvbr.exceptions import StorageError, TikvBrError
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.events import Event
from airflow_provider_tikvbr.rawbr.options import backup_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.support.target import held, is_as_before, target
from tests.support.waiting import until

PAIRS = [(UserKey(b"key-%04d" % i), b"value %d " % i * 7) for i in range(400)]
SPLITS = [key for key, _ in PAIRS[10::10]]
SHAPE: dict[str, Any] = {"stores": 4, "replicas": 3, "pd_members": 3, "max_store_down_s": 0.5}

WEATHER: dict[str, list[dict[str, Any]]] = {
    "shuffle": [{"kind": "shuffle_leaders", "every_s": 0.1}],
    "split": [{"kind": "split_all", "at_s": 0.1}],
    "merge": [{"kind": "merge_some", "count": 5, "every_s": 0.2, "for_s": 0.1, "times": 4}],
    "split, merge, move and scatter": [
        {"kind": "split_some", "count": 3, "every_s": 0.05, "until_s": 1.5},
        {"kind": "merge_some", "count": 3, "every_s": 0.07, "until_s": 1.5},
        {"kind": "move_peers", "count": 3, "every_s": 0.03, "until_s": 1.5},
        {"kind": "scatter", "every_s": 0.2, "until_s": 1.5},
    ],
    "store down and back": [{"kind": "stop_store", "at_s": 0.1, "every_s": 0.8, "for_s": 0.4, "times": 3}],
    "store killed": [{"kind": "kill_store", "at_s": 0.1}],
    "pd leader": [{"kind": "pd_leader", "every_s": 0.1}],
    "no pd leader": [{"kind": "pd_no_leader", "at_s": 0.1, "every_s": 0.6, "for_s": 0.3, "times": 3}],
    "pd member": [{"kind": "stop_pd", "at_s": 0.1, "every_s": 0.5, "for_s": 0.2, "times": 3}],
    "pd restart": [{"kind": "restart_pd", "at_s": 0.1, "for_s": 0.5}],
}
BOTH = pytest.mark.parametrize("name", list(WEATHER))


def nothing(_event: Event) -> None:
    """Nobody listens."""


def peers_agree(embedded: EmbeddedCluster) -> bool:
    """Whether every live peer of each region holds what its leader holds, byte for byte."""
    for region in embedded.topology.regions:
        first, *others = [
            list(embedded.engines[store_id].items(region_bounds(region.keys)))
            for store_id in embedded.topology.live_stores(region)
        ]
        if any(other != first for other in others):
            return False
    return True


@asynccontextmanager
async def under(embedded: EmbeddedCluster, events: list[dict[str, Any]], seed: int = 0) -> AsyncIterator[None]:
    """Let weather go over a cluster whose stores are slow enough for it to matter, and see that something happened."""
    slow = embedded.faults.add(Rule(kind=Kind.STORAGE_DELAY, delay_s=0.05))
    weather = Weather.from_json(embedded, events, seed=seed)
    async with weather:
        yield
    slow.disarm()
    assert any(not entry.refused for entry in weather.log), weather.log


@BOTH
@pytest.mark.parametrize("api_version", [ApiVersion.V1, ApiVersion.V2], ids=str)
async def test_a_backup_and_a_restore(name: str, api_version: ApiVersion, tmp_path: Path) -> None:
    place = f"local://{tmp_path / 'backup'}"
    (tmp_path / "backup").mkdir()
    async with target(tmp_path / "1", api_version, split_keys=SPLITS, **SHAPE) as (embedded, cluster):
        await embedded.put(PAIRS)
        async with under(embedded, WEATHER[name], seed=1), open_storage(place) as storage:
            await backup(cluster, storage, backup_options(budget="30s"), nothing)
    async with target(tmp_path / "2", api_version, split_keys=SPLITS[::4], **SHAPE) as (embedded, cluster):
        async with under(embedded, WEATHER[name], seed=2):
            await restore(cluster, open_storage(place), restore_options(budget="30s", checksum=True), nothing)
        assert await held(embedded) == PAIRS
        assert peers_agree(embedded)
        deaths = [s.death for s in embedded.topology.stores.values() if s.death]
        assert deaths == (["its machine is lost"] if name == "store killed" else [])
        await until(lambda: is_as_before(embedded))


async def test_disks_that_are_full(tmp_path: Path) -> None:
    place = f"local://{tmp_path / 'backup'}"
    (tmp_path / "backup").mkdir()
    full: list[dict[str, Any]] = [{"kind": "disk_full", "store_id": 2, "at_s": 0.1}]
    async with target(tmp_path / "1", split_keys=SPLITS, **SHAPE) as (embedded, cluster):
        await embedded.put(PAIRS)
        async with open_storage(place) as storage:
            async with under(embedded, full):
                with pytest.raises(StorageError, match=r"store 2 \(.*full: .*No space left on device"):
                    await backup(cluster, storage, backup_options(budget="30s"), nothing)
            await backup(cluster, storage, backup_options(budget="30s"), nothing)
    async with target(tmp_path / "2", split_keys=SPLITS[::4], **SHAPE) as (embedded, cluster):
        options = restore_options(budget="30s", checksum=True)
        async with under(embedded, full):
            with pytest.raises(TikvBrError, match=r"store 2 \(.*(disk full|No space left)"):
                await restore(cluster, open_storage(place), options, nothing)
        await restore(cluster, open_storage(place), options, nothing)
        assert await held(embedded) == PAIRS
        assert peers_agree(embedded)
