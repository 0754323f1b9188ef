"""What an older cluster cannot do, refused before anything is done.

TiKV ignores fields of a request that its version does not know, so it would do something else than it was asked to. What
counts is the oldest store (:func:`~airflow_provider_tikvbr.tikv.versions.oldest_version`): in the middle of a rolling
upgrade it does its part of the work too. What the stores of each version make of a storage is in ``rawbr/gates_storage.py``.
"""

from __future__ import annotations

from typing import Final

from packaging.version import Version

from airflow_provider_tikvbr.exceptions import ApiVersionError, UnsupportedError
from airflow_provider_tikvbr.storage.cipher import Cipher
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion

# Before it, TiKV writes and reads plain files whatever cipher it is told (``components/backup/src/writer.rs``).
MIN_CIPHER: Final = Version("5.3.0")
# Before it, TiKV counts pairs before the start of a V2 range too, as it does not encode the range's keys; and before 5.2
# it does not know the call RawChecksum at all (``src/storage/mod.rs``).
MIN_CHECKSUM: Final = Version("6.1.1")
# Before it, TiKV does not convert pairs while it backs them up (``components/backup/src/endpoint.rs``).
MIN_CONVERSION: Final = Version("6.1.0")
# Before it, stores do not flush the timestamps that they hand out in advance, so a backup-ts would promise too much
# (``components/backup/src/endpoint.rs``).
MIN_BACKUP_TS: Final = Version("6.2.0")
# Before it, TiKV encodes the keys of SplitRegion whatever the cluster's API version (``src/server/service/kv.rs``).
MIN_SPLIT: Final = Version("5.2.0")


def check_can_checksum(cluster: Cluster) -> None:
    """Make sure that the stores know the call.

    :raises UnsupportedError: the cluster is too old.
    """
    version, text = cluster.oldest_version
    if version < MIN_CHECKSUM:
        raise UnsupportedError(
            f"checksum needs a cluster of version {MIN_CHECKSUM} or newer, this one has {text}: upgrade it, or do"
            " without checksum"
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
    version, text = cluster.oldest_version
    if version < MIN_CONVERSION:
        raise ApiVersionError(
            f"the conversion from {now.name} to V2 needs a cluster of version {MIN_CONVERSION} or newer, this one"
            f" has {text}: upgrade it, or leave dst_api_version out"
        )


def has_backup_ts(cluster: Cluster) -> bool:
    """Whether a backup of the cluster has a timestamp from which change capture may go on."""
    return cluster.api_version is ApiVersion.V2 and cluster.oldest_version[0] >= MIN_BACKUP_TS


def can_split(cluster: Cluster) -> bool:
    """Whether regions can be split at raw keys."""
    return cluster.oldest_version[0] >= MIN_SPLIT


def check_can_encrypt(cluster: Cluster, cipher: Cipher) -> None:
    """Make sure that the stores encrypt and decrypt.

    :raises UnsupportedError: they would leave the files plain.
    """
    version, text = cluster.oldest_version
    if not cipher.is_plain and version < MIN_CIPHER:
        raise UnsupportedError(
            f"encryption needs a cluster of version {MIN_CIPHER} or newer, this one has {text} and would leave the"
            " files plain: upgrade it, or do without crypter_method"
        )
