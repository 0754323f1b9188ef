"""From a storage URL, or from what a store is told, to a storage.

The libraries of the clouds take long to import, and a backup into a directory needs none: each is imported by the module
of its storage, and that only when such a storage is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.azure_location import AzureCredentials, AzureLocation
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.gcs_location import GcsCredentials, GcsLocation
from airflow_provider_tikvbr.storage.hdfs_location import HdfsLocation
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.storage.noop import NoopStorage
from airflow_provider_tikvbr.storage.parameters import redact, refused
from airflow_provider_tikvbr.storage.s3_location import S3Credentials, S3Location
from airflow_provider_tikvbr.storage.url import LocalLocation, parse_url

Credentials = S3Credentials | GcsCredentials | AzureCredentials
C = TypeVar("C", S3Credentials, GcsCredentials, AzureCredentials)


def open_storage(
    url: str,
    *,
    credentials: Credentials | None = None,
    send_credentials: bool = True,
    environment_first: bool = False,
    no_credentials: bool = False,
) -> Storage:
    """Open the storage of a URL; nothing is touched yet.

    :param url: see :mod:`~airflow_provider_tikvbr.storage.url`.
    :param credentials: those to use, whatever else there are.
    :param send_credentials: whether the stores are sent the credentials, or use their own.
    :param environment_first: whether the environment's credentials go before the URL's, or after them, as in tikv-br.
    :param no_credentials: use none at all, as a public bucket lets one.
    :raises InvalidOptionError: the URL cannot be right, or the credentials are for another kind of storage.
    """
    location = parse_url(url)
    if isinstance(location, LocalLocation):
        return LocalStorage(path=location.path)
    if isinstance(location, S3Location):
        from airflow_provider_tikvbr.storage.s3 import S3Storage

        return S3Storage(
            location=location,
            credentials=_of_kind(S3Credentials, credentials, url),
            send_credentials=send_credentials,
            environment_first=environment_first,
            no_credentials=no_credentials,
        )
    if isinstance(location, GcsLocation):
        from airflow_provider_tikvbr.storage.gcs import GcsStorage

        return GcsStorage(
            location=location,
            credentials=_of_kind(GcsCredentials, credentials, url),
            send_credentials=send_credentials,
            environment_first=environment_first,
            no_credentials=no_credentials,
        )
    if isinstance(location, AzureLocation):
        from airflow_provider_tikvbr.storage.azure import AzureStorage

        return AzureStorage(
            location=location,
            credentials=_of_kind(AzureCredentials, credentials, url),
            send_credentials=send_credentials,
            environment_first=environment_first,
            no_credentials=no_credentials,
        )
    if isinstance(location, HdfsLocation):
        from airflow_provider_tikvbr.storage.hdfs import HdfsStorage

        return HdfsStorage(location=location)
    return NoopStorage()


def storage_of_backend(backend: brpb_pb2.StorageBackend) -> Storage:
    """Open the storage that a store was told of.

    :raises InvalidOptionError: a kind of storage that is not supported, or none.
    """
    kind = backend.WhichOneof("backend")
    if kind == "local":
        return LocalStorage(path=Path(backend.local.path))
    if kind == "noop":
        return NoopStorage()
    if kind == "s3":
        from airflow_provider_tikvbr.storage.s3 import S3Storage

        return S3Storage.of_message(backend.s3)
    if kind == "gcs":
        from airflow_provider_tikvbr.storage.gcs import GcsStorage

        return GcsStorage.of_message(backend.gcs)
    if kind == "azure_blob_storage":
        from airflow_provider_tikvbr.storage.azure import AzureStorage

        return AzureStorage.of_message(backend.azure_blob_storage)
    if kind == "hdfs":
        from airflow_provider_tikvbr.storage.hdfs import HdfsStorage

        return HdfsStorage(location=HdfsLocation(remote=backend.hdfs.remote))
    raise refused(f"storage backend {kind or 'unset'!r} is not supported")


def _of_kind(kind: type[C], given: Credentials | None, url: str) -> C | None:
    if given is not None and not isinstance(given, kind):
        raise refused(f"the credentials given are not for the storage {redact(url)}: name a connection of its kind")
    return given
