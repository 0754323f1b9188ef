from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import UnsupportedError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.gates_storage import check_can_read, check_can_write
from airflow_provider_tikvbr.rawbr.options import backup_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from tests.rawbr.jobs import names
from tests.support.golden import Golden
from tests.support.target import is_as_before

SECRET = "canary-7f3a"


def s3(**fields: Any) -> brpb_pb2.StorageBackend:
    return brpb_pb2.StorageBackend(
        s3=brpb_pb2.S3(bucket="b", access_key=SECRET, secret_access_key=SECRET, acl="private", sse="AES256", **fields)
    )


def gcs(**fields: Any) -> brpb_pb2.StorageBackend:
    return brpb_pb2.StorageBackend(gcs=brpb_pb2.GCS(bucket="b", **fields))


def azure(**fields: Any) -> brpb_pb2.StorageBackend:
    return brpb_pb2.StorageBackend(
        azure_blob_storage=brpb_pb2.AzureBlobStorage(bucket="b", account_name="a", shared_key=SECRET, **fields)
    )


LOCAL = brpb_pb2.StorageBackend(local=brpb_pb2.Local(path="/backups"))
NOOP = brpb_pb2.StorageBackend(noop=brpb_pb2.Noop())
HDFS = brpb_pb2.StorageBackend(hdfs=brpb_pb2.HDFS(remote="hdfs:///backups"))
CUSTOMER_KEY = brpb_pb2.AzureCustomerKey(encryption_key=SECRET, encryption_key_sha256=SECRET)
NEVER = "5.0.0"  # the oldest that there is: nothing is refused

# What a storage needs to be written to, and to be read from.
NEEDS: list[tuple[brpb_pb2.StorageBackend, str, str, str]] = [
    (LOCAL, NEVER, NEVER, ""),
    (NOOP, NEVER, NEVER, ""),
    (s3(), NEVER, NEVER, ""),
    (s3(session_token=SECRET), "7.6.0", "7.6.0", "temporary S3 credentials need"),
    (s3(role_arn=SECRET), "7.6.0", "7.6.0", "an S3 role (role_arn) needs"),
    (s3(role_arn=SECRET, external_id=SECRET), "7.6.0", "7.6.0", "an S3 role (role_arn) needs"),
    (s3(object_lock_enabled=True), "6.3.0", NEVER, "a bucket with object lock needs"),
    (gcs(credentials_blob=SECRET), NEVER, NEVER, ""),
    (gcs(), "8.0.0", "5.1.0", "a Google storage"),
    (gcs(endpoint="http://127.0.0.1:1"), "5.1.0", "5.1.0", "a Google storage without credentials needs"),
    (azure(), "5.4.0", "5.4.0", "Azure Blob Storage needs"),
    (azure(access_sig=SECRET), "7.2.0", "7.2.0", "a shared access signature of Azure needs"),
    (azure(encryption_scope="s"), "7.2.0", "5.4.0", "on Azure needs|Azure Blob Storage needs"),
    (azure(encryption_key=CUSTOMER_KEY), "7.3.0", "7.3.0", "an encryption key of one's own on Azure needs"),
    (HDFS, "5.3.0", "", "HDFS needs"),
]


def before(version: str) -> str:
    """A release just below: the last patch of the minor version before, or of the major one."""
    major, minor, patch = map(int, version.split("."))
    if patch:
        return f"{major}.{minor}.{patch - 1}"
    return f"{major}.{minor - 1}.99" if minor else f"{major - 1}.99.99"


@pytest.fixture
async def embedded(tmp_path: Path) -> Any:
    async with EmbeddedCluster(data_dir=tmp_path / "data", stores=2, version=NEVER) as cluster:
        yield cluster


async def pose(embedded: EmbeddedCluster, version: str, other: str = "") -> Cluster:
    """A connection to the cluster as stores of these versions make it."""
    for store, posed in zip(embedded.topology.stores.values(), (version, other or version), strict=True):
        store.version = posed
    return await Cluster.connect(ClusterOptions(pd=embedded.pd_addresses))


@pytest.mark.parametrize(("backend", "to_write", "to_read", "says"), NEEDS)
async def test_what_a_storage_needs(
    backend: brpb_pb2.StorageBackend, to_write: str, to_read: str, says: str, embedded: EmbeddedCluster
) -> None:
    """Refused while the oldest store is below, in one sentence without a secret."""
    for check, since in ((check_can_write, to_write), (check_can_read, to_read)):
        if not since:
            continue
        async with await pose(embedded, since) as cluster:
            check(cluster, backend)
        if since == NEVER:
            continue
        for below in (before(since), f"{since}-alpha"):
            async with await pose(embedded, since, below) as cluster:
                with pytest.raises(UnsupportedError) as caught:
                    check(cluster, backend)
            message = str(caught.value)
            assert any(part in message for part in says.split("|"))
            assert f"a cluster of version {since} or newer, this one has {below}, and " in message
            assert ": upgrade it, or " in message
            assert "\n" not in message
            assert SECRET not in message


class Told(LocalStorage):
    """A directory of which the stores are told something else."""

    def __init__(self, *, path: Path, backend: brpb_pb2.StorageBackend) -> None:
        super().__init__(path=path)
        self._told = backend

    def backend(self) -> brpb_pb2.StorageBackend:
        return self._told


async def test_a_backup_is_refused_before_its_place_is_made(tmp_path: Path, embedded: EmbeddedCluster) -> None:
    place = tmp_path / "place"
    async with await pose(embedded, "7.5.7") as cluster:
        with pytest.raises(UnsupportedError, match=r"an S3 role .* needs"):
            await backup(cluster, Told(path=place, backend=s3(role_arn="arn")), backup_options())
    assert not place.exists()


class Locked(Told):
    """A bucket of which it is found out only when it is looked at that it has an object lock."""

    async def prepare(self) -> None:
        await super().prepare()
        self._told = s3(object_lock_enabled=True)


async def test_what_the_place_asks_for_is_found_before_it_is_locked(tmp_path: Path, embedded: EmbeddedCluster) -> None:
    place = tmp_path / "place"
    async with await pose(embedded, "6.2.0") as cluster:
        with pytest.raises(UnsupportedError, match="a bucket with object lock needs"):
            await backup(cluster, Locked(path=place, backend=s3()), backup_options())
    assert names(place) == set()


async def test_no_store_dies_of_a_restore_from_hdfs(embedded: EmbeddedCluster) -> None:
    async with await pose(embedded, "9.0.0") as cluster:
        with pytest.raises(
            UnsupportedError, match=r"cannot read there, and a store .* dies: copy the backup"
        ) as caught:
            await restore(cluster, Told(path=Golden("v1", "full").path, backend=HDFS), restore_options())
    assert "\n" not in str(caught.value)
    assert all(store.running for store in embedded.topology.stores.values())
    assert is_as_before(embedded)
