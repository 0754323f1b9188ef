"""What servers of older releases do otherwise, told by the version that PD or a store of the embedded cluster announces.

The first versions were found in the tags of TiKV and PD; where a pre-release stands is not known, so it counts as older
than its release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


class Release(NamedTuple):
    """A version to compare with others.

    :param final: whether it is no pre-release.
    """

    major: int
    minor: int
    patch: int = 0
    final: bool = True


def release_of(version: str) -> Release:
    """The release of a version such as ``8.5.0`` or ``9.0.0-beta.2``."""
    major, minor, patch = map(int, re.findall(r"\d+", version)[:3])
    return Release(major, minor, patch, re.search(r"-(alpha|beta|rc)", version) is None)


# The fields that TiKV has learned, by message. An older store does not see them, as protobuf skips what it does not know.
LEARNED: Final[Mapping[str, Mapping[str, Release]]] = {
    "backup.BackupRequest": {"cipher_info": Release(5, 3), "dst_api_version": Release(6, 1)},
    "backup.StorageBackend": {"hdfs": Release(5, 3), "azure_blob_storage": Release(5, 4)},
    "backup.S3": {
        "object_lock_enabled": Release(6, 3),
        "role_arn": Release(7, 6),
        "external_id": Release(7, 6),
        "session_token": Release(7, 6),
        "profile": Release(99, 0),
    },
    "backup.AzureBlobStorage": {
        "access_sig": Release(7, 2),
        "encryption_scope": Release(7, 2),
        "encryption_key": Release(7, 3),
    },
    "import_sstpb.DownloadRequest": {"cipher_info": Release(5, 3)},
    "kvrpcpb.SplitRegionRequest": {"is_raw_kv": Release(5, 2)},
}


def as_seen_by(version: str, message: M) -> M:
    """A message without what a store of a version does not know; the same one if it knows all."""
    copy = type(message)()
    copy.CopyFrom(message)
    _forget(release_of(version), copy)
    return copy


def _forget(release: Release, message: Message) -> None:
    learned = LEARNED.get(message.DESCRIPTOR.full_name, {})
    for field, value in message.ListFields():
        if release < learned.get(field.name, release):
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and isinstance(value, Message):
            _forget(release, value)


def zero_ttl_is_for_good(version: str) -> bool:
    """Whether PD takes a TTL of 0 seconds for none at all (PD before 6.1, ``server/api/config.go``)."""
    return release_of(version) < Release(6, 1)


def gives_an_iv(version: str) -> bool:
    """Whether TiKV gives each backup file an initialisation vector; it does so since it can encrypt."""
    return release_of(version) >= Release(5, 3)


def converts(version: str) -> bool:
    """Whether TiKV converts what it backs up; before 6.1 it knows one format, and does not tell its version."""
    return release_of(version) >= Release(6, 1)


def knows_checksum(version: str) -> bool:
    """Whether TiKV serves RawChecksum (``src/server/service/kv.rs``)."""
    return release_of(version) >= Release(5, 2)


def knows_multi_ingest(version: str) -> bool:
    """Whether TiKV takes several files in one call (``src/import/sst_service.rs``)."""
    return release_of(version) >= Release(5, 0, 2)


def replaces_local_files(version: str) -> bool:
    """Whether TiKV writes over a file in a directory; before 6.2 it refuses (``external_storage/src/local.rs``)."""
    return release_of(version) >= Release(6, 2)


def sorts_files_by_store(version: str) -> bool:
    """Whether TiKV puts the files of a store into a directory, in S3 and in directories only (``backup/src/endpoint.rs``)."""
    release = release_of(version)
    return Release(5, 4, 3) <= release < Release(6, 0) or release >= Release(6, 1, 1)
