"""Where in Google Cloud Storage a backup is, from the parameters of its URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_provider_tikvbr.storage.parameters import display_url, object_key, read_endpoint

GCS_PARAMETERS = frozenset({"endpoint", "storage-class", "predefined-acl", "credentials-file"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsCredentials:
    """Credentials for Google Cloud Storage.

    :param blob: the JSON document of a credentials file, such as a service account's key.
    """

    blob: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsLocation:
    """Where in Google Cloud Storage, and how to write there.

    :param prefix: without outer slashes; may be empty.
    :param endpoint: URL of the service; empty = Google's.
    :param credentials_file: path, on this machine, of a credentials file; empty if the URL names none.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    storage_class: str = ""
    predefined_acl: str = ""
    credentials_file: str = ""

    @property
    def display_url(self) -> str:
        """Without any parameter."""
        return display_url("gcs", self.bucket, self.prefix)

    def object_key(self, name: str) -> str:
        """The object of a file."""
        return object_key(self.prefix, name)


def gcs_location(bucket: str, prefix: str, given: Mapping[str, str]) -> GcsLocation:
    """Read the parameters of a URL.

    :param given: by name, each one of :data:`GCS_PARAMETERS`.
    :raises InvalidOptionError: one of them cannot be right.
    """
    return GcsLocation(
        bucket=bucket,
        prefix=prefix,
        endpoint=read_endpoint(given, "GCS"),
        storage_class=given.get("storage-class", ""),
        predefined_acl=given.get("predefined-acl", ""),
        credentials_file=given.get("credentials-file", ""),
    )
