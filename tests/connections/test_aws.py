"""Connections of type ``aws``: with Amazon's provider and without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from airflow.providers.common.compat.sdk import redact
from botocore import UNSIGNED

from airflow_provider_tikvbr.connections import StorageAccess, storage_access
from airflow_provider_tikvbr.exceptions import AuthenticationError, InvalidOptionError
from airflow_provider_tikvbr.storage import s3
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.s3_location import S3Credentials
from tests.storage.scripted_s3 import Script, assumed, serving

URL = "s3://bucket/prefix"
ROLE = "arn:aws:iam::123456789012:role/backup"
LOGIN, PASSWORD = "AKIATHELOGIN", "thepasswordofit"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = default-secret\n"
        "[other]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = other-secret\n"
    )


def hide_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "airflow.providers.amazon.aws.hooks.base_aws",
        "airflow.providers.amazon.aws.utils.connection_wrapper",
    ):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(params=["with the provider", "without it"])
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "without it":
        hide_provider(monkeypatch)
        return False
    pytest.importorskip("airflow.providers.amazon")
    return True


@pytest.fixture
def without_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_provider(monkeypatch)


Define = Callable[..., StorageAccess]


@pytest.fixture
def define(monkeypatch: pytest.MonkeyPatch) -> Define:
    def made(*, login: str = LOGIN, password: str = PASSWORD, conn_type: str = "aws", **extra: Any) -> StorageAccess:
        conn = {"conn_type": conn_type, "login": login, "password": password, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_PLACE", json.dumps(conn))
        access = storage_access("place", URL)
        assert access is not None
        return access

    return made


@pytest.fixture
def script() -> Iterator[Script]:
    with serving() as found:
        yield found


@pytest.fixture
def sts() -> Iterator[Script]:
    with serving() as found:
        found.answers = {"POST": [assumed(1)]}
        yield found


async def used(access: StorageAccess, script: Script, **options: Any) -> tuple[str, Any, str]:
    """Who signs a request, what a store is told, and whose credentials they are said to be."""
    assert isinstance(access.credentials, S3Credentials)
    url = access.complete(f"s3://bucket/p?endpoint={script.endpoint}&object-lock=false")
    storage = open_storage(url, credentials=access.credentials, environment_first=True, **options)
    assert isinstance(storage, s3.S3Storage)
    async with storage:
        await storage.write("a", b"x")
        signature = script.headers("PUT")[-1].get("authorization", "")
        return (
            signature.partition("Credential=")[2].partition("/")[0],
            storage.backend().s3,
            storage.credentials_from,
        )


async def test_keys(provider: bool, define: Define, script: Script) -> None:
    access = define(aws_session_token="thetoken")
    assert access == StorageAccess(
        credentials=S3Credentials(access_key=LOGIN, secret_access_key=PASSWORD, session_token="thetoken")
    )
    signed_by, told, source = await used(access, script)
    assert (signed_by, source) == (LOGIN, "the connection")
    assert (told.access_key, told.secret_access_key, told.session_token) == (LOGIN, PASSWORD, "thetoken")
    assert script.headers("PUT")[0]["x-amz-security-token"] == "thetoken"


async def test_keys_in_the_extra(provider: bool, define: Define, script: Script) -> None:
    access = define(login="", password="", aws_access_key_id="AKIAEXTRA", aws_secret_access_key="extra-secret")
    assert (await used(access, script))[0] == "AKIAEXTRA"


async def test_a_profile(provider: bool, define: Define, script: Script) -> None:
    signed_by, told, source = await used(define(login="", password="", profile_name="other"), script)
    assert (signed_by, told.access_key, source) == ("AKIAOTHER", "AKIAOTHER", "the connection")


async def test_no_keys_mean_the_machines(provider: bool, define: Define, script: Script) -> None:
    access = define(login="", password="", region_name="eu-west-1")
    signed_by, told, source = await used(access, script)
    assert (signed_by, told.access_key, source) == ("AKIADEFAULT", "AKIADEFAULT", "the machine")
    assert "/eu-west-1/s3/" in script.headers("PUT")[0]["authorization"]


@pytest.mark.parametrize("extra", [{"external_id": "e1"}, {"assume_role_kwargs": {"ExternalId": "e1"}}])
async def test_a_role(
    provider: bool, define: Define, script: Script, sts: Script, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.endpoint)
    access = define(role_arn=ROLE, **extra)
    assert access.unread == ()
    signed_by, told, _ = await used(access, script)
    assert signed_by == "ASIA1"
    asked = parse_qs(sts.bodies[0].decode())
    assert (asked["RoleArn"], asked["ExternalId"]) == ([ROLE], ["e1"])
    assert f"Credential={LOGIN}/" in sts.headers("POST")[0]["authorization"]
    assert (told.access_key, told.session_token, told.role_arn, told.external_id) == (LOGIN, "", ROLE, "e1")
    _, told, _ = await used(access, script, send_credentials=False)
    assert (told.access_key, told.role_arn, told.external_id) == ("", ROLE, "e1")


async def test_a_role_that_stores_cannot_assume_the_same_way(
    define: Define, script: Script, sts: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("airflow.providers.amazon")
    # The role counts as the connection's, whatever assumes it.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    access = define(
        login="",
        password="",
        role_arn=ROLE,
        assume_role_kwargs={"Policy": "{}"},
        service_config={"sts": {"endpoint_url": sts.endpoint}},
    )
    signed_by, told, source = await used(access, script)
    assert (signed_by, source) == ("ASIA1", "the connection")
    assert parse_qs(sts.bodies[0].decode())["Policy"] == ["{}"]
    assert (told.access_key, told.session_token, told.role_arn) == ("ASIA1", "token1", "")


@pytest.mark.parametrize(
    "extra", [{"assume_role_method": "assume_role_with_web_identity"}, {"assume_role_kwargs": {"Policy": "{}"}}]
)
def test_without_the_provider_such_a_role_is_refused(
    without_provider: None, define: Define, extra: dict[str, Any]
) -> None:
    with pytest.raises(
        InvalidOptionError, match="takes Amazon's provider: pip install apache-airflow-providers-amazon"
    ):
        define(role_arn=ROLE, **extra)


def test_other_fields_are_told(provider: bool, define: Define) -> None:
    unread = define(session_kwargs={}, colour="blue", host="x").unread
    assert unread == (("colour", "host") if provider else ("colour", "host", "session_kwargs"))


@pytest.mark.parametrize(
    ("given", "verify"), [("False", False), ("true", True), (False, False), ("/ca.pem", "/ca.pem")]
)
def test_how_to_check_the_certificate(provider: bool, define: Define, given: Any, verify: Any) -> None:
    credentials = define(verify=given).credentials
    assert isinstance(credentials, S3Credentials)
    assert credentials.verify == verify


async def test_the_providers_session_assumes_its_role_again(define: Define, script: Script, sts: Script) -> None:
    pytest.importorskip("airflow.providers.amazon")
    sts.answers = {"POST": [assumed(1, minutes=1), assumed(2)]}
    access = define(role_arn=ROLE, service_config={"sts": {"endpoint_url": sts.endpoint}})
    url = f"s3://bucket/p?endpoint={script.endpoint}&object-lock=false"
    async with open_storage(url, credentials=access.credentials) as storage:
        for name in ("a", "b"):
            await storage.write(name, b"x")
    assert script.headers("PUT")[-1]["x-amz-security-token"] == "token2"


async def test_where_and_how(provider: bool, define: Define, script: Script, tmp_path: Path) -> None:
    access = define(
        endpoint_url="http://everything:1",
        service_config={"s3": {"endpoint_url": "http://minio:9000"}},
        region_name="eu-west-1",
        verify="/etc/ca.pem",
        config_kwargs={"s3": {"addressing_style": "virtual"}, "read_timeout": 7},
    )
    assert access.parameters == "endpoint=http%3A%2F%2Fminio%3A9000&region=eu-west-1&force-path-style=false"
    assert isinstance(access.credentials, S3Credentials)
    assert (access.credentials.verify, access.credentials.config.read_timeout) == ("/etc/ca.pem", 7)
    storage = open_storage(access.complete(URL), credentials=access.credentials)
    assert isinstance(storage, s3.S3Storage)
    config = storage._config()
    assert (config.read_timeout, config.connect_timeout, config.signature_version) == (7, 10, "s3v4")
    assert config.s3["addressing_style"] == "virtual"


async def test_unsigned(provider: bool, define: Define, script: Script) -> None:
    access = define(config_kwargs={"signature_version": "unsigned"})
    assert isinstance(access.credentials, S3Credentials)
    assert access.credentials.config.signature_version is UNSIGNED
    signed_by, told, source = await used(access, script)
    assert (signed_by, told.access_key, source) == ("", "", "nobody")
    assert "authorization" not in script.headers("PUT")[0]


@pytest.mark.parametrize("conn_type", ["google_cloud_platform", "wasb", "tikv"])
def test_another_type_is_refused(provider: bool, define: Define, conn_type: str) -> None:
    with pytest.raises(InvalidOptionError, match=f"is of type {conn_type}: S3 takes one of type aws") as caught:
        define(conn_type=conn_type)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("conn_type", ["s3", "generic"])
async def test_types_that_are_as_good(provider: bool, define: Define, script: Script, conn_type: str) -> None:
    assert (await used(define(conn_type=conn_type), script))[0] == LOGIN


@pytest.mark.parametrize("extra", [{"config_kwargs": {"no_such_option": PASSWORD}}])
def test_an_extra_that_cannot_be_read(provider: bool, define: Define, extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match="whose extra cannot be read as one of type aws") as caught:
        define(**extra)
    assert PASSWORD not in str(caught.value)


async def test_a_session_that_the_provider_cannot_make(define: Define, script: Script) -> None:
    pytest.importorskip("airflow.providers.amazon")
    access = define(
        role_arn=ROLE,
        assume_role_method="assume_role_with_web_identity",
        assume_role_with_web_identity_federation=PASSWORD,
    )
    with pytest.raises(AuthenticationError, match="of which Amazon's provider makes no session") as caught:
        await used(access, script)
    assert PASSWORD not in str(caught.value)


def test_secrets_are_masked(provider: bool, define: Define) -> None:
    define(aws_session_token="tokenofextra", role_arn=ROLE, external_id="idofextra")
    assert str(redact(f"{LOGIN}, {PASSWORD}, tokenofextra, idofextra")) == "***, ***, ***, ***"
    define(login="", password="", aws_access_key_id="AKIAOFEXTRA", aws_secret_access_key="secretofextra")
    assert str(redact("AKIAOFEXTRA, secretofextra")) == "***, ***"
