"""Storage URLs, as users write them.

=======================================  ====================================================================
``/backups/monday``                      a directory
``local:///backups/monday``, ``file://`` the same
``s3://bucket/prefix?endpoint=...``      S3 and what speaks its protocol
``gcs://bucket/prefix``, ``gs://``       Google Cloud Storage
``azure://container/prefix``, ``azblob`` Azure Blob Storage
``hdfs://namenode:8020/prefix``          HDFS
``noop://``                              keeps nothing
=======================================  ====================================================================

The rules are those of tikv-br (``pkg/storage/parse.go``): ``+`` stands for itself everywhere, parameter names take
``-`` or ``_``, the first of several values counts. Unlike there, a parameter that nobody knows is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from airflow_provider_tikvbr.storage.azure_location import AZURE_PARAMETERS, AzureLocation, azure_location
from airflow_provider_tikvbr.storage.gcs_location import GCS_PARAMETERS, GcsLocation, gcs_location
from airflow_provider_tikvbr.storage.hdfs_location import HdfsLocation
from airflow_provider_tikvbr.storage.parameters import (
    lacks_question_mark,
    read_parameters,
    redact,
    refused,
)
from airflow_provider_tikvbr.storage.s3_location import S3_PARAMETERS, S3Location, s3_location


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLocation:
    """A directory."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class NoopLocation:
    """Nowhere."""


Location = LocalLocation | S3Location | GcsLocation | AzureLocation | HdfsLocation | NoopLocation

# The parameters that each kind of bucket takes, by each of its schemes, and who reads them.
_BUCKETS: Mapping[str, tuple[frozenset[str], Callable[[str, str, Mapping[str, str]], Location]]] = {
    "s3": (S3_PARAMETERS, s3_location),
    "gcs": (GCS_PARAMETERS, gcs_location),
    "gs": (GCS_PARAMETERS, gcs_location),
    "azure": (AZURE_PARAMETERS, azure_location),
    "azblob": (AZURE_PARAMETERS, azure_location),
}
_NO_PARAMETERS: frozenset[str] = frozenset()


def scheme_of(url: str) -> str:
    """The scheme of a storage URL in lower case; empty for a bare path."""
    scheme, mark, _ = url.strip().partition("://")
    return scheme.lower() if mark else ""


def parse_url(url: str) -> Location:
    """Read a storage URL.

    :raises InvalidOptionError: the scheme, a parameter or a part of the URL cannot be right; the message shows no secret.
    """
    text = url.strip()
    if not text:
        raise refused("the storage URL is empty: give a directory or s3://bucket/prefix")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        # Surrogates stand for bytes of a command line that are not in the locale's encoding; stores are told UTF-8.
        raise refused(f"the storage URL {redact(text)!r} is not UTF-8: write it so, in a UTF-8 locale")
    try:
        parts = urlsplit(text.replace("+", "%2B"))
    except ValueError:
        raise refused(f"the storage URL {redact(text)} cannot be read: check its host part") from None
    scheme = parts.scheme
    if not scheme:
        if "?" in text:
            # Most likely s3:// was misspelt; a path made of it would show the keys in the query everywhere.
            raise refused(
                f"the storage URL {redact(text)} has parameters but no scheme: write s3://bucket/prefix?..., "
                f"or local:/// and %3F for a question mark in a path"
            )
        return LocalLocation(path=Path(text).absolute())
    if scheme in ("local", "file"):
        return _local(text, parts)
    if scheme == "noop":
        read_parameters(parts.query, scheme, _NO_PARAMETERS)
        return NoopLocation()
    if scheme == "hdfs":
        read_parameters(parts.query, scheme, _NO_PARAMETERS)
        return HdfsLocation(remote=text)
    if scheme in _BUCKETS:
        # A secret key may have slashes, and then only its beginning stands here.
        if "@" in parts.netloc or ":" in parts.netloc:
            raise refused(f"the storage URL {redact(text)} has a user part or a port: give such things as parameters")
        if not parts.netloc:
            raise refused(f"the storage URL {redact(text)} names no bucket: write {scheme}://bucket/prefix")
        known, read = _BUCKETS[scheme]
        if lacks_question_mark(parts.path, known):
            raise refused(
                f"the storage URL {redact(text)} has parameters, but no question mark before the first of them"
            )
        return read(unquote(parts.netloc), unquote(parts.path).strip("/"), read_parameters(parts.query, scheme, known))
    raise refused(
        f"storage scheme {scheme!r} is not supported: give a directory, local://, s3://, gcs://, azure:// or hdfs://"
    )


def _local(text: str, parts: SplitResult) -> LocalLocation:
    if parts.netloc:
        raise refused(
            f"the storage URL {redact(text)} names a host: a local path has three slashes, "
            f"{parts.scheme}:///{parts.netloc.rpartition('@')[2]}{parts.path}"
        )
    read_parameters(parts.query, parts.scheme, _NO_PARAMETERS)
    path = Path(unquote(parts.path))
    if not path.is_absolute():
        raise refused(f"the storage URL {redact(text)} has no absolute path: write {parts.scheme}:///directory")
    return LocalLocation(path=path)
