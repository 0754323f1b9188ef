"""What the stores of an older cluster would pass over in silence, refused before anything is done.

TiKV ignores fields of a request that its version does not know, so it would do something else than it was asked to.
"""

from __future__ import annotations

from typing import Final

from packaging.version import Version

from airflow_provider_tikvbr.exceptions import UnsupportedError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.cipher import Cipher
from airflow_provider_tikvbr.tikv.cluster import Cluster

# Before it, TiKV writes and reads plain files whatever cipher it is told (``components/backup/src/writer.rs``).
MIN_CIPHER: Final = Version("5.3.0")
# Before it, TiKV takes a temporary key pair without the token that makes it valid (``components/cloud/aws/src/s3.rs``).
MIN_SESSION_TOKEN: Final = Version("7.6.0")


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
