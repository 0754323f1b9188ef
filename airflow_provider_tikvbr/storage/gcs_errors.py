"""What the errors of Google's libraries mean here, in sentences of our own."""

from __future__ import annotations

import requests
import urllib3
from google.api_core.exceptions import GoogleAPICallError, GoogleAPIError, RetryError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, InvalidOperation, TransportError
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.storage.gcs_location import GcsLocation

#: All that the libraries raise.
ERRORS = (
    GoogleAPIError,
    GoogleAuthError,
    InvalidResponse,
    DataCorruption,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    ValueError,
    OSError,
)

_BUSY = frozenset({408, 429})
_BUSY_REASONS = frozenset({"rateLimitExceeded", "userRateLimitExceeded"})


def status_of(error: BaseException) -> int:
    """The HTTP status of an answer; 0 if the error is none."""
    if isinstance(error, InvalidResponse):
        return int(error.response.status_code)
    return int(error.code or 0) if isinstance(error, GoogleAPICallError) else 0


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if status := status_of(error):
        # 501 is what a service says of a call that it does not have.
        return status in _BUSY or (status >= 500 and status != 501) or bool(_BUSY_REASONS & _reasons(error))
    if isinstance(error, GoogleAuthError):
        return isinstance(error, TransportError) or error.retryable
    if isinstance(error, requests.exceptions.SSLError):
        return False
    return isinstance(
        error, (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, DataCorruption)
    )


def map_error(error: BaseException, location: GcsLocation, doing: str, name: str) -> TikvBrError:
    """One of this package's errors for one of the libraries'.

    :param doing: what was being done, as in "cannot ... gcs://bucket/file".
    :param name: the file, or empty for the storage as a whole.
    """
    url = location.display_url
    what = f"cannot {doing} {url}/{name}" if name else f"cannot {doing} {url}"
    service = location.endpoint or "Google Cloud Storage"
    if isinstance(error, RetryError) and error.cause is not None:
        error = error.cause
    if status_of(error):
        return _answer(error, location, doing, what, service, name)
    if isinstance(error, InvalidOperation):  # what anonymous credentials say when they are asked for a token
        return AuthenticationError(
            f"{what}: {service} asks for credentials, and none are used: leave out no-credentials, or give some"
        )
    if isinstance(error, DefaultCredentialsError):
        return AuthenticationError(
            f"{what}: there are no Google credentials: name a service account's key in the storage parameter "
            f"credentials-file or in GOOGLE_APPLICATION_CREDENTIALS, or give a connection"
        )
    if isinstance(error, GoogleAuthError):
        if is_transient(error):
            return StorageUnavailableError(
                f"{what}: the server that turns Google credentials into a token cannot be reached or asks to try later",
                url=url,
            )
        return AuthenticationError(f"{what}: the Google credentials are refused: check that they are valid still")
    if isinstance(error, requests.exceptions.SSLError):
        return AuthenticationError(f"{what}: {service} is not trusted over TLS: check the endpoint and its certificate")
    if isinstance(error, DataCorruption):
        return StorageUnavailableError(f"{what}: what {service} sent does not fit its own checksum", url=url)
    if isinstance(error, requests.exceptions.InvalidURL) or (
        isinstance(error, ValueError) and not isinstance(error, requests.RequestException)
    ):
        return InvalidOptionError(
            f"{what}: bucket, endpoint or another parameter of the storage URL is not valid", parameter="storage"
        )
    if isinstance(error, GoogleAPIError):
        return StorageError(f"{what}: {service} gave up with {type(error).__name__}", url=url)
    return StorageUnavailableError(f"{what}: {service} cannot be reached or broke off: check the endpoint", url=url)


def _answer(error: BaseException, location: GcsLocation, doing: str, what: str, service: str, name: str) -> TikvBrError:
    status = status_of(error)
    url, code = location.display_url, str(status)
    if is_transient(error):
        return StorageUnavailableError(f"{what}: {service} asks to try later ({status})", url=url, code=code)
    if status in (401, 403):
        return AuthenticationError(
            f"{what}: {service} refuses access ({status}): check the credentials, and that they may list, read, write "
            f"and delete there",
            code=code,
        )
    # The texts of a missing object and of a missing bucket differ, nothing else of the answers does.
    if status == 404 and doing == "read" and "bucket does not exist" not in str(error):
        return StorageNotFoundError(f"{url}/{name} does not exist", url=url, code=code)
    if status == 404:
        return StorageNotFoundError(
            f"{what}: there is no bucket {location.bucket} at {service}: make it, or correct the storage URL",
            url=url,
            code=code,
        )
    return StorageError(f"{what}: {service} answers with HTTP status {status}", url=url, code=code)


def _reasons(error: BaseException) -> set[str]:
    """The words of the API for what is wrong, such as ``rateLimitExceeded``."""
    # Where an upload or a download fails, the library does not take them out of the answer.
    try:
        found = error.response.json()["error"]["errors"]  # type: ignore[attr-defined]
        return {str(one["reason"]) for one in found}
    except (AttributeError, KeyError, TypeError, ValueError):
        return set()
