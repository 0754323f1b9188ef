"""What the answers and failures of Azure Blob Storage mean.

The library's own texts quote URLs, which may carry a signature, and answers of servers: none is passed on.
"""

from __future__ import annotations

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.identity import CredentialUnavailableError

from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.storage.azure_location import AzureLocation

_NO_CONTAINER = frozenset({"ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled"})
_BUSY = frozenset(
    {
        "ServerBusy",
        "OperationTimedOut",
        "InternalError",
        "ContainerBeingDeleted",
        "AccountIsBeingCreated",
        "TooManyRequests",
    }
)
_CONDITION = frozenset({"ConditionNotMet", "TargetConditionNotMet"})
_REFUSED = frozenset({"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"})
# Not implemented, and a version of HTTP that is not spoken.
_NEVER = (501, 505)
_NAMES = frozenset({"InvalidResourceName", "OutOfRangeInput"})
_KEYS = frozenset(
    {
        "BlobUsesCustomerSpecifiedEncryption",
        "BlobDoesNotUseCustomerSpecifiedEncryption",
        "BlobCustomerSpecifiedEncryptionMismatch",
    }
)


def code_of(error: AzureError) -> str:
    """The service's name of an error; empty if it has none."""
    code = getattr(error, "error_code", None)
    # A value of an enum, or a text where the library does not know it.
    return str(getattr(code, "value", code) or "")


def status_of(error: AzureError) -> int:
    """The HTTP status of an answer; 0 if there was none."""
    return int(getattr(error, "status_code", None) or 0)


def is_missing(error: AzureError) -> bool:
    """Whether the blob, or its container, does not exist."""
    return status_of(error) == 404


def no_container(error: AzureError) -> bool:
    """Whether it is the container that does not exist."""
    return code_of(error) == "ContainerNotFound"


def already_there(error: AzureError) -> bool:
    """Whether there is such a blob, and there may be none."""
    return code_of(error) == "BlobAlreadyExists"


def is_refused(error: AzureError) -> bool:
    """Whether the credentials are not good enough."""
    return status_of(error) in (401, 403) or code_of(error) in _REFUSED


def not_met(error: AzureError) -> bool:
    """Whether nothing but the condition of a request stood against it."""
    return status_of(error) == 412 and code_of(error) in _CONDITION | {""}


def map_error(error: Exception, location: AzureLocation, service: str, doing: str, name: str) -> TikvBrError:
    """One of this package's errors for one of the library's.

    :param service: its URL.
    :param doing: what was being done, as in "cannot ... azure://container/file".
    :param name: the file, or empty for the storage as a whole.
    """
    url = location.display_url
    what = f"cannot {doing} {url}/{name}" if name else f"cannot {doing} {url}"
    # The first two are more than answers: a key that cannot sign, and a credential that gets no token.
    if isinstance(error, CredentialUnavailableError):
        return AuthenticationError(
            f"{what}: no usable Azure credentials: give account-name and account-key in the storage URL, or set"
            f" AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY"
        )
    if isinstance(error, ClientAuthenticationError) and not status_of(error):
        return AuthenticationError(f"{what}: the Azure account key or the identity is not valid: check it")
    if isinstance(error, HttpResponseError) and status_of(error) >= 300:
        return _answer(error, location, what, service, name)
    if isinstance(error, (ServiceRequestError, ServiceResponseError)):
        if "SSLError" in repr(error.inner_exception) or "CERTIFICATE_VERIFY" in str(error.inner_exception):
            return AuthenticationError(
                f"{what}: {service} is not trusted over TLS: check the endpoint and its certificate"
            )
        return StorageUnavailableError(f"{what}: {service} cannot be reached or broke off: check the endpoint", url=url)
    if isinstance(error, AzureError):
        return StorageUnavailableError(f"{what}: {service} broke off", url=url)
    if isinstance(error, ValueError):
        return InvalidOptionError(
            f"{what}: container, endpoint or another parameter of the storage URL is not valid", parameter="storage"
        )
    return StorageUnavailableError(f"{what}: {service} broke off", url=url)


def _answer(error: HttpResponseError, location: AzureLocation, what: str, service: str, name: str) -> TikvBrError:
    code, status = code_of(error), status_of(error)
    url = location.display_url
    if code in _BUSY or status in (408, 429) or (status >= 500 and status not in _NEVER):
        return StorageUnavailableError(f"{what}: {service} asks to try later ({code or status})", url=url, code=code)
    if code in _NO_CONTAINER:
        return StorageNotFoundError(
            f"{what}: there is no container {location.container} at {service}: make it, or correct the storage URL",
            url=url,
            code=code,
        )
    if status == 404:
        return StorageNotFoundError(
            f"{url}/{name} does not exist" if name else f"{url} does not exist", url=url, code=code
        )
    if code in _NAMES:
        return InvalidOptionError(
            f"{what}: {location.container} cannot be the name of a container: correct the storage URL",
            parameter="storage",
        )
    if code in _KEYS:
        return StorageError(
            f"{what}: it is encrypted with another key than the storage URL says: correct encryption-key",
            url=url,
            code=code,
        )
    if code == "BlobArchived":
        return StorageError(
            f"{what}: it is in the archive tier: bring it back to hot or cool first", url=url, code=code
        )
    if is_refused(error):
        return AuthenticationError(
            f"{what}: {service} refuses access ({code or status}): check the credentials, and that they may list, read,"
            f" write and delete there",
            code=code,
        )
    return StorageError(f"{what}: {service} answers {code or 'an error'} ({status})", url=url, code=code)
