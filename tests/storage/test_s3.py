"""S3: against moto's server, and against a server that misbehaves as told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import NoCredentialsError

from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.storage import s3
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.s3_identity import S3Identity
from airflow_provider_tikvbr.storage.s3_location import S3Credentials, S3Location
from tests.storage.conftest import ACCESS, SECRET, S3Server
from tests.storage.scripted_s3 import Answer, Script, serving


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    with serving() as found:
        yield found


def at(script: Script, more: str = "") -> Storage:
    return open_storage(
        f"s3://bucket/p?endpoint={script.endpoint}&access-key={ACCESS}&secret-access-key={SECRET}&object-lock=false{more}"
    )


def hides_secrets(error: BaseException) -> bool:
    texts = [str(error), repr(error)]
    if error.__cause__ is not None or not error.__suppress_context__:
        texts += [str(error.__cause__), str(error.__context__)]
    return not any(secret in text for text in texts for secret in (ACCESS, SECRET, "hunter2"))


# --- moto ---


async def test_objects_lie_where_tikv_puts_them(s3_server: S3Server, bucket: str) -> None:
    async with open_storage(s3_server.url(bucket, "/deep/prefix/")) as storage:
        await storage.write("1/2_3_default.sst", b"x")
    async with open_storage(s3_server.url(bucket, "")) as storage:
        await storage.write("backupmeta", b"y")
    listed = s3_server.client.list_objects_v2(Bucket=bucket)
    assert [o["Key"] for o in listed["Contents"]] == ["backupmeta", "deep/prefix/1/2_3_default.sst"]


async def test_neighbours_and_directory_marks_are_not_listed(s3_server: S3Server, bucket: str) -> None:
    for key in ("backups/monday/", "backups/monday/1/", "backups/monday2/a.sst", "backups/monday/a.sst"):
        s3_server.client.put_object(Bucket=bucket, Key=key, Body=b"x")
    async with open_storage(s3_server.url(bucket)) as storage:
        assert [info.name async for info in storage.list()] == ["a.sst"]


async def test_long_lists_come_in_pages(script: Script) -> None:
    def page(key: str, more: str) -> Answer:
        body = f"<ListBucketResult>{more}<Contents><Key>p/{key}</Key><Size>7</Size></Contents></ListBucketResult>"
        return Answer(200, body=body.encode())

    first = "<IsTruncated>true</IsTruncated><NextContinuationToken>t1</NextContinuationToken>"
    script.answers = {"GET": [page("a", first), page("b", "<IsTruncated>false</IsTruncated>")]}
    async with at(script) as storage:
        assert [info async for info in storage.list()] == [ObjectInfo("a", 7), ObjectInfo("b", 7)]
    assert "continuation-token=t1" in script.requests[1][1]


async def test_odd_names(s3_server: S3Server, bucket: str) -> None:
    async with open_storage(s3_server.url(bucket, "a b+c%25d")) as storage:
        assert storage.display_url == f"s3://{bucket}/a b+c%d"
        await storage.write("x y&z?.sst", b"x")
        assert [info.name async for info in storage.list()] == ["x y&z?.sst"]
        assert await storage.read("x y&z?.sst") == b"x"


async def test_prepare_leaves_no_upload(s3_server: S3Server, bucket: str) -> None:
    async with open_storage(s3_server.url(bucket)) as storage:
        await storage.prepare()
    assert "Uploads" not in s3_server.client.list_multipart_uploads(Bucket=bucket)
    assert "Contents" not in s3_server.client.list_objects_v2(Bucket=bucket)


async def test_object_attributes_are_set(s3_server: S3Server, bucket: str) -> None:
    more = "&storage-class=STANDARD_IA&sse=AES256"
    async with open_storage(s3_server.url(bucket, more=more)) as storage:
        await storage.prepare()
        await storage.write("a", b"x")
    head = s3_server.client.head_object(Bucket=bucket, Key="backups/monday/a")
    assert (head["StorageClass"], head["ServerSideEncryption"]) == ("STANDARD_IA", "AES256")


async def test_a_missing_bucket(s3_server: S3Server) -> None:
    async with open_storage(s3_server.url("no-such-bucket")) as storage:
        with pytest.raises(
            StorageNotFoundError, match="cannot write to s3://no-such-bucket/backups/monday: there is no"
        ):
            await storage.prepare()
        with pytest.raises(StorageNotFoundError, match=r"there is no bucket no-such-bucket at http://127\.0\.0\.1"):
            await storage.create("backup.lock", b"x")
        with pytest.raises(StorageNotFoundError, match="there is no bucket"):
            [info async for info in storage.list()]
        assert not await storage.exists("backupmeta")


# --- what a store is told ---


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


async def test_a_store_is_told_everything(s3_server: S3Server) -> None:
    url = s3_server.url("b", "/p/", more="&session-token=tok&storage-class=SC&sse=aws:kms&sse-kms-key-id=k&acl=private")
    async with open_storage(url) as storage:
        told = storage.backend().s3
    assert (told.endpoint, told.region, told.bucket, told.prefix) == (s3_server.endpoint, "us-east-1", "b", "p")
    assert (told.storage_class, told.sse, told.sse_kms_key_id, told.acl) == ("SC", "aws:kms", "k", "private")
    assert (told.access_key, told.secret_access_key, told.session_token) == (ACCESS, SECRET, "tok")
    assert told.force_path_style


async def test_credentials_of_the_environment_are_sent(no_credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "env-token")
    async with open_storage("s3://b/p") as storage:
        told = storage.backend().s3
    assert (told.access_key, told.secret_access_key, told.session_token) == ("AKIAENV", "env-secret", "env-token")


async def test_credentials_stay_here_if_wanted(s3_server: S3Server, bucket: str) -> None:
    async with open_storage(s3_server.url(bucket), send_credentials=False) as storage:
        told = storage.backend().s3
        assert (told.access_key, told.secret_access_key, told.session_token) == ("", "", "")
        await storage.write("a", b"x")


async def test_no_credentials_at_all(no_credentials: None, s3_server: S3Server, bucket: str) -> None:
    async with open_storage(s3_server.url(bucket, keys=False)) as storage:
        assert storage.backend().s3.access_key == ""
        with pytest.raises(
            AuthenticationError, match="no usable S3 credentials: give access-key and secret-access-key"
        ):
            await storage.read("backupmeta")


async def test_the_environment_does_not_move_the_endpoint(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    storage = s3.S3Storage(
        location=S3Location(bucket="b"), credentials=S3Credentials(access_key="a", secret_access_key="b")
    )
    assert "amazonaws.com" in storage._open().meta.endpoint_url
    await storage.close()


async def test_the_event_loop_goes_on_while_credentials_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go_on = threading.Event(), threading.Event()
    waited: list[bool] = []

    def session(_self: S3Identity) -> Any:
        asked.set()
        waited.append(go_on.wait(10))
        raise NoCredentialsError

    monkeypatch.setattr(S3Identity, "session", session)
    async with open_storage("s3://b/p") as storage:
        first = asyncio.create_task(storage.exists("a"))
        await asyncio.to_thread(asked.wait, 10)
        second = asyncio.create_task(storage.exists("b"))
        await asyncio.sleep(0)
        await storage.close()
        go_on.set()
        results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(result) for result in results] == [AuthenticationError] * 2
    assert waited == [True, True]


# --- a server that misbehaves ---


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "AccessDenied", AuthenticationError, "refuses access (AccessDenied): check the credentials"),
        (403, "SignatureDoesNotMatch", AuthenticationError, "refuses access (SignatureDoesNotMatch)"),
        (400, "ExpiredToken", AuthenticationError, "refuses access (ExpiredToken)"),
        (404, "NoSuchKey", StorageNotFoundError, "s3://bucket/p/backupmeta does not exist"),
        (404, "NoSuchBucket", StorageNotFoundError, "there is no bucket bucket at http://127.0.0.1"),
        (503, "SlowDown", StorageUnavailableError, "asks to try later (SlowDown)"),
        (429, "TooManyRequests", StorageUnavailableError, "asks to try later (TooManyRequests)"),
        (500, "InternalError", StorageUnavailableError, "asks to try later (InternalError)"),
        (503, "ServiceUnavailable", StorageUnavailableError, "asks to try later (ServiceUnavailable)"),
        (400, "RequestThrottled", StorageUnavailableError, "asks to try later (RequestThrottled)"),
        (408, "", StorageUnavailableError, "asks to try later (408)"),
        (429, "", StorageUnavailableError, "asks to try later (429)"),
        (400, "TokenRefreshRequired", AuthenticationError, "refuses access (TokenRefreshRequired)"),
        (400, "RequestTimeout", StorageUnavailableError, "asks to try later (RequestTimeout)"),
        (400, "AuthorizationHeaderMalformed", StorageError, "is not in region us-east-1: give its region"),
        (501, "NotImplemented", StorageError, "answers NotImplemented (501)"),
        (400, "EntityTooLarge", StorageError, "answers EntityTooLarge (400)"),
    ],
)
async def test_refusals(script: Script, status: int, code: str, kind: type[TikvBrError], says: str) -> None:
    script.answers = {"GET": [Answer(status, code)]}
    async with at(script) as storage:
        with pytest.raises(kind) as caught:
            await storage.read("backupmeta")
    assert says in str(caught.value)
    assert caught.value.code == (code or str(status))
    assert hides_secrets(caught.value)


async def test_throttling_is_tried_again(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    script.answers = {"GET": [Answer(503, "SlowDown"), Answer(200, body=b"there")]}
    async with at(script) as storage:
        assert await storage.read("backupmeta") == b"there"


@pytest.mark.parametrize("status", [429, 503])
async def test_throttling_does_not_pass_for_absence(script: Script, status: int) -> None:
    script.answers = {"HEAD": [Answer(status)]}
    async with at(script) as storage:
        with pytest.raises(StorageUnavailableError, match=rf"asks to try later \({status}\)"):
            await storage.exists("backupmeta")


async def test_an_answer_that_breaks_off_is_asked_for_again(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smart_open.s3.time.sleep", lambda _seconds: None)
    script.answers = {"GET": [Answer(200, body=b"who", claimed_length=9), Answer(200, body=b"whole one")]}
    async with at(script) as storage:
        assert await storage.read("backupmeta") == b"whole one"


async def test_answers_that_always_break_off(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smart_open.s3.time.sleep", lambda _seconds: None)
    script.answers = {"GET": [Answer(200, body=b"", claimed_length=9)]}
    async with at(script) as storage:
        with pytest.raises(StorageUnavailableError, match="broke off") as caught:
            await storage.read("backupmeta")
    assert len(script.requests) > 2
    assert hides_secrets(caught.value)


async def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    url = f"s3://b/p?endpoint=http://127.0.0.1:1&access-key={ACCESS}&secret-access-key={SECRET}"
    async with open_storage(url) as storage:
        with pytest.raises(StorageUnavailableError, match=r"http://127\.0\.0\.1:1 cannot be reached") as caught:
            await storage.prepare()
    assert hides_secrets(caught.value)


async def test_no_tls_at_the_endpoint(script: Script) -> None:
    url = (
        f"s3://b/p?endpoint={script.endpoint.replace('http:', 'https:')}&access-key={ACCESS}&secret-access-key={SECRET}"
    )
    async with open_storage(url) as storage:
        with pytest.raises(AuthenticationError, match="is not trusted over TLS: check the endpoint"):
            await storage.prepare()


async def test_an_impossible_bucket_name() -> None:
    async with open_storage(f"s3://b!/p?access-key={ACCESS}&secret-access-key={SECRET}") as storage:
        with pytest.raises(
            InvalidOptionError, match="cannot write to s3://b!/p: bucket, endpoint or another"
        ) as caught:
            await storage.prepare()
    assert hides_secrets(caught.value)


@pytest.mark.parametrize("refusal", [Answer(501, "NotImplemented"), Answer(400, "InvalidArgument")])
async def test_create_where_conditions_are_unknown(script: Script, refusal: Answer) -> None:
    script.answers = {"HEAD": [Answer(404)], "PUT": [refusal, Answer(200)]}
    async with at(script) as storage:
        assert await storage.create("backup.lock", b"x")
    puts = [headers for method, _, headers in script.requests if method == "PUT"]
    assert [headers.get("If-None-Match") for headers in puts] == ["*", None]


async def test_create_where_conditions_are_ignored(script: Script) -> None:
    script.answers = {"HEAD": [Answer(200)]}
    async with at(script) as storage:
        assert not await storage.create("backup.lock", b"x")
    assert [method for method, _, _ in script.requests] == ["HEAD"]


async def test_create_that_loses_the_race(script: Script) -> None:
    script.answers = {"HEAD": [Answer(404)], "PUT": [Answer(412, "PreconditionFailed")]}
    async with at(script) as storage:
        assert not await storage.create("backup.lock", b"x")


async def test_plain_puts_carry_no_trailing_checksum(script: Script) -> None:
    async with at(script) as storage:
        await storage.write("a", b"x")
    assert {"x-amz-sdk-checksum-algorithm", "content-md5"} & script.headers("PUT")[0].keys() == set()
