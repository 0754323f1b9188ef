from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import redact

from airflow_provider_tikvbr.connections import StorageAccess, storage_access
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.storage.gcs_location import GcsCredentials

URL = "gcs://bucket/prefix"
KEY = {
    "type": "service_account",
    "private_key": "-----BEGIN PRIVATE KEY-----\nthesecretkey\n-----END PRIVATE KEY-----\n",
    "client_email": "a@b",
    "token_uri": "https://t",
}
LONG = "extra__google_cloud_platform__"

Define = Callable[..., None]


@pytest.fixture
def define(monkeypatch: pytest.MonkeyPatch) -> Define:
    def define(conn_type: str = "google_cloud_platform", **extra: Any) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_KEYS", json.dumps({"conn_type": conn_type, "extra": extra}))

    return define


@pytest.fixture
def no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.google.common.hooks.base_google", None)


def blob(access: StorageAccess | None) -> str:
    assert access is not None
    assert isinstance(access.credentials, GcsCredentials)
    return access.credentials.blob


@pytest.mark.parametrize("prefix", ["", LONG])
@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("scheme", ["gcs", "gs"])
def test_a_key_in_the_connection(define: Define, prefix: str, as_text: bool, scheme: str) -> None:
    text = json.dumps(KEY)
    define(**{f"{prefix}keyfile_dict": text if as_text else KEY, f"{prefix}project": "p", "num_retries": 5, "odd": 1})
    access = storage_access("keys", f"{scheme}://bucket/prefix")
    assert json.loads(blob(access)) == KEY
    assert access is not None
    assert (access.parameters, access.unread) == ("", ("odd",))
    assert "thesecretkey" not in repr(access)


def test_secrets_are_masked(define: Define) -> None:
    define(keyfile_dict=KEY)
    text = blob(storage_access("keys", URL))
    for shown in (text, KEY["private_key"], f"the key {json.dumps(KEY['private_key'])}"):
        assert "thesecretkey" not in str(redact(shown))


@pytest.mark.parametrize("prefix", ["", LONG])
def test_a_key_in_a_file(define: Define, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    path.write_text(json.dumps(KEY))
    define(**{f"{prefix}key_path": str(path)})
    assert blob(storage_access("keys", URL)) == path.read_text()


def test_the_short_name_goes_before_the_long_one(define: Define) -> None:
    define(**{f"{LONG}keyfile_dict": {"of": "long"}, "keyfile_dict": {"of": "short"}})
    assert json.loads(blob(storage_access("keys", URL))) == {"of": "short"}


def test_no_credentials_mean_the_workers_own(define: Define) -> None:
    define(project="p")
    assert storage_access("keys", URL) == StorageAccess(credentials=None)


def test_anonymous(define: Define) -> None:
    define(is_anonymous=True)
    access = storage_access("keys", URL)
    assert access is not None
    assert isinstance(access.credentials, GcsCredentials)
    assert type(access.credentials.session).__name__ == "AnonymousCredentials"


@pytest.mark.parametrize("conn_type", ["generic", ""])
def test_a_connection_made_where_its_type_is_not_offered(define: Define, conn_type: str) -> None:
    define(conn_type, keyfile_dict=KEY)
    assert json.loads(blob(storage_access("keys", URL))) == KEY


@pytest.mark.parametrize("conn_type", ["aws", "wasb"])
def test_another_type_is_refused(define: Define, conn_type: str) -> None:
    define(conn_type, keyfile_dict=KEY)
    with pytest.raises(InvalidOptionError, match=rf"is of type '{conn_type}': name one of type google_cloud") as found:
        storage_access("keys", URL)
    assert found.value.parameter == "storage_conn_id"


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"keyfile_dict": "hunter2"}, "has no JSON document in keyfile_dict"),
        ({"keyfile_dict": [1]}, "has no JSON document in keyfile_dict"),
        ({"key_path": "/nowhere/key.json"}, "key_path /nowhere/key.json, which cannot be read"),
        ({"key_path": "/nowhere/key.json", "keyfile_dict": KEY}, "has both keyfile_dict and key_path"),
    ],
)
def test_keys_that_are_none(define: Define, extra: dict[str, Any], text: str) -> None:
    define(**extra)
    with pytest.raises(InvalidOptionError, match=text) as found:
        storage_access("keys", URL)
    assert "hunter2" not in str(found.value)


@pytest.mark.usefixtures("no_provider")
@pytest.mark.parametrize("field", ["impersonation_chain", "key_secret_name", "credential_config_file"])
def test_what_needs_the_provider(define: Define, field: str) -> None:
    define(**{field: "x", "keyfile_dict": KEY})
    with pytest.raises(InvalidOptionError, match=rf"has the field {field}: install apache-airflow-providers-google"):
        storage_access("keys", URL)


@pytest.mark.skipif(
    find_spec("airflow.providers") is None or find_spec("airflow.providers.google") is None,
    reason="apache-airflow-providers-google is not installed",
)
def test_the_providers_hook_impersonates(define: Define) -> None:
    from tests.support.gcs import service_account

    define(keyfile_dict=service_account(), impersonation_chain="other@project.iam.gserviceaccount.com")
    access = storage_access("keys", URL)
    assert access is not None
    assert isinstance(access.credentials, GcsCredentials)
    assert access.credentials.blob == ""
    assert "impersonated" in type(access.credentials.session).__module__
