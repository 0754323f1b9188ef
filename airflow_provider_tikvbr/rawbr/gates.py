"""What an older cluster cannot do, refused before anything is done.

TiKV ignores fields of a request that its version does not know, so it would do something else than it was asked to.
"""

from __future__ import annotations

from typing import Final

from packaging.version import Version

from airflow_provider_tikvbr.exceptions import ApiVersionError, UnsupportedError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.cipher import Cipher
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion

# Before it, TiKV writes and reads plain files whatever cipher it is told (``components/backup/src/writer.rs``).
MIN_CIPHER: Final = Version("5.3.0")
# Before it, TiKV takes a temporary key pair without the token that makes it valid (``components/cloud/aws/src/s3.rs``).
MIN_SESSION_TOKEN: Final = Version("7.6.0")


# Before it, TiKV does not know the call RawChecksum.
MIN_CHECKSUM: Final = Version("6.1.1")
# Before it, TiKV does not convert pairs while it backs them up.
MIN_CONVERSION: Final = Version("6.1.0")
# Before it, stores do not flush the timestamps that they hand out in advance, so a backup-ts would promise too much.
MIN_BACKUP_TS: Final = Version("6.2.0")
# Before it, TiKV encodes the keys of SplitRegion whatever the cluster's API version.
MIN_SPLIT: Final = Version("5.2.0")


def check_can_checksum(cluster: Cluster) -> None:
    """Make sure that the stores know the call.

    :raises UnsupportedError: the cluster is too old.
    """
    if cluster.cluster_version < MIN_CHECKSUM:
        raise UnsupportedError(
            f"checksum needs a cluster of version {MIN_CHECKSUM} or newer, this one has"
            f" {cluster.cluster_version_text}: upgrade it, or do without checksum"
        )


def check_can_convert(cluster: Cluster, dst: ApiVersion) -> None:
    """Make sure that a backup can have an API version.

    :param dst: API version of the backup.
    :raises ApiVersionError: there is no such conversion, or the cluster is too old for it.
    """
    now = cluster.api_version
    if dst is now:
        return
    if dst is not ApiVersion.V2:
        raise ApiVersionError(
            f"a backup of this {now.name} cluster cannot be of API version {dst.name}: TiKV converts to V2 only;"
            f" leave dst_api_version out, or give {now.name}{'' if now is ApiVersion.V2 else ' or V2'}"
        )
    if cluster.cluster_version < MIN_CONVERSION:
        raise ApiVersionError(
            f"the conversion from {now.name} to V2 needs a cluster of version {MIN_CONVERSION} or newer, this one"
            f" has {cluster.cluster_version_text}: upgrade it, or leave dst_api_version out"
        )


def has_backup_ts(cluster: Cluster) -> bool:
    """Whether a backup of the cluster has a timestamp from which change capture may go on."""
    return cluster.api_version is ApiVersion.V2 and cluster.cluster_version >= MIN_BACKUP_TS


def can_split(cluster: Cluster) -> bool:
    """Whether regions can be split at raw keys."""
    return cluster.cluster_version >= MIN_SPLIT


def check_can_encrypt(cluster: Cluster, cipher: Cipher) -> None:
    """Make sure that the stores encrypt and decrypt.

    :raises UnsupportedError: they would leave the files plain.
    """
    if not cipher.is_plain and cluster.cluster_version < MIN_CIPHER:
        raise UnsupportedError(
            f"encryption needs a cluster of version {MIN_CIPHER} or newer, this one has {cluster.cluster_version_text}"
            " and would leave the files plain: upgrade it, or do without crypter_method"
        )


def check_can_open(cluster: Cluster, backend: brpb_pb2.StorageBackend) -> None:
    """Make sure that the stores can use the credentials that they are sent.

    :param backend: what they are told of the storage.
    :raises UnsupportedError: the credentials are temporary, and the stores are too old for such.
    """
    if backend.s3.session_token and cluster.cluster_version < MIN_SESSION_TOKEN:
        raise UnsupportedError(
            f"temporary S3 credentials need a cluster of version {MIN_SESSION_TOKEN} or newer, this one has"
            f" {cluster.cluster_version_text}: give a lasting key pair, or let the stores use credentials of their own (send_credentials_to_tikv off)"
        )
