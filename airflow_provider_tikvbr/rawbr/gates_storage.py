"""What the stores of each version make of a backup storage, refused where they would do something else than asked.

The first versions were found in TiKV's tags: storage kinds in ``components/external_storage/src`` (HDFS 5.3.0, Azure 5.4.0),
S3 in ``components/cloud/aws/src/s3.rs`` (object lock 6.3.0; token and role 7.6.0), Azure in
``components/cloud/azure/src/azblob.rs`` (SAS and scope 7.2.0, customer key 7.3.0), Google in ``components/cloud/gcp/src``
(no credentials at all 5.1.0, the machine's own 8.0.0). No patch release of an older line has any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from packaging.version import Version

from airflow_provider_tikvbr.exceptions import UnsupportedError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.tikv.cluster import Cluster

MIN_HDFS: Final = Version("5.3.0")
MIN_AZURE: Final = Version("5.4.0")
MIN_S3_OBJECT_LOCK: Final = Version("6.3.0")
MIN_S3_SESSION_TOKEN: Final = Version("7.6.0")
MIN_S3_ROLE: Final = Version("7.6.0")
MIN_AZURE_ACCESS_SIG: Final = Version("7.2.0")
MIN_AZURE_ENCRYPTION_SCOPE: Final = Version("7.2.0")
MIN_AZURE_ENCRYPTION_KEY: Final = Version("7.3.0")
MIN_GCS_ANONYMOUS: Final = Version("5.1.0")
MIN_GCS_OWN_CREDENTIALS: Final = Version("8.0.0")

_OWN = "let the stores use credentials of their own (send_credentials_to_tikv off)"


@dataclass(frozen=True, slots=True)
class _Need:
    """Something that the stores must know.

    :param what: it, for the beginning of a sentence, with its verb.
    :param since: the first version that knows it.
    :param otherwise: what older stores do.
    :param remedy: what the user can do, beside an upgrade.
    """

    what: str
    since: Version
    otherwise: str
    remedy: str


def check_can_write(cluster: Cluster, backend: brpb_pb2.StorageBackend) -> None:
    """Make sure that the stores can write a backup to a storage, with the credentials that they are sent.

    :param backend: what they are told of the storage.
    :raises UnsupportedError: they are too old for some of it.
    """
    _check(cluster, [*_needs(backend), *_needs_to_write(backend)])


def check_can_read(cluster: Cluster, backend: brpb_pb2.StorageBackend) -> None:
    """Make sure that the stores can read a backup from a storage, with the credentials that they are sent.

    :param backend: what they are told of the storage.
    :raises UnsupportedError: they are too old for some of it, or it is HDFS.
    """
    if backend.WhichOneof("backend") == "hdfs":
        # ``components/external_storage/src/hdfs.rs``: ``unimplemented!``, and any panic ends the process.
        raise UnsupportedError(
            "TiKV writes to HDFS but cannot read there, and a store that is told to dies: copy the backup to a storage"
            " that the stores can read, such as S3 or a directory that they share, and restore it from there"
        )
    _check(cluster, _needs(backend))


def _check(cluster: Cluster, needs: Iterable[_Need]) -> None:
    version, text = cluster.oldest_version
    for need in needs:
        if version < need.since:
            raise UnsupportedError(
                f"{need.what} a cluster of version {need.since} or newer, this one has {text}, and {need.otherwise}:"
                f" upgrade it, or {need.remedy}"
            )


def _needs(backend: brpb_pb2.StorageBackend) -> Iterator[_Need]:
    kind = backend.WhichOneof("backend")
    if kind == "s3":
        yield from _s3_needs(backend.s3)
    elif kind == "azure_blob_storage":
        yield from _azure_needs(backend.azure_blob_storage)
    elif kind == "gcs" and not backend.gcs.credentials_blob:
        yield _Need(
            "a Google storage without credentials needs",
            MIN_GCS_ANONYMOUS,
            "its stores insist on some",
            "send them a service account's (send_credentials_to_tikv on)",
        )


def _s3_needs(s3: brpb_pb2.S3) -> Iterator[_Need]:
    if s3.session_token:
        yield _Need(
            "temporary S3 credentials need",
            MIN_S3_SESSION_TOKEN,
            "its stores would take the key pair without its token, which S3 refuses",
            f"give a lasting key pair, or {_OWN}",
        )
    if s3.role_arn or s3.external_id:
        yield _Need(
            "an S3 role (role_arn) needs",
            MIN_S3_ROLE,
            "its stores would use other credentials than the role's",
            "leave the role out and give a key pair that may write there",
        )


def _azure_needs(azure: brpb_pb2.AzureBlobStorage) -> Iterator[_Need]:
    yield _Need(
        "Azure Blob Storage needs",
        MIN_AZURE,
        "its stores do not know it",
        "use another storage",
    )
    if azure.access_sig:
        yield _Need(
            "a shared access signature of Azure needs",
            MIN_AZURE_ACCESS_SIG,
            "its stores would look for other credentials",
            f"give the account's key, or {_OWN}",
        )
    if azure.encryption_key.encryption_key:
        yield _Need(
            "an encryption key of one's own on Azure needs",
            MIN_AZURE_ENCRYPTION_KEY,
            "its stores would pass over it",
            "do without the key",
        )


def _needs_to_write(backend: brpb_pb2.StorageBackend) -> Iterator[_Need]:
    """What matters for writing only: a reader need not know how a file is protected, and a public bucket can be read."""
    kind = backend.WhichOneof("backend")
    if kind == "hdfs":
        yield _Need("HDFS needs", MIN_HDFS, "its stores do not know it", "use another storage")
    elif kind == "s3" and backend.s3.object_lock_enabled:
        yield _Need(
            "a bucket with object lock needs",
            MIN_S3_OBJECT_LOCK,
            "its stores leave out the digest that such a bucket demands",
            "give a bucket without object lock",
        )
    elif kind == "azure_blob_storage" and backend.azure_blob_storage.encryption_scope:
        yield _Need(
            "an encryption scope on Azure needs",
            MIN_AZURE_ENCRYPTION_SCOPE,
            "its stores would write outside of it",
            "do without the scope",
        )
    elif kind == "gcs" and not backend.gcs.credentials_blob and not backend.gcs.endpoint:
        # An endpoint of one's own may be a server that asks for none.
        yield _Need(
            "a Google storage that is written with the stores' own credentials needs",
            MIN_GCS_OWN_CREDENTIALS,
            "its stores would come without any",
            "send them a service account's (send_credentials_to_tikv on)",
        )
