from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded import releases
from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.records import NODE_REMOVED
from airflow_provider_tikvbr.embedded.releases import Release
from airflow_provider_tikvbr.proto import brpb_pb2, import_sstpb_pb2, kvrpcpb_pb2, methods
from tests.embedded.stores import Stores
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("5.0.0", Release(5, 0)),
        ("v6.1.7", Release(6, 1, 7)),
        ("9.0.0-beta.2", Release(9, 0, 0, False)),
        ("6.2.0-alpha", Release(6, 2, 0, False)),
        ("10.11.12", Release(10, 11, 12)),
    ],
)
def test_the_release_of_a_version(version: str, release: Release) -> None:
    assert releases.release_of(version) == release


def test_a_pre_release_comes_before_its_release() -> None:
    versions = ["6.1.9", "6.2.0-alpha", "6.2.0", "6.10.0"]
    assert sorted(versions, key=releases.release_of) == versions


def request_with_everything() -> brpb_pb2.BackupRequest:
    """A request with fields that stores learned one after the other."""
    request = brpb_pb2.BackupRequest(is_raw_kv=True, dst_api_version=kvrpcpb_pb2.V2)
    request.cipher_info.cipher_key = b"k" * 16
    request.storage_backend.s3.bucket = "b"
    request.storage_backend.s3.role_arn = "arn"
    request.storage_backend.s3.object_lock_enabled = True
    request.storage_backend.s3.profile = "p"
    return request


@pytest.mark.parametrize(
    ("version", "forgotten"),
    [
        ("5.2.4", {"cipher_info", "dst_api_version", "role_arn", "object_lock_enabled", "profile"}),
        ("5.3.0", {"dst_api_version", "role_arn", "object_lock_enabled", "profile"}),
        ("6.1.0", {"role_arn", "object_lock_enabled", "profile"}),
        ("6.3.0-alpha", {"role_arn", "object_lock_enabled", "profile"}),
        ("6.3.0", {"role_arn", "profile"}),
        ("7.6.0", {"profile"}),
        ("9.0.0-beta.2", {"profile"}),
    ],
)
def test_what_a_store_does_not_see(version: str, forgotten: set[str]) -> None:
    request = request_with_everything()
    seen = releases.as_seen_by(version, request)
    fields = {f.name for f, _ in request.ListFields()} | {f.name for f, _ in request.storage_backend.s3.ListFields()}
    left = {f.name for f, _ in seen.ListFields()} | {f.name for f, _ in seen.storage_backend.s3.ListFields()}
    assert fields - left == forgotten
    assert request == request_with_everything()


def test_every_learned_field_exists() -> None:
    """A name that is misspelt would never be forgotten."""
    known = {
        message.DESCRIPTOR.full_name: set(message.DESCRIPTOR.fields_by_name)
        for message in (
            brpb_pb2.BackupRequest,
            brpb_pb2.StorageBackend,
            brpb_pb2.S3,
            brpb_pb2.AzureBlobStorage,
            import_sstpb_pb2.DownloadRequest,
            kvrpcpb_pb2.SplitRegionRequest,
        )
    }
    assert set(known) == set(releases.LEARNED)
    assert all(set(fields) <= known[message] for message, fields in releases.LEARNED.items())


def test_a_storage_that_is_not_known_is_none() -> None:
    backend = brpb_pb2.StorageBackend(azure_blob_storage=brpb_pb2.AzureBlobStorage(bucket="b"))
    assert releases.as_seen_by("5.3.4", backend).WhichOneof("backend") is None
    assert releases.as_seen_by("5.4.0", backend) == backend


# --- over the wire ---


async def code_of(stores: Stores, method: methods.Method[Any, Any], request: Any, store_id: int) -> grpc.StatusCode:
    """How a call ends."""
    try:
        await stores.call(method, request, store_id)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_each_store_is_of_its_own_release(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=2) as cluster, Stores(cluster) as stores:
        old, new = cluster.topology.stores.values()
        old.version, new.version = "5.0.1", "5.2.0"
        for method in (methods.IMPORT_MULTI_INGEST, methods.KV_RAW_CHECKSUM):
            request = method.request()
            assert await code_of(stores, method, request, old.id) is grpc.StatusCode.UNIMPLEMENTED
            assert await code_of(stores, method, request, new.id) is grpc.StatusCode.OK


async def test_pd_holds_the_cluster_to_its_oldest_store(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=3, version="8.5.0") as cluster:
        topology = cluster.topology
        one, two, three = topology.stores.values()
        assert topology.cluster_version == "8.5.0"
        two.version = "v8.5.0-alpha"
        three.version = "8.1.0"
        assert topology.cluster_version == "8.1.0"
        three.state, three.node_state = 2, NODE_REMOVED
        assert topology.cluster_version == "8.5.0-alpha"
        topology.version_set = "8.0.0"
        assert topology.cluster_version == "8.0.0"
        assert one.version == "8.5.0"


async def test_a_store_that_is_told_to_read_from_hdfs_dies(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=2) as cluster, Stores(cluster) as stores:
        request = import_sstpb_pb2.DownloadRequest(name="a_default.sst")
        request.storage_backend.hdfs.remote = "hdfs:///backups"
        assert await code_of(stores, methods.IMPORT_DOWNLOAD, request, 1) is grpc.StatusCode.UNAVAILABLE
        await until(lambda: not cluster.topology.stores[1].running)
        assert cluster.topology.stores[2].running
        await cluster.start_store(1)
        assert cluster.topology.stores[1].running
