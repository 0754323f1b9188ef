"""What TiKV calls the files of a backup, by its version and the kind of storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded import backup_service, releases
from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.proto import brpb_pb2, methods
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.noop import NoopStorage
from airflow_provider_tikvbr.tikv.keys import UserKey
from tests.embedded.stores import Stores

BACKENDS = {
    "local": brpb_pb2.StorageBackend(local=brpb_pb2.Local(path="/")),
    "s3": brpb_pb2.StorageBackend(s3=brpb_pb2.S3(bucket="b")),
    "gcs": brpb_pb2.StorageBackend(gcs=brpb_pb2.GCS(bucket="b")),
    "azure": brpb_pb2.StorageBackend(azure_blob_storage=brpb_pb2.AzureBlobStorage(bucket="b")),
    "hdfs": brpb_pb2.StorageBackend(hdfs=brpb_pb2.HDFS(remote="hdfs:///b")),
}


@pytest.mark.parametrize(
    ("version", "sorted_by_store"),
    [
        ("5.0.0", False),
        ("5.3.4", False),
        ("5.4.2", False),
        ("5.4.3", True),
        ("6.0.0", False),
        ("6.1.0", False),
        ("6.1.1", True),
        ("6.2.0", True),
        ("8.5.0", True),
    ],
)
def test_which_releases_make_directories(version: str, sorted_by_store: bool) -> None:
    assert releases.sorts_files_by_store(version) is sorted_by_store


@pytest.mark.parametrize(
    ("version", "kind", "slash"),
    [
        ("6.5.0", "local", "/"),
        ("6.5.0", "s3", "/"),
        ("6.5.0", "gcs", "_"),
        ("6.5.0", "azure", "_"),
        ("6.5.0", "hdfs", "_"),
        ("5.4.0", "local", "_"),
        ("5.4.0", "s3", "_"),
        ("5.4.0", "azure", "_"),
    ],
)
async def test_where_a_stores_number_stands(
    version: str, kind: str, slash: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_nothing(backend: brpb_pb2.StorageBackend) -> Storage:
        assert backend == BACKENDS[kind]
        return NoopStorage()

    monkeypatch.setattr(backup_service, "open_for_store", open_nothing)
    cluster = EmbeddedCluster(data_dir=tmp_path, version=version, stores=1, split_keys=[UserKey(b"m")])
    async with cluster, Stores(cluster) as stores:
        await cluster.put((UserKey(key), b"v") for key in (b"a", b"z"))
        request = brpb_pb2.BackupRequest(is_raw_kv=True, cf="default", storage_backend=BACKENDS[kind])
        answers = [a async for a in stores.stream(methods.BACKUP, request, 1)]
    assert not any(a.HasField("error") for a in answers)
    first, second = sorted((a.files[0].name for a in answers), key=len)
    assert first.startswith(f"1{slash}")
    assert second.startswith(f"1{slash}")
    assert first.count("_") == second.count("_") - 2 == (2 if slash == "/" else 3)
    assert second.endswith("_default.sst")
