"""Storage URLs, as users write them.

=======================================  ====================================================================
``/backups/monday``                      a directory
``local:///backups/monday``, ``file://`` the same
``s3://bucket/prefix?endpoint=...``      S3 and what speaks its protocol
``noop://``                              keeps nothing
=======================================  ====================================================================

The rules are those of tikv-br (``pkg/storage/parse.go``): ``+`` stands for itself everywhere, parameter names take
``-`` or ``_``, the first of several values counts. Unlike there, a parameter that nobody knows is refused, not ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from airflow_provider_tikvbr.exceptions import InvalidOptionError

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
_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false"})


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
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def object_key(self, name: str) -> str:
        """The object of a file: TiKV and tikv-br put the same slash between."""
        return f"{self.prefix}/{name}" if self.prefix else name


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLocation:
    """A directory."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class NoopLocation:
    """Nowhere."""


Location = LocalLocation | S3Location | NoopLocation


def parse_url(url: str) -> Location:
    """Read a storage URL.

    :raises InvalidOptionError: the scheme, a parameter or a part of the URL cannot be right; the message shows no secret.
    """
    text = url.strip()
    if not text:
        raise _refused("the storage URL is empty: give a directory or s3://bucket/prefix")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        # Surrogates stand for bytes of a command line that are not in the locale's encoding; stores are told UTF-8.
        raise _refused(f"the storage URL {redact(text)!r} is not UTF-8: write it so, in a UTF-8 locale")
    try:
        parts = urlsplit(text.replace("+", "%2B"))
    except ValueError:
        raise _refused(f"the storage URL {redact(text)} cannot be read: check its host part") from None
    if not parts.scheme:
        if "?" in text:
            # Most likely s3:// was misspelt; a path made of it would show the keys in the query everywhere.
            raise _refused(
                f"the storage URL {redact(text)} has parameters but no scheme: write s3://bucket/prefix?..., "
                f"or local:/// and %3F for a question mark in a path"
            )
        return LocalLocation(path=Path(text).absolute())
    if parts.scheme in ("local", "file"):
        if parts.netloc:
            raise _refused(
                f"the storage URL {redact(text)} names a host: a local path has three slashes, "
                f"{parts.scheme}:///{parts.netloc.rpartition('@')[2]}{parts.path}"
            )
        _parameters(parts.query, parts.scheme, frozenset())
        path = Path(unquote(parts.path))
        if not path.is_absolute():
            raise _refused(f"the storage URL {redact(text)} has no absolute path: write {parts.scheme}:///directory")
        return LocalLocation(path=path)
    if parts.scheme == "noop":
        _parameters(parts.query, parts.scheme, frozenset())
        return NoopLocation()
    if parts.scheme == "s3":
        # A secret key may have slashes, and then only its beginning stands here.
        if "@" in parts.netloc or ":" in parts.netloc:
            raise _refused(
                f"the storage URL {redact(text)} has a user part: give access-key and secret-access-key as parameters"
            )
        if not parts.netloc:
            raise _refused(f"the storage URL {redact(text)} names no bucket: write s3://bucket/prefix")
        given = _parameters(parts.query, parts.scheme, S3_PARAMETERS)
        return _s3(unquote(parts.netloc), unquote(parts.path).strip("/"), given)
    raise _refused(f"storage scheme {parts.scheme!r} is not supported: give a directory, local:// or s3://")


def redact(url: str) -> str:
    """The URL without its query, fragment and user part: safe to show."""
    shown = url.partition("?")[0]
    scheme, separator, rest = shown.partition("://")
    if not separator:
        return shown
    rest = rest.partition("#")[0]
    host, slash, path = rest.partition("/")
    if ":" in host and "@" in path:
        # Most likely a password with a slash.
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _s3(bucket: str, prefix: str, given: dict[str, str]) -> S3Location:
    endpoint = given.get("endpoint", "").rstrip("/")
    if endpoint:
        _check_endpoint(endpoint)
    provider = given.get("provider", "").lower()
    accelerate = _boolean(given, "use-accelerate-endpoint", default=False)
    path_style = _boolean(given, "force-path-style", default=True)
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
    )


def _credentials(given: dict[str, str]) -> S3Credentials | None:
    access, secret = given.get("access-key", ""), given.get("secret-access-key", "")
    token = given.get("session-token", "")
    if not access and not secret and not token:
        return None
    for name, value in (("access-key", access), ("secret-access-key", secret)):
        if not value:
            raise _refused(f"the storage URL has credentials without {name}: give both keys, or neither")
    return S3Credentials(access_key=access, secret_access_key=secret, session_token=token)


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise _refused(f"the S3 endpoint {redact(endpoint)!r} is not a URL: write http://host:port or https://host")
    if "@" in parts.netloc or parts.query:
        raise _refused(
            f"the S3 endpoint {redact(endpoint)!r} has a user part or a query: give scheme, host and port only"
        )


def _parameters(query: str, scheme: str, known: frozenset[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for raw, value in parse_qsl(query, keep_blank_values=True):
        name = raw.lower().replace("_", "-")
        if name not in known:
            hint = f"known ones are {', '.join(sorted(known))}" if known else "it takes none"
            raise _refused(f"a storage URL of {scheme}:// has no parameter {raw!r}: {hint}")
        given.setdefault(name, value)
    return given


def _boolean(given: dict[str, str], name: str, *, default: bool) -> bool:
    text = given.get(name, "").lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if text:
        raise _refused(f"the storage parameter {name} is {text!r}: give true or false")
    return default


def _refused(message: str) -> InvalidOptionError:
    return InvalidOptionError(message, parameter="storage")
