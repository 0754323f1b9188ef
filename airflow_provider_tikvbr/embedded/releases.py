"""What servers of older releases do otherwise, told by the version that the embedded cluster announces."""

from __future__ import annotations

import re


def release_of(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as ``8.5.0`` or ``9.0.0-beta.2``."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def zero_ttl_is_for_good(version: str) -> bool:
    """Whether PD takes a TTL of 0 seconds for none at all (PD before 6.1, ``server/api/config.go``)."""
    return release_of(version) < (6, 1)


def knows_ciphers(version: str) -> bool:
    """Whether TiKV encrypts backup files; before 5.3 it leaves them plain, whatever it is told."""
    return release_of(version) >= (5, 3)


def knows_multi_ingest(version: str) -> bool:
    """Whether TiKV takes several files in one call; the first 5.0 does not."""
    return release_of(version) >= (5, 1)


def replaces_local_files(version: str) -> bool:
    """Whether TiKV writes over a file in a directory; before 6.2 it refuses (``external_storage/src/local.rs``)."""
    return release_of(version) >= (6, 2)
