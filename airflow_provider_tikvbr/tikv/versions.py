"""Versions of stores and clusters, and what a job requires of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from packaging.version import InvalidVersion, Version

from airflow_provider_tikvbr.exceptions import ProtocolError, UnsupportedError
from airflow_provider_tikvbr.tikv.model import Store

MIN_STORE_VERSION: Final = Version("5.0.0")
MIN_V2_VERSION: Final = Version("6.1.0")

_VERSION: Final = re.compile(r"v?(\d+\.\d+\.\d+)(?:-(alpha|beta|rc)(?:\.?(\d+))?)?(?:[-+.].*)?", re.IGNORECASE)


def parse_version(text: str) -> Version:
    """Read a version as PD and TiKV write it: ``8.5.0``, ``v9.0.0-beta.2``, ``6.2.0-alpha-12-g0123abc-dirty``.

    What follows the release and its stage (commits since a tag, a hash, a build date) is left out.

    :raises ProtocolError: the text is not a version.
    """
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        raise ProtocolError(f"{text!r} is not a version of the form X.Y.Z")
    release, stage, number = match.groups()
    try:
        return Version(release + (f"{stage}{number or 0}" if stage else ""))
    except InvalidVersion as err:
        raise ProtocolError(f"{text!r} is not a version of the form X.Y.Z") from err


def check_stores(stores: Iterable[Store]) -> None:
    """Refuse stores that cannot take part in a raw backup or restore.

    :raises UnsupportedError: a store is older than 5.0.0, or is a TiFlash node.
    """
    tiflash = [store for store in stores if store.is_tiflash]
    if tiflash:
        raise UnsupportedError(
            f"the cluster has TiFlash nodes, which a raw backup or restore does not support: {_names(tiflash)};"
            " remove them, or switch the requirements check off to leave them out"
        )
    old = [store for store in stores if parse_version(store.version) < MIN_STORE_VERSION]
    if old:
        raise UnsupportedError(
            f"TiKV {MIN_STORE_VERSION} or newer is needed, but there is an older one: {_names(old)};"
            " upgrade the cluster, or switch the requirements check off"
        )


def oldest_version(cluster_version: str, stores: Iterable[Store]) -> tuple[Version, str]:
    """The version to rely on: PD's, or that of the oldest store if it is older still.

    PD keeps the cluster's version at that of the oldest store (``server/cluster/cluster.go``, ``OnStoreVersionChange``),
    but only when a store comes, and a user may set it; the stores do the work.

    :param cluster_version: as PD tells it.
    :param stores: a store whose version cannot be read, and a TiFlash node, do not count.
    :return: the version, and how to tell it to a user.
    """
    found = parse_version(cluster_version), cluster_version
    for store in stores:
        try:
            version = parse_version(store.version)
        except ProtocolError:
            continue
        if version < found[0] and not store.is_tiflash:
            found = version, f"{store.version} on store {store.id} ({store.address})"
    return found


def check_v2(version: Version, text: str) -> None:
    """Refuse a cluster of API version V2 from the time when V2 was another format, before 6.1.0.

    :param version: of the cluster, see :func:`oldest_version`.
    :param text: the same for a user.
    :raises UnsupportedError: it is one.
    """
    if version < MIN_V2_VERSION:
        raise UnsupportedError(
            f"API version V2 is supported from TiKV {MIN_V2_VERSION} on, and this cluster has {text}, where it was an"
            " experiment with other keys: upgrade the cluster, or switch the requirements check off"
        )


def _names(stores: Iterable[Store]) -> str:
    return ", ".join(f"store {store.id} ({store.address}, version {store.version or 'unknown'})" for store in stores)
