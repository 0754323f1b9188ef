"""Where in Azure Blob Storage a backup is, from the parameters of its URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_provider_tikvbr.storage.parameters import display_url, object_key, read_endpoint

AZURE_PARAMETERS = frozenset({"endpoint", "account-name", "account-key", "access-tier"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureCredentials:
    """Credentials for an account of Azure Blob Storage.

    :param account_name: the storage account.
    :param shared_key: its key, in base64.
    """

    account_name: str
    shared_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureLocation:
    """Where in Azure Blob Storage, and how to write there.

    :param container: the container; storage URLs have it where others have a bucket.
    :param prefix: without outer slashes; may be empty.
    :param endpoint: URL of the service; empty = the account's own.
    :param credentials: from the URL, if it holds any.
    """

    container: str
    prefix: str = ""
    endpoint: str = ""
    access_tier: str = ""
    credentials: AzureCredentials | None = None

    @property
    def display_url(self) -> str:
        """Without any parameter."""
        return display_url("azure", self.container, self.prefix)

    def object_key(self, name: str) -> str:
        """The blob of a file."""
        return object_key(self.prefix, name)


def azure_location(container: str, prefix: str, given: Mapping[str, str]) -> AzureLocation:
    """Read the parameters of a URL.

    :param given: by name, each one of :data:`AZURE_PARAMETERS`.
    :raises InvalidOptionError: one of them cannot be right.
    """
    account, key = given.get("account-name", ""), given.get("account-key", "")
    return AzureLocation(
        container=container,
        prefix=prefix,
        endpoint=read_endpoint(given, "Azure"),
        access_tier=given.get("access-tier", ""),
        credentials=AzureCredentials(account_name=account, shared_key=key) if account or key else None,
    )
