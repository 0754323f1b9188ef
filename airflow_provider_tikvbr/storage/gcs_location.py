"""Where in Google Cloud Storage a backup is, from the parameters of its URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_tikvbr.storage.parameters import display_url, object_key, read_endpoint, refused

GCS_PARAMETERS = frozenset({"endpoint", "storage-class", "predefined-acl", "credentials-file"})

# What stores know (TiKV, components/cloud/gcp/src/gcs.rs); with any other word every one of them fails.
STORAGE_CLASSES = (
    "STANDARD",
    "NEARLINE",
    "COLDLINE",
    "DURABLE_REDUCED_AVAILABILITY",
    "REGIONAL",
    "MULTI_REGIONAL",
)
PREDEFINED_ACLS = (
    "authenticatedRead",
    "bucketOwnerFullControl",
    "bucketOwnerRead",
    "private",
    "projectPrivate",
    "publicRead",
)

_API_PATH = "/storage/v1"
_UPLOAD_PATH = f"/upload{_API_PATH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsCredentials:
    """Credentials for Google Cloud Storage, in one of two forms.

    :param blob: the JSON document of a credentials file, such as a service account's key.
    :param session: credentials of the library google-auth that no document holds, such as those of an impersonated
        account: they serve this process, but stores cannot be sent them.
    """

    blob: str = field(default="", repr=False)
    session: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsLocation:
    """Where in Google Cloud Storage, and how to write there.

    :param prefix: without outer slashes; may be empty.
    :param endpoint: URL of the service, without the path of its API; empty = Google's.
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

    @property
    def store_endpoint(self) -> str:
        """The endpoint as stores, old and new, and tikv-br understand it; empty = Google's.

        tikv-br and older TiKV put no path of the API before that of the bucket, so that the endpoint has to hold it,
        for tikv-br with the slash at its end; newer TiKV takes it away again.
        """
        return f"{self.endpoint}{_API_PATH}/" if self.endpoint else ""

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
        endpoint=read_endpoint(given, "GCS").removesuffix(_UPLOAD_PATH).removesuffix(_API_PATH),
        storage_class=_one_of(STORAGE_CLASSES, given, "storage-class"),
        predefined_acl=_one_of(PREDEFINED_ACLS, given, "predefined-acl"),
        credentials_file=_credentials_file(given),
    )


def _credentials_file(given: Mapping[str, str]) -> str:
    path = given.get("credentials-file", "")
    if path.lstrip().startswith("{"):
        # Refused here already, so that nothing ever shows it as a path.
        raise refused("the storage parameter credentials-file is a document: give the path of a file that holds it")
    return path


def _one_of(known: tuple[str, ...], given: Mapping[str, str], name: str) -> str:
    value = given.get(name, "")
    if value and value not in known:
        raise refused(f"the storage parameter {name} is {value!r}, which no store knows: give {', '.join(known)}")
    return value
