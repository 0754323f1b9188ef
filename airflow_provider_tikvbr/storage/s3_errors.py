"""What boto3's errors mean here, in sentences of our own."""

from __future__ import annotations

from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004  botocore's own, the parent of its timeouts
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoAuthTokenError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)

from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.storage.s3_location import S3Location

_CREDENTIALS = (
    CredentialRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
_NETWORK = (ConnectionError, HTTPClientError, IncompleteReadError)
_REFUSED = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
_BUSY = frozenset(
    {
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
# Not implemented, and a version of HTTP that is not spoken.
_NEVER = (501, 505)
_ELSEWHERE = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect"}
)


def status_of(error: ClientError) -> int:
    """The HTTP status of an answer; 0 if it has none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_busy(error: ClientError) -> bool:
    """Whether the same request may succeed later."""
    status = status_of(error)
    return _code_of(error) in _BUSY or status in (408, 429) or (status >= 500 and status not in _NEVER)


def is_missing(error: ClientError) -> bool:
    """Whether the object, or its bucket, does not exist."""
    return status_of(error) == 404


def map_error(error: Exception, location: S3Location, doing: str, name: str) -> TikvBrError:
    """One of this package's errors for one of boto3's.

    :param doing: what was being done, as in "cannot ... s3://bucket/file".
    :param name: the file, or empty for the storage as a whole.
    """
    url = location.display_url
    what = f"cannot {doing} {url}/{name}" if name else f"cannot {doing} {url}"
    service = location.endpoint or f"Amazon S3 in {location.region}"
    if isinstance(error, ClientError):
        return _answer(error, location, what, service, name)
    if isinstance(error, _CREDENTIALS):
        return AuthenticationError(
            f"{what}: no usable S3 credentials: give access-key and secret-access-key in the storage URL, or set "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, ProfileNotFound):
        return AuthenticationError(
            f"{what}: this machine's AWS configuration has no profile {error.kwargs.get('profile')}: add it, or correct "
            f"its name"
        )
    service = _address_of(error) or service
    if isinstance(error, SSLError):
        return AuthenticationError(f"{what}: {service} is not trusted over TLS: check the endpoint and its certificate")
    if isinstance(error, _NETWORK):
        return StorageUnavailableError(f"{what}: {service} cannot be reached or broke off: check the endpoint", url=url)
    if isinstance(error, (ParamValidationError, ValueError)):
        return InvalidOptionError(
            f"{what}: bucket, endpoint or another parameter of the storage URL is not valid", parameter="storage"
        )
    if isinstance(error, BotoCoreError):
        return StorageError(f"{what}: boto3 gave up with {type(error).__name__}", url=url)
    return StorageUnavailableError(f"{what}: {service} broke off", url=url)


def _code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _address_of(error: Exception) -> str:
    """Scheme, host and port of a request that did not get through: it may have been one to STS."""
    kwargs = getattr(error, "kwargs", {})
    parts = urlsplit(str(kwargs.get("endpoint_url") or ""))
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc and "@" not in parts.netloc else ""


def _answer(error: ClientError, location: S3Location, what: str, service: str, name: str) -> TikvBrError:
    code = _code_of(error)
    status = status_of(error)
    url = location.display_url
    if error.operation_name.startswith("AssumeRole"):
        if is_busy(error):
            return StorageUnavailableError(f"{what}: STS asks to try later ({code or status})", url=url, code=code)
        return AuthenticationError(
            f"{what}: STS refuses the role ({code or status}): check its ARN, its external id, and that it trusts the "
            f"credentials that are to assume it",
            code=code,
        )
    if code == "NoSuchBucket":
        return StorageNotFoundError(
            f"{what}: there is no bucket {location.bucket} at {service}: make it, or correct the storage URL",
            url=url,
            code=code,
        )
    if status == 404:
        return StorageNotFoundError(
            f"{url}/{name} does not exist" if name else f"{url} does not exist", url=url, code=code
        )
    if is_busy(error):
        return StorageUnavailableError(f"{what}: {service} asks to try later ({code or status})", url=url, code=code)
    if code in _ELSEWHERE or status in (301, 307):
        return StorageError(
            f"{what}: the bucket {location.bucket} is not in region {location.region}: give its region in the storage URL",
            url=url,
            code=code,
        )
    if code in _REFUSED or status in (401, 403):
        return AuthenticationError(
            f"{what}: {service} refuses access ({code or status}): check the credentials, and that they may list, read, "
            f"write and delete there",
            code=code,
        )
    return StorageError(f"{what}: {service} answers {code or 'an error'} ({status})", url=url, code=code)
