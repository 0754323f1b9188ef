"""Connections of type ``wasb``: with Microsoft's provider and without it."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import redact
from azure.identity import ClientSecretCredential, DefaultAzureCredential

from airflow_provider_tikvbr.connections import StorageAccess, storage_access
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.storage.azure_location import AzureCredentials, AzureLocation
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.url import parse_url

URL = "azure://backups/monday"
HOOK = "airflow.providers.microsoft.azure.hooks.wasb"
KEY = base64.b64encode(b"the key of the account").decode()
OTHER = base64.b64encode(b"the key of another").decode()
SAS = "sv=2024-01-01&sp=rwdl&sig=the%2Fsignature%3D"
ENDPOINT = "http://127.0.0.1:10000/acct"

Define = Callable[..., None]


@pytest.fixture(params=["with the provider", "without it"])
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "without it":
        monkeypatch.setitem(sys.modules, HOOK, None)
        return False
    pytest.importorskip("airflow.providers.microsoft.azure")
    return True


@pytest.fixture
def define(monkeypatch: pytest.MonkeyPatch) -> Define:
    def set_connection(**fields: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_STORE", json.dumps({"conn_type": "wasb", **fields}))

    return set_connection


def found(url: str = URL) -> StorageAccess:
    access = storage_access("store", url)
    assert access is not None
    return access


def told(access: StorageAccess) -> AzureCredentials:
    assert isinstance(access.credentials, AzureCredentials)
    return access.credentials


CASES: list[tuple[dict[str, Any], AzureCredentials, str]] = [
    ({"login": "acct", "password": KEY}, AzureCredentials(account_name="acct", shared_key=KEY), ""),
    ({"login": "acct", "extra": {"account_key": KEY}}, AzureCredentials(account_name="acct", shared_key=KEY), ""),
    (
        {"login": "acct", "password": OTHER, "extra": {"shared_access_key": KEY, "sas_token": SAS}},
        AzureCredentials(account_name="acct", shared_key=KEY),
        "",
    ),
    (
        {"login": "acct", "extra": {"extra__wasb__shared_access_key": KEY}},
        AzureCredentials(account_name="acct", shared_key=KEY),
        "",
    ),
    (
        {"host": "https://acct.blob.core.windows.net/", "password": KEY},
        AzureCredentials(account_name="acct", shared_key=KEY),
        "",
    ),
    (
        {"host": "acct.blob.core.windows.net", "password": KEY},
        AzureCredentials(account_name="acct", shared_key=KEY),
        "",
    ),
    (
        {"host": "https://acct.blob.core.chinacloudapi.cn", "login": "acct", "password": KEY},
        AzureCredentials(account_name="acct", shared_key=KEY),
        "https://acct.blob.core.chinacloudapi.cn",
    ),
    ({"host": ENDPOINT, "password": KEY}, AzureCredentials(account_name="acct", shared_key=KEY), ENDPOINT),
    (
        {"login": "acct", "password": OTHER, "extra": {"sas_token": SAS}},
        AzureCredentials(account_name="acct", sas_token=SAS),
        "",
    ),
    ({"login": "acct", "extra": {"sas_token": f"?{SAS}"}}, AzureCredentials(account_name="acct", sas_token=SAS), ""),
    (
        {"extra": {"sas_token": f"https://acct.blob.core.windows.net/?{SAS}"}},
        AzureCredentials(account_name="acct", sas_token=SAS),
        "",
    ),
    (
        {
            "login": "other",
            "password": OTHER,
            "extra": {"connection_string": f"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={KEY}"},
        },
        AzureCredentials(account_name="acct", shared_key=KEY),
        "",
    ),
    (
        {"extra": {"connection_string": f"AccountName=acct;AccountKey={KEY};BlobEndpoint={ENDPOINT};"}},
        AzureCredentials(account_name="acct", shared_key=KEY),
        ENDPOINT,
    ),
    (
        {
            "extra": {
                "connection_string": f"BlobEndpoint=https://acct.blob.core.windows.net;SharedAccessSignature={SAS}"
            }
        },
        AzureCredentials(account_name="acct", sas_token=SAS),
        "",
    ),
]


@pytest.mark.parametrize(("fields", "credentials", "endpoint"), CASES)
def test_keys_and_signatures(
    provider: bool, define: Define, fields: dict[str, Any], credentials: AzureCredentials, endpoint: str
) -> None:
    define(**fields)
    access = found()
    assert access.credentials == credentials
    assert access.unread == ()
    location = parse_url(access.complete(URL))
    assert isinstance(location, AzureLocation)
    assert (location.account_name, location.endpoint) == ("acct", endpoint)
    message = open_storage(access.complete(URL), credentials=access.credentials).backend().azure_blob_storage
    assert (message.account_name, message.shared_key, message.access_sig) == (
        "acct",
        credentials.shared_key,
        credentials.sas_token,
    )


@pytest.mark.parametrize(("fields", "credentials", "endpoint"), CASES)
def test_the_hook_reads_the_same(
    define: Define, fields: dict[str, Any], credentials: AzureCredentials, endpoint: str
) -> None:
    hook = pytest.importorskip(HOOK)
    define(**fields)
    with hook.WasbHook(wasb_conn_id="store").get_conn() as client:
        assert client.url.partition("?")[0].rstrip("/") == (endpoint or "https://acct.blob.core.windows.net")
        if credentials.shared_key:
            assert client.credential.account_key == credentials.shared_key
        else:
            used = getattr(client.credential, "signature", "") or client.url.partition("?")[2]
            assert used.lstrip("?") == SAS


def test_an_application(provider: bool, define: Define) -> None:
    define(
        login="client",
        password="client-secret",
        host="https://acct.blob.core.windows.net",
        extra={"tenant_id": "tenant", "client_secret_auth_config": {"authority": "login.chinacloudapi.cn"}},
    )
    access = found()
    assert type(told(access).token) is ClientSecretCredential
    assert told(access).token._authority == "https://login.chinacloudapi.cn"
    assert (told(access).account_name, access.parameters) == ("acct", "account-name=acct")
    message = open_storage(access.complete(URL), credentials=access.credentials).backend()
    assert message.azure_blob_storage.account_name == "acct"
    assert "client-secret" not in str(message)
    assert "client-secret" not in repr(access)
    assert str(redact("client-secret")) == "***"


def test_the_machines_own_identity(provider: bool, define: Define) -> None:
    define(
        host="acct.blob.core.windows.net",
        extra={"managed_identity_client_id": "identity", "workload_identity_tenant_id": "tenant"},
    )
    assert type(told(found()).token) is DefaultAzureCredential
    define(login="acct")
    assert type(told(found()).token) is DefaultAzureCredential
    assert told(found()).account_name == "acct"


def test_the_url_wins(define: Define) -> None:
    define(host="https://acct.blob.core.usgovcloudapi.net", password=KEY)
    location = parse_url(found().complete(f"{URL}?endpoint={ENDPOINT}&access-tier=hot"))
    assert isinstance(location, AzureLocation)
    assert (location.endpoint, location.account_name, location.access_tier) == (ENDPOINT, "acct", "Hot")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"conn_type": "aws", "login": "a", "password": KEY}, "which is of type aws: Azure takes one of type wasb"),
        ({"login": "client", "extra": {"tenant_id": "tenant"}}, "has a tenant_id but no login and password"),
        (
            {"extra": {"connection_string": "AccountName=acct"}},
            "connection_string has no AccountName with an AccountKey",
        ),
        (
            {"login": "client", "password": "client-secret", "host": "acct", "extra": {"tenant_id": "not a tenant!"}},
            "whose identity cannot be read",
        ),
    ],
)
def test_connections_of_no_use(provider: bool, define: Define, fields: dict[str, Any], says: str) -> None:
    define(**fields)
    with pytest.raises(InvalidOptionError, match=f"^storage_conn_id names connection store, .*{says}") as caught:
        found()
    assert caught.value.parameter == "storage_conn_id"
    assert "client-secret" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_secrets_are_masked(define: Define) -> None:
    text = f"AccountName=acct;AccountKey={KEY}"
    define(extra={"connection_string": text})
    found()
    shown = str(redact(f"{text}, {KEY}"))
    assert KEY not in shown
    assert shown.endswith(", ***")
    define(login="acct", extra={"sas_token": SAS})
    found()
    assert str(redact(f"{SAS}, the%2Fsignature%3D, the/signature=")) == "***, ***, ***"


def test_what_is_not_heeded_is_told(define: Define) -> None:
    define(login="acct", password=KEY, extra={"max_block_size": 5})
    assert found().unread == ("max_block_size",)
    define(login="acct", password=KEY, extra="[1]")
    assert found().unread == ()
