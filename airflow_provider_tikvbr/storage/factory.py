"""From a storage URL, or from what a store is told, to a storage."""

from __future__ import annotations

from pathlib import Path

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.storage.noop import NoopStorage
from airflow_provider_tikvbr.storage.url import (
    DEFAULT_REGION,
    LocalLocation,
    S3Credentials,
    S3Location,
    parse_url,
)


def open_storage(url: str, *, credentials: S3Credentials | None = None, send_credentials: bool = True) -> Storage:
    """Open the storage of a URL; nothing is touched yet.

    :param url: see :mod:`~airflow_provider_tikvbr.storage.url`.
    :param credentials: for S3, when the URL holds none; otherwise boto3's default chain is asked.
    :param send_credentials: for S3, whether the stores are sent the credentials, or use their own.
    :raises InvalidOptionError: the URL cannot be right.
    """
    location = parse_url(url)
    if isinstance(location, LocalLocation):
        return LocalStorage(path=location.path)
    if isinstance(location, S3Location):
        return _s3(location, location.credentials or credentials, send_credentials=send_credentials)
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
    if kind != "s3":
        raise InvalidOptionError(f"storage backend {kind or 'unset'!r} is not supported", parameter="storage")
    told = backend.s3
    credentials = None
    if told.access_key and told.secret_access_key:
        credentials = S3Credentials(
            access_key=told.access_key,
            secret_access_key=told.secret_access_key,
            session_token=told.session_token,
        )
    location = S3Location(
        bucket=told.bucket,
        prefix=told.prefix.strip("/"),
        endpoint=told.endpoint,
        region=told.region or DEFAULT_REGION,
        storage_class=told.storage_class,
        sse=told.sse,
        sse_kms_key_id=told.sse_kms_key_id,
        acl=told.acl,
        provider=told.provider,
        force_path_style=told.force_path_style,
    )
    return _s3(location, credentials, send_credentials=True)


def _s3(location: S3Location, credentials: S3Credentials | None, *, send_credentials: bool) -> Storage:
    # boto3 takes long to import, and local backups never need it.
    from airflow_provider_tikvbr.storage.s3 import S3Storage

    return S3Storage(location=location, credentials=credentials, send_credentials=send_credentials)
