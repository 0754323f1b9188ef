"""Which credentials are used for Azure Blob Storage, of those that there are.

The environment's names, and the order among its credentials, are TiKV's and tikv-br's (TiKV,
``components/cloud/azure/src/azblob.rs``; tikv-br, ``pkg/storage/azblob.go``); a signature in ``AZURE_STORAGE_SAS_TOKEN``
is Azure's own tools' name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain

from azure.identity import ClientSecretCredential, DefaultAzureCredential

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.storage.azure_location import AzureCredentials, AzureLocation

_IDENTITY = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET")


def resolve(
    location: AzureLocation, given: AzureCredentials | None, *, environment_first: bool, no_credentials: bool
) -> AzureCredentials:
    """The account, and the credentials to use for it.

    :param given: those of a connection: they win.
    :param environment_first: whether the environment's go before the URL's.
    :param no_credentials: none at all, only the account's name.
    :raises InvalidOptionError: nobody names the account.
    """
    named = given.account_name if given else ""
    if named and location.account_name not in ("", named) and given and given.token is None:
        # A key opens one account only.
        raise InvalidOptionError(
            f"the credentials given are for the Azure account {named}, but the storage URL names"
            f" {location.account_name}: correct one of them",
            parameter="storage",
        )
    account = location.account_name or named or os.environ.get("AZURE_STORAGE_ACCOUNT", "")
    if not account:
        raise InvalidOptionError(
            f"nobody names the Azure account of {location.display_url}: give account-name in the storage URL, or set"
            f" AZURE_STORAGE_ACCOUNT",
            parameter="storage",
        )
    if no_credentials:
        return AzureCredentials(account_name=account)
    found = given if given is not None and given.secret else None
    if found is None:
        from_url = [location.credentials] if location.credentials else []
        parts = [_environment(account), iter(from_url)]
        try:
            found = next(chain(*(parts if environment_first else reversed(parts))), None)
        except ValueError:
            raise InvalidOptionError(
                f"{', '.join(_IDENTITY)} name no identity that can be: correct or unset them", parameter="storage"
            ) from None
    found = found or AzureCredentials(token=DefaultAzureCredential())
    return AzureCredentials(
        account_name=account, sas_token=found.sas_token, shared_key=found.shared_key, token=found.token
    )


def _environment(account: str) -> Iterator[AzureCredentials]:
    get = os.environ.get
    tenant, client, secret = (get(name, "") for name in _IDENTITY)
    if tenant and client and secret:
        yield AzureCredentials(token=ClientSecretCredential(tenant, client, secret))
    # What is meant for one account is not shown to another.
    if get("AZURE_STORAGE_ACCOUNT", account) in ("", account):
        if get("AZURE_STORAGE_KEY"):
            yield AzureCredentials(shared_key=get("AZURE_STORAGE_KEY", ""))
        if get("AZURE_STORAGE_SAS_TOKEN"):
            yield AzureCredentials(sas_token=get("AZURE_STORAGE_SAS_TOKEN", "").lstrip("?"))
