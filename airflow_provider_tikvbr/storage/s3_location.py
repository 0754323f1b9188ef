"""Where in which S3 a backup is, from the parameters of its URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_provider_tikvbr.storage.parameters import boolean, display_url, object_key, read_endpoint, refused

DEFAULT_REGION = "us-east-1"

# These services take a bucket only as a part of the host name.
VIRTUAL_HOST_PROVIDERS = frozenset({"alibaba", "netease"})

S3_PARAMETERS = frozenset(
    {
        "endpoint",
        "region",
        "storage-class",
        "sse",
        "sse-kms-key-id",
        "acl",
        "access-key",
        "secret-access-key",
        "session-token",
        "provider",
        "force-path-style",
        "use-accelerate-endpoint",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Credentials:
    """A key pair for S3.

    :param session_token: for temporary credentials; empty otherwise.
    """

    access_key: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Location:
    """Where in which S3, and how to write there.

    :param prefix: without outer slashes; may be empty.
    :param endpoint: URL of the service; empty = Amazon's, for the region.
    :param credentials: from the URL, if it holds any.
    """

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = DEFAULT_REGION
    storage_class: str = ""
    sse: str = ""
    sse_kms_key_id: str = ""
    acl: str = ""
    provider: str = ""
    force_path_style: bool = True
    use_accelerate_endpoint: bool = False
    credentials: S3Credentials | None = None

    @property
    def display_url(self) -> str:
        """Without any parameter."""
        return display_url("s3", self.bucket, self.prefix)

    def object_key(self, name: str) -> str:
        """The object of a file."""
        return object_key(self.prefix, name)


def s3_location(bucket: str, prefix: str, given: Mapping[str, str]) -> S3Location:
    """Read the parameters of a URL.

    :param given: by name, each one of :data:`S3_PARAMETERS`.
    :raises InvalidOptionError: one of them cannot be right.
    """
    provider = given.get("provider", "").lower()
    accelerate = boolean(given, "use-accelerate-endpoint", default=False)
    path_style = boolean(given, "force-path-style", default=True)
    return S3Location(
        bucket=bucket,
        prefix=prefix,
        endpoint=read_endpoint(given, "S3"),
        region=given.get("region") or DEFAULT_REGION,
        storage_class=given.get("storage-class", ""),
        sse=given.get("sse", ""),
        sse_kms_key_id=given.get("sse-kms-key-id", ""),
        acl=given.get("acl", ""),
        provider=provider,
        force_path_style=path_style and not accelerate and provider not in VIRTUAL_HOST_PROVIDERS,
        use_accelerate_endpoint=accelerate,
        credentials=_credentials(given),
    )


def _credentials(given: Mapping[str, str]) -> S3Credentials | None:
    access, secret = given.get("access-key", ""), given.get("secret-access-key", "")
    token = given.get("session-token", "")
    if not access and not secret and not token:
        return None
    for name, value in (("access-key", access), ("secret-access-key", secret)):
        if not value:
            raise refused(f"the storage URL has credentials without {name}: give both keys, or neither")
    return S3Credentials(access_key=access, secret_access_key=secret, session_token=token)
