"""Which credentials are used for Azure, and which of them the stores are sent."""

from __future__ import annotations

import base64

import pytest
from azure.identity import ClientSecretCredential, DefaultAzureCredential

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.storage.azure import AzureStorage
from airflow_provider_tikvbr.storage.azure_location import AzureCredentials, AzureLocation
from airflow_provider_tikvbr.storage.factory import open_storage, storage_of_backend
from airflow_provider_tikvbr.storage.url import parse_url


def key(name: str) -> str:
    return base64.b64encode(name.encode()).decode()


URL_KEY, ENV_KEY, GIVEN_KEY = key("url"), key("env"), key("given")
WITH_KEY = f"azure://backups/p?account-name=acct&account-key={URL_KEY}"
BARE = "azure://backups/p?account-name=acct"
IDENTITY = {"AZURE_TENANT_ID": "tenant", "AZURE_CLIENT_ID": "client", "AZURE_CLIENT_SECRET": "client-secret"}
ENV = {"AZURE_STORAGE_ACCOUNT": "acct", "AZURE_STORAGE_KEY": ENV_KEY}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*IDENTITY, *ENV, "AZURE_STORAGE_SAS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def resolved(url: str, **options: object) -> AzureCredentials:
    storage = open_storage(url, **options)  # type: ignore[arg-type]
    assert isinstance(storage, AzureStorage)
    return storage._resolve()


@pytest.mark.parametrize(
    ("env", "url", "first", "used"),
    [
        (ENV, WITH_KEY, False, URL_KEY),
        (ENV, WITH_KEY, True, ENV_KEY),
        (ENV, BARE, False, ENV_KEY),
        ({"AZURE_STORAGE_KEY": ENV_KEY}, WITH_KEY, True, ENV_KEY),
        (ENV, "azure://backups/p", False, ENV_KEY),
        # The environment's key is another account's.
        ({**ENV, "AZURE_STORAGE_ACCOUNT": "other"}, WITH_KEY, True, URL_KEY),
        ({**ENV, "AZURE_STORAGE_SAS_TOKEN": "?sig=x"}, BARE, False, ENV_KEY),
        ({"AZURE_STORAGE_SAS_TOKEN": "?sig=x"}, BARE, False, "sig=x"),
        (IDENTITY, WITH_KEY, False, URL_KEY),
        (IDENTITY, WITH_KEY, True, ClientSecretCredential),
        # As in TiKV, an identity goes before a key.
        ({**ENV, **IDENTITY}, BARE, False, ClientSecretCredential),
        ({"AZURE_TENANT_ID": "tenant"}, BARE, False, DefaultAzureCredential),
    ],
)
def test_the_order(env: dict[str, str], url: str, first: bool, used: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = resolved(url, environment_first=first)
    assert found.account_name == "acct"
    if isinstance(used, str):
        assert used in (found.shared_key, found.sas_token)
        assert found.token is None
    else:
        assert type(found.token) is used
        assert not found.shared_key


def test_a_connection_goes_before_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", ENV_KEY)
    given = AzureCredentials(account_name="acct", shared_key=GIVEN_KEY)
    assert resolved(WITH_KEY, credentials=given, environment_first=True).shared_key == GIVEN_KEY
    assert resolved("azure://backups/p", credentials=given).account_name == "acct"
    with pytest.raises(InvalidOptionError, match="are for the Azure account acct, but the storage URL names other"):
        resolved("azure://backups/p?account-name=other", credentials=given)
    token = AzureCredentials(account_name="acct", token=object())
    assert resolved("azure://backups/p?account-name=other", credentials=token).account_name == "other"


def test_nobody_names_the_account() -> None:
    with pytest.raises(InvalidOptionError, match="nobody names the Azure account of azure://backups/p: give"):
        resolved("azure://backups/p")


def test_an_identity_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**IDENTITY, "AZURE_TENANT_ID": "not a tenant!"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidOptionError, match="name no identity that can be") as caught:
        resolved(BARE)
    assert "client-secret" not in str(caught.value)


# --- what a store is told ---


async def test_a_store_is_told_everything() -> None:
    url = f"azblob://backups/p/?endpoint=http://h:1/acct/&account-name=acct&account-key={URL_KEY}&access-tier=cool"
    async with open_storage(url) as storage:
        told = storage.backend().azure_blob_storage
    assert (told.endpoint, told.bucket, told.prefix) == ("http://h:1/acct", "backups", "p")
    assert (told.storage_class, told.account_name, told.shared_key) == ("Cool", "acct", URL_KEY)
    assert not told.HasField("encryption_key")


async def test_the_environments_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    async with open_storage("azure://backups/p") as storage:
        told = storage.backend().azure_blob_storage
    assert (told.account_name, told.shared_key) == ("acct", ENV_KEY)


@pytest.mark.parametrize("more", [f"&account-key={URL_KEY}", "&sas-token=sig%3Dx"])
async def test_credentials_stay_here_if_wanted(more: str) -> None:
    async with open_storage(BARE + more, send_credentials=False) as storage:
        told = storage.backend().azure_blob_storage
    assert (told.account_name, told.shared_key, told.access_sig) == ("acct", "", "")


async def test_an_identity_is_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    async with open_storage(BARE) as storage:
        message = storage.backend()
    assert (message.azure_blob_storage.account_name, message.azure_blob_storage.shared_key) == ("acct", "")
    assert "client-secret" not in str(message)


async def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_KEY", ENV_KEY)
    async with open_storage(WITH_KEY, no_credentials=True) as storage:
        assert isinstance(storage, AzureStorage)
        assert not storage._resolve().secret
        assert storage.backend().azure_blob_storage.shared_key == ""


async def test_a_store_uses_what_it_is_told_or_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_storage(WITH_KEY) as storage, storage_of_backend(storage.backend()) as at_store:
        assert isinstance(at_store, AzureStorage)
        assert at_store._resolve().shared_key == URL_KEY
        assert at_store.backend() == storage.backend()
    monkeypatch.setenv("AZURE_STORAGE_KEY", ENV_KEY)
    message = open_storage(WITH_KEY, send_credentials=False).backend()
    async with storage_of_backend(message) as at_store:
        assert isinstance(at_store, AzureStorage)
        assert at_store._resolve().shared_key == ENV_KEY


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"azure://b/p?account-key={URL_KEY}", "account-key without account-name"),
        ("azure://b/p?account-name=acct&account-key=secret!", "account-key is not base64"),
        ("azure://b/p?account-name=Ac/ct", "not the name of an account"),
        ("azure://b/p?account-name=acct&sas-token=secret", "sas-token has no signature"),
        ("azure://b/p?account-name=acct&sas-token=sv=1&sig=secret", "no parameter 'sig'"),
        ("azure://b/p?access-tier=lukewarm", "access-tier is 'Lukewarm': give one of Hot, Cool"),
        # Azure has it, but TiKV would write to the account's default tier without a word.
        ("azure://b/p?access-tier=cold", "access-tier is 'Cold'"),
        ("azure://b/p?encryption-key=c2VjcmV0", "encryption-key is not a key of 256 bits"),
        ("azure://b/p?encryption-scope=s&access-tier=hot", "a storage URL takes one"),
        (f"azure://b/p?endpoint=http://h&encryption-key={base64.b64encode(bytes(32)).decode()}", "over TLS only"),
        ("azure://b/p?endpoint=h:1", "the Azure endpoint 'h:1' is not a URL"),
        ("azure:///p", "names no bucket"),
    ],
)
def test_refusals_say_what_and_show_no_secret(url: str, says: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        parse_url(url)
    assert caught.value.parameter == "storage"
    assert says in str(caught.value)
    for secret in ("secret", URL_KEY, "c2VjcmV0"):
        assert secret not in str(caught.value)


def test_reprs_hide_keys() -> None:
    url = f"{WITH_KEY}&sas-token=sig%3Dquiet&encryption-key={base64.b64encode(bytes(32)).decode()}"
    location = parse_url(url)
    assert isinstance(location, AzureLocation)
    for secret in (URL_KEY, "quiet", "AAAA"):
        assert secret not in repr(location)
