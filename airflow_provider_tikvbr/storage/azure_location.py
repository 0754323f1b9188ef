"""Where in Azure Blob Storage a backup is, from the parameters of its URL."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_tikvbr.storage.parameters import display_url, object_key, read_endpoint, refused

AZURE_PARAMETERS = frozenset(
    {
        "endpoint",
        "account-name",
        "account-key",
        "access-tier",
        "sas-token",
        "encryption-scope",
        "encryption-key",
    }
)

_KEY_BYTES = 32
# Stores know these in this spelling only, and take any other word for none (TiKV, components/cloud/azure/src/azblob.rs).
TIERS = ("Hot", "Cool", "Archive")


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureCredentials:
    """Credentials for an account of Azure Blob Storage; of several kinds the first of this list counts.

    :param account_name: the storage account; empty where the URL or the environment names it.
    :param sas_token: a shared access signature, without the question mark.
    :param shared_key: the account's key, in base64.
    :param token: a token credential of azure-identity. Stores cannot be sent one: they have to have their own.
    """

    account_name: str = ""
    sas_token: str = field(default="", repr=False)
    shared_key: str = field(default="", repr=False)
    token: Any = field(default=None, repr=False)

    @property
    def secret(self) -> bool:
        """Whether there is more than the account's name."""
        return bool(self.sas_token or self.shared_key or self.token is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureLocation:
    """Where in Azure Blob Storage, and how to write there.

    :param container: the container; storage URLs have it where others have a bucket.
    :param prefix: without outer slashes; may be empty.
    :param endpoint: URL of the service; empty = the account's own.
    :param access_tier: of new blobs; empty = the account's default.
    :param encryption_scope: of the account, for new blobs.
    :param encryption_key: of the customer, 256 bits in base64; reading needs the same.
    :param account_name: from the URL, if it names one.
    :param credentials: from the URL, if it holds any.
    """

    container: str
    prefix: str = ""
    endpoint: str = ""
    access_tier: str = ""
    encryption_scope: str = ""
    encryption_key: str = field(default="", repr=False)
    account_name: str = ""
    credentials: AzureCredentials | None = None

    @property
    def display_url(self) -> str:
        """Without any parameter."""
        return display_url("azure", self.container, self.prefix)

    @property
    def encryption_key_sha256(self) -> str:
        """What goes with the customer's key, in base64; empty without one."""
        if not self.encryption_key:
            return ""
        return base64.b64encode(hashlib.sha256(base64.b64decode(self.encryption_key)).digest()).decode()

    def object_key(self, name: str) -> str:
        """The blob of a file."""
        return object_key(self.prefix, name)


def azure_location(container: str, prefix: str, given: Mapping[str, str]) -> AzureLocation:
    """Read the parameters of a URL.

    :param given: by name, each one of :data:`AZURE_PARAMETERS`.
    :raises InvalidOptionError: one of them cannot be right.
    """
    account, key = given.get("account-name", ""), given.get("account-key", "")
    sas = given.get("sas-token", "").lstrip("?")
    scope, customer_key = given.get("encryption-scope", ""), given.get("encryption-key", "")
    tier = given.get("access-tier", "").capitalize()
    if tier and tier not in TIERS:
        raise refused(f"the storage parameter access-tier is {tier!r}: give one of {', '.join(TIERS)}")
    if key and not account:
        raise refused("the storage URL has account-key without account-name: give both")
    if key and not _decoded(key):
        raise refused("the storage parameter account-key is not base64: give the key as the portal of Azure shows it")
    if sas and not re.search(r"(^|&)sig=", sas):
        raise refused("the storage parameter sas-token has no signature: write & in it as %26 and % as %25")
    if account and not re.fullmatch(r"[a-z0-9-]{3,63}", account):
        raise refused(
            "the storage parameter account-name is not the name of an account: give lower-case letters and digits"
        )
    if customer_key and len(_decoded(customer_key)) != _KEY_BYTES:
        raise refused("the storage parameter encryption-key is not a key of 256 bits in base64")
    endpoint = read_endpoint(given, "Azure")
    if customer_key and endpoint.startswith("http://"):
        raise refused("the storage parameter encryption-key goes over TLS only: give an endpoint with https")
    if sum(map(bool, (tier, scope, customer_key))) > 1:
        # The stores refuse the same (TiKV, components/cloud/azure/src/azblob.rs, check_config).
        raise refused(
            "of access-tier, encryption-scope and encryption-key a storage URL takes one: leave the others out"
        )
    return AzureLocation(
        container=container,
        prefix=prefix,
        endpoint=endpoint,
        access_tier=tier,
        encryption_scope=scope,
        encryption_key=customer_key,
        account_name=account,
        credentials=AzureCredentials(account_name=account, shared_key=key, sas_token=sas) if key or sas else None,
    )


def _decoded(key: str) -> bytes:
    """What base64 stands for; nothing if it is none."""
    try:
        return base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        return b""
