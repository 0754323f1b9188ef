"""Where in which S3 a backup is, from the parameters of its URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
        "role-arn",
        "external-id",
        "profile",
        "object-lock",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Credentials:
    """Who to be for S3: a key pair, a profile, a role, or what makes sessions of its own; and how to reach the service.

    What is left empty is looked for elsewhere.

    :param session_token: for temporary keys; empty otherwise.
    :param profile: name of a profile in the machine's AWS configuration files; keys go before it.
    :param role_arn: a role to assume with the keys, the profile, or whatever the machine has.
    :param external_id: what the role's owner wants to hear before it may be assumed.
    :param session: makes a boto3 session for a region, with credentials that it keeps fresh and the role assumed; for
        those who know more ways to credentials than this package.
    :param owns_credentials: whether ``session`` has credentials that the fields above do not tell.
    :param verify: how to check the service's certificate: boto3's ``verify``.
    :param config: further options of the client: a ``botocore.config.Config``.
    """

    access_key: str = field(default="", repr=False)
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    profile: str = ""
    role_arn: str = ""
    external_id: str = field(default="", repr=False)
    session: Callable[[str], Any] | None = field(default=None, repr=False, compare=False)
    owns_credentials: bool = False
    verify: bool | str | None = None
    config: Any = field(default=None, repr=False, compare=False)

    @property
    def names_any(self) -> bool:
        """Whether it says who to be."""
        return bool(self.access_key or self.profile or self.role_arn or self.owns_credentials)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Location:
    """Where in which S3, and how to write there.

    :param prefix: without outer slashes; may be empty.
    :param endpoint: URL of the service; empty = Amazon's, for the region.
    :param credentials: the key pair from the URL, if it holds one.
    :param role_arn: the role to assume, here and by the stores.
    :param external_id: what the role's owner wants to hear before it may be assumed.
    :param profile: a profile in this machine's AWS configuration files; keys go before it.
    :param object_lock: whether the bucket locks objects, and so wants a checksum of each; None = look.
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
    role_arn: str = ""
    external_id: str = field(default="", repr=False)
    profile: str = ""
    object_lock: bool | None = None

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
    endpoint = read_endpoint(given, "S3")
    if accelerate and endpoint:
        raise refused("use-accelerate-endpoint is for Amazon's own endpoints: leave it out, or leave out endpoint")
    return S3Location(
        bucket=bucket,
        prefix=prefix,
        endpoint=endpoint,
        region=given.get("region") or DEFAULT_REGION,
        storage_class=given.get("storage-class", ""),
        sse=given.get("sse", ""),
        sse_kms_key_id=given.get("sse-kms-key-id", ""),
        acl=given.get("acl", ""),
        provider=provider,
        force_path_style=path_style and not accelerate and provider not in VIRTUAL_HOST_PROVIDERS,
        use_accelerate_endpoint=accelerate,
        credentials=_credentials(given),
        role_arn=_role(given),
        external_id=given.get("external-id", ""),
        profile=given.get("profile", ""),
        object_lock=boolean(given, "object-lock", default=False) if given.get("object-lock") else None,
    )


def _role(given: Mapping[str, str]) -> str:
    role = given.get("role-arn", "")
    if role and not role.startswith("arn:"):
        raise refused(f"the storage parameter role-arn is {role!r}: write arn:aws:iam::ACCOUNT:role/NAME")
    if given.get("external-id") and not role:
        raise refused("the storage URL has an external-id, which is for assuming a role: give role-arn too, or neither")
    return role


def _credentials(given: Mapping[str, str]) -> S3Credentials | None:
    access, secret = given.get("access-key", ""), given.get("secret-access-key", "")
    token = given.get("session-token", "")
    if not access and not secret and not token:
        return None
    for name, value in (("access-key", access), ("secret-access-key", secret)):
        if not value:
            raise refused(f"the storage URL has credentials without {name}: give both keys, or neither")
    return S3Credentials(access_key=access, secret_access_key=secret, session_token=token)
