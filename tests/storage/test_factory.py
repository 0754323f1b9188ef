from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import InvalidOptionError, StorageNotFoundError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.factory import open_storage, storage_of_backend
from airflow_provider_tikvbr.storage.gcs_location import GcsCredentials
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.storage.noop import NoopStorage


def test_a_local_url_opens_a_directory(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert isinstance(storage, LocalStorage)
    assert repr(storage) == f"<LocalStorage local://{tmp_path}>"


async def test_noop_keeps_nothing() -> None:
    storage = open_storage("noop://")
    assert storage.backend() == brpb_pb2.StorageBackend(noop=brpb_pb2.Noop())
    assert isinstance(storage_of_backend(storage.backend()), NoopStorage)
    await storage.prepare()
    await storage.write("backupmeta", b"x")
    assert await storage.create("backupmeta", b"x")
    assert not await storage.exists("backupmeta")
    assert [info async for info in storage.list()] == []
    await storage.delete("backupmeta")
    with pytest.raises(StorageNotFoundError, match="a noop storage keeps nothing"):
        await storage.read("backupmeta")
    await storage.close()


def test_a_backend_that_is_not_set_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="storage backend 'unset' is not supported"):
        storage_of_backend(brpb_pb2.StorageBackend())


@pytest.mark.parametrize("url", ["s3://bucket/prefix"])
def test_credentials_of_another_kind_are_refused(url: str) -> None:
    with pytest.raises(InvalidOptionError, match="are not for the storage s3://bucket/prefix") as caught:
        open_storage(url, credentials=GcsCredentials(blob='{"private_key": "topsecret"}'))
    assert "topsecret" not in str(caught.value)


def test_local_backups_do_not_load_boto3() -> None:
    # Airflow imports DAG files over and over; boto3 alone takes several times as long as this package.
    program = (
        "import sys; from airflow_provider_tikvbr.storage.factory import open_storage; open_storage('/tmp');"
        "sys.exit('boto3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
