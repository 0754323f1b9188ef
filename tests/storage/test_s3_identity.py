"""Whose credentials S3 sees, and which ones the stores are sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from airflow_provider_tikvbr.exceptions import AuthenticationError, InvalidOptionError, StorageUnavailableError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage import s3
from airflow_provider_tikvbr.storage.factory import open_storage, storage_of_backend
from airflow_provider_tikvbr.storage.s3_location import S3Credentials
from tests.storage.conftest import ACCESS, SECRET, S3Server
from tests.storage.scripted_s3 import LEAK, Answer, Script, assumed, serving

ROLE = "arn:aws:iam::123456789012:role/backup"
KEYS = f"access-key={ACCESS}&secret-access-key={SECRET}"
GIVEN = S3Credentials(access_key="AKIAGIVEN", secret_access_key="given-secret")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without credentials."""
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
        *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_STS"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(s3, "ATTEMPTS", 1)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")


@pytest.fixture
def profile(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = default-secret\n"
        "[other]\naws_access_key_id = AKIAOTHER\naws_secret_access_key = other-secret\n"
    )


@pytest.fixture
def script() -> Iterator[Script]:
    with serving() as found:
        yield found


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    with serving() as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", found.endpoint)
        found.answers = {"POST": [assumed(1)]}
        yield found


def refusal(status: int, code: str) -> Answer:
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>{LEAK}</Message></Error></ErrorResponse>"
    return Answer(status, body=body.encode(), headers={"Content-Type": "text/xml"})


def signer(headers: dict[str, str]) -> str:
    """The access key that a request is signed with."""
    return headers["authorization"].partition("Credential=")[2].partition("/")[0]


async def used(
    script: Script,
    query: str = "",
    *,
    credentials: S3Credentials | None = None,
    send_credentials: bool = True,
    environment_first: bool = False,
    no_credentials: bool = False,
) -> tuple[str, brpb_pb2.S3, str, bool]:
    """Write a file; who signed that, what a store is told, who is said to be whose, whether the URL's keys are idle."""
    storage = open_storage(
        f"s3://bucket/p?endpoint={script.endpoint}&object-lock=false&{query}",
        credentials=credentials,
        send_credentials=send_credentials,
        environment_first=environment_first,
        no_credentials=no_credentials,
    )
    assert isinstance(storage, s3.S3Storage)
    async with storage:
        await storage.write("a", b"x")
        headers = script.headers("PUT")[-1]
        signed_by = signer(headers) if "authorization" in headers else ""
        return signed_by, storage.backend().s3, storage.credentials_from, bool(storage.caution)


@pytest.mark.parametrize(
    ("query", "credentials", "environment_first", "signed_by", "source", "idle"),
    [
        (KEYS, GIVEN, True, "AKIAGIVEN", "the connection", True),
        (KEYS, GIVEN, False, "AKIAGIVEN", "the connection", True),
        (KEYS, None, True, "AKIAENV", "the environment", True),
        (KEYS, None, False, ACCESS, "the storage URL", False),
        (KEYS, S3Credentials(verify=False), True, "AKIAENV", "the environment", True),
        (KEYS, S3Credentials(verify=False), False, ACCESS, "the storage URL", False),
        ("", None, False, "AKIAENV", "the environment", False),
        ("", None, True, "AKIAENV", "the environment", False),
        ("profile=other", None, True, "AKIAENV", "the environment", False),
        ("profile=other", None, False, "AKIAOTHER", "the storage URL", False),
        (f"profile=other&{KEYS}", None, False, ACCESS, "the storage URL", False),
        (KEYS, S3Credentials(profile="other"), True, "AKIAOTHER", "the connection", True),
    ],
)
async def test_who_goes_first(
    script: Script,
    environment: None,
    profile: None,
    query: str,
    credentials: S3Credentials | None,
    environment_first: bool,
    signed_by: str,
    source: str,
    idle: bool,
) -> None:
    found = await used(script, query, credentials=credentials, environment_first=environment_first)
    assert found[0] == found[1].access_key == signed_by
    assert found[2:] == (source, idle)
    assert found[1].profile == ""


@pytest.mark.parametrize("environment_first", [True, False])
async def test_the_default_profile_is_the_machines(script: Script, profile: None, environment_first: bool) -> None:
    found = await used(script, environment_first=environment_first)
    assert (found[0], found[2]) == ("AKIADEFAULT", "the machine")
    found = await used(script, KEYS, environment_first=environment_first)
    assert (found[0], found[2]) == (ACCESS, "the storage URL")


async def test_a_profile_of_the_environment(script: Script, profile: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "other")
    found = await used(script, KEYS, environment_first=True)
    assert (found[0], found[2]) == ("AKIAOTHER", "the environment")


async def test_a_profile_that_is_not_there() -> None:
    async with open_storage("s3://bucket/p?profile=gone") as storage:
        with pytest.raises(
            AuthenticationError, match="AWS configuration has no profile gone: add it, or correct its name"
        ):
            await storage.prepare()


async def test_nobody(script: Script, environment: None) -> None:
    query = f"{KEYS}&role-arn={ROLE}&external-id=e1"
    signed_by, told, source, _ = await used(script, query, credentials=GIVEN, no_credentials=True)
    assert (signed_by, source) == ("", "nobody")
    assert (told.access_key, told.secret_access_key, told.role_arn, told.external_id) == ("", "", "", "")


async def test_a_session_token_goes_along(script: Script) -> None:
    _, told, _, _ = await used(script, f"{KEYS}&session-token=tok")
    assert script.headers("PUT")[0]["x-amz-security-token"] == told.session_token == "tok"


# --- roles ---


async def test_a_role_is_assumed_here_and_by_the_stores(script: Script, sts: Script) -> None:
    signed_by, told, source, _ = await used(script, f"{KEYS}&role-arn={ROLE}&external-id=e1&region=eu-west-1")
    assert (signed_by, source) == ("ASIA1", "the storage URL")
    assert script.headers("PUT")[0]["x-amz-security-token"] == "token1"
    (asked,) = (parse_qs(body.decode()) for body in sts.bodies)
    assert (asked["Action"], asked["RoleArn"], asked["ExternalId"]) == (["AssumeRole"], [ROLE], ["e1"])
    assert asked["RoleSessionName"][0].startswith("tikvbr-")
    assert signer(sts.headers("POST")[0]) == ACCESS
    assert "/eu-west-1/sts/" in sts.headers("POST")[0]["authorization"]
    assert (told.access_key, told.secret_access_key, told.session_token) == (ACCESS, SECRET, "")
    assert (told.role_arn, told.external_id) == (ROLE, "e1")


async def test_a_store_assumes_the_role_that_it_is_told(script: Script, sts: Script) -> None:
    _, told, _, _ = await used(script, f"{KEYS}&role-arn={ROLE}&external-id=e1")
    sts.answers = {"POST": [assumed(2)]}
    async with storage_of_backend(brpb_pb2.StorageBackend(s3=told)) as store:
        await store.write("a.sst", b"x")
    assert signer(script.headers("PUT")[-1]) == "ASIA2"
    assert parse_qs(sts.bodies[-1].decode())["ExternalId"] == ["e1"]


async def test_without_keys_the_stores_still_assume_the_role(script: Script, sts: Script) -> None:
    _, told, _, _ = await used(script, f"{KEYS}&role-arn={ROLE}&external-id=e1", send_credentials=False)
    assert (told.access_key, told.secret_access_key, told.session_token) == ("", "", "")
    assert (told.role_arn, told.external_id) == (ROLE, "e1")


async def test_keys_that_end_are_not_sent_where_a_role_is_to_be_assumed(
    script: Script, sts: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("from the platform")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/worker")
    web = assumed(7).body.replace(b"AssumeRoleRe", b"AssumeRoleWithWebIdentityRe")
    sts.answers = {"POST": [Answer(200, body=web), assumed(8)]}
    signed_by, told, source, _ = await used(script, f"role-arn={ROLE}")
    assert (signed_by, source) == ("ASIA8", "the machine")
    assert [parse_qs(body.decode())["Action"] for body in sts.bodies] == [
        ["AssumeRoleWithWebIdentity"],
        ["AssumeRole"],
    ]
    assert (told.access_key, told.session_token, told.role_arn) == ("", "", ROLE)

    # Without such a role there is nothing that the stores could do by themselves.
    sts.answers = {"POST": [Answer(200, body=web)]}
    _, told, _, _ = await used(script)
    assert (told.access_key, told.session_token, told.role_arn) == ("ASIA7", "token7", "")


async def test_a_role_is_assumed_again_before_its_keys_end(script: Script, sts: Script) -> None:
    sts.answers = {"POST": [assumed(1, minutes=1), assumed(2)]}
    url = f"s3://bucket/p?endpoint={script.endpoint}&object-lock=false&{KEYS}&role-arn={ROLE}"
    async with open_storage(url) as storage:
        for name in ("a", "b", "c"):
            await storage.write(name, b"x")
    tokens = [headers["x-amz-security-token"] for headers in script.headers("PUT")]
    assert (tokens[0], tokens[-1], len(sts.bodies)) == ("token1", "token2", 2)


async def test_a_role_that_is_not_to_be_had(script: Script, sts: Script, caplog: pytest.LogCaptureFixture) -> None:
    async with open_storage(f"s3://bucket/p?endpoint={script.endpoint}&{KEYS}&role-arn={ROLE}") as storage:
        sts.answers = {"POST": [refusal(403, "AccessDenied")]}
        with pytest.raises(
            AuthenticationError, match=r"STS refuses the role \(AccessDenied\): check its ARN"
        ) as caught:
            await storage.prepare()
        assert caught.value.code == "AccessDenied"
        sts.answers = {"POST": [refusal(400, "Throttling")]}
        with pytest.raises(StorageUnavailableError, match=r"STS asks to try later \(Throttling\)"):
            await storage.prepare()
    assert script.requests == []
    # botocore tells of it, but without the server's words.
    assert "AssumeRole" in caplog.text
    assert "hunter2" not in caplog.text


async def test_sts_that_cannot_be_reached_is_named(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    async with open_storage(f"s3://bucket/p?endpoint={script.endpoint}&{KEYS}&role-arn={ROLE}") as storage:
        with pytest.raises(StorageUnavailableError, match=r"http://127\.0\.0\.1:1 cannot be reached"):
            await storage.prepare()


async def test_nobody_can_assume_a_role(script: Script, sts: Script) -> None:
    async with open_storage(f"s3://bucket/p?endpoint={script.endpoint}&role-arn={ROLE}") as storage:
        with pytest.raises(AuthenticationError, match="no usable S3 credentials"):
            await storage.prepare()
    assert sts.requests == []


async def test_the_role_of_a_connection(script: Script, sts: Script) -> None:
    given = S3Credentials(access_key="AKIAGIVEN", secret_access_key="s", role_arn=ROLE, external_id="e1")
    signed_by, told, source, _ = await used(script, f"role-arn={ROLE}", credentials=given)
    assert (signed_by, source) == ("ASIA1", "the connection")
    assert (told.access_key, told.role_arn, told.external_id) == ("AKIAGIVEN", ROLE, "e1")
    with pytest.raises(InvalidOptionError, match="the connection and the storage URL name different roles"):
        open_storage(f"s3://bucket/p?role-arn={ROLE}2", credentials=given)


async def test_moto_assumes_a_role_too(
    s3_server: S3Server, bucket: str, environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", s3_server.endpoint)
    async with open_storage(s3_server.url(bucket, keys=False, more=f"&role-arn={ROLE}")) as storage:
        await storage.prepare()
        await storage.write("a", b"x")
        assert await storage.read("a") == b"x"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("role-arn=backup", "role-arn is 'backup': write arn:aws:iam::ACCOUNT:role/NAME"),
        ("external-id=hunter2", "an external-id, which is for assuming a role: give role-arn too"),
        ("object-lock=perhaps", "object-lock is 'perhaps': give true or false"),
        ("use-accelerate-endpoint=true&endpoint=http://minio:9000", "use-accelerate-endpoint is for Amazon's own"),
    ],
)
def test_parameters_that_cannot_be_right(query: str, says: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        open_storage(f"s3://bucket/p?{query}")
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_no_secret_is_shown() -> None:
    text = repr(S3Credentials(access_key="k1", secret_access_key="k2", session_token="k3", external_id="k4"))
    assert not any(secret in text for secret in ("k1", "k2", "k3", "k4"))
