"""Whole backups through storages whose stores write as they are told: each file by the store, the list by this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import StorageError, UnsupportedError
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.meta import read_meta
from airflow_provider_tikvbr.rawbr.options import backup_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.support.azurite import Azurite
from tests.support.hdfs import Hadoop
from tests.support.target import held, is_as_before, target

PAIRS = [(UserKey(b"%03d" % n), b"value %d" % n) for n in range(100)]


@contextlib.asynccontextmanager
async def source(directory: Path, api_version: ApiVersion) -> AsyncIterator[tuple[EmbeddedCluster, Cluster]]:
    async with target(directory, api_version, stores=2, split_keys=[b"050"]) as (embedded, cluster):
        await embedded.put(PAIRS)
        yield embedded, cluster


@pytest.mark.parametrize("api_version", [ApiVersion.V1, ApiVersion.V2])
@pytest.mark.parametrize("more", ["", "&access-tier=Cool"])
async def test_azure(
    azurite_server: Azurite, container: str, tmp_path: Path, api_version: ApiVersion, more: str
) -> None:
    url = azurite_server.url(container, more=more)
    async with source(tmp_path / "one", api_version) as (_, cluster), open_storage(url) as storage:
        done = await backup(cluster, storage, backup_options(checksum=True))
        assert done.verified
        files = {file.name async for file in storage.list()}
        meta = await read_meta(storage, backup_options().cipher)
        assert {f.name for f in meta.files} == files - {"backupmeta"}
        assert not any("/" in name for name in files)
    async with target(tmp_path / "two", api_version, stores=3, replicas=3) as (embedded, cluster):
        async with open_storage(url) as storage:
            assert (await restore(cluster, storage, restore_options(checksum=True))).verified
        assert await held(embedded) == PAIRS
        assert is_as_before(embedded)


async def test_stores_that_are_sent_no_key_use_their_own(
    azurite_server: Azurite, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with source(tmp_path, ApiVersion.V1) as (_, cluster):
        url = azurite_server.url(container)
        # The environment is the stores' too: with a key there that is wrong, they cannot write.
        monkeypatch.setenv("AZURE_STORAGE_KEY", "d3Jvbmc=")
        async with open_storage(url, send_credentials=False) as storage:
            with pytest.raises(StorageError, match="may not write to azure://"):
                await backup(cluster, storage, backup_options())
        async with open_storage(url) as storage:
            assert (await backup(cluster, storage, backup_options())).total_kv == len(PAIRS)


async def test_hdfs(hadoop: Hadoop, tmp_path: Path) -> None:
    url = "hdfs://namenode:8020/backups/monday"
    async with source(tmp_path / "one", ApiVersion.V1) as (_, cluster), open_storage(url) as storage:
        assert (await backup(cluster, storage, backup_options(checksum=True))).verified
        assert not any("/" in name for name in [file.name async for file in storage.list()])
        # TiKV cannot read there, so the backup has to be copied to where it can.
        with pytest.raises(UnsupportedError, match="cannot read there"):
            await restore(cluster, storage, restore_options())
    async with target(tmp_path / "two") as (embedded, cluster):
        async with open_storage(str(hadoop.root / "backups" / "monday")) as storage:
            assert (await restore(cluster, storage, restore_options(checksum=True))).verified
        assert await held(embedded) == PAIRS
