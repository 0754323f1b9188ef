"""What the options of S3 become on the wire."""

from __future__ import annotations

import base64
import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import AuthenticationError, StorageUnavailableError
from airflow_provider_tikvbr.storage import s3
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.s3_location import S3Credentials
from tests.storage.conftest import ACCESS, SECRET, S3Server
from tests.storage.scripted_s3 import Answer, Script, serving
from tests.support.certs import Authority

KEYS = f"access-key={ACCESS}&secret-access-key={SECRET}"
UPLOAD = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
LOCKED = b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"


@pytest.fixture(autouse=True)
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def script() -> Iterator[Script]:
    with serving() as found:
        yield found


def at(script: Script, more: str = "") -> Storage:
    return open_storage(f"s3://bucket/p?endpoint={script.endpoint}&{KEYS}{more}")


# --- what is kept with an object ---


async def test_what_moto_keeps(s3_server: S3Server, bucket: str) -> None:
    more = "&storage-class=STANDARD_IA&sse=aws:kms&sse-kms-key-id=key-1&acl=public-read"
    async with open_storage(s3_server.url(bucket, more=more)) as storage:
        await storage.prepare()
        await storage.write("a", b"x")
        assert await storage.create("b", b"x")
    for key in ("backups/monday/a", "backups/monday/b"):
        head = s3_server.client.head_object(Bucket=bucket, Key=key)
        assert (head["StorageClass"], head["ServerSideEncryption"]) == ("STANDARD_IA", "aws:kms")
        assert head["SSEKMSKeyId"].endswith("key-1")
        grants = s3_server.client.get_object_acl(Bucket=bucket, Key=key)["Grants"]
        assert [grant["Permission"] for grant in grants if "AllUsers" in grant["Grantee"].get("URI", "")] == ["READ"]


async def test_the_trial_upload_has_the_attributes_too(script: Script) -> None:
    script.answers = {"POST": [Answer(200, body=UPLOAD)], "DELETE": [Answer(204)]}
    async with at(script, "&storage-class=GLACIER&sse=AES256&acl=private&object-lock=false") as storage:
        await storage.prepare()
    (headers,) = script.headers("POST")
    assert headers["x-amz-storage-class"] == "GLACIER"
    assert headers["x-amz-server-side-encryption"] == "AES256"
    assert headers["x-amz-acl"] == "private"
    assert [method for method, _, _ in script.requests] == ["POST", "DELETE"]


# --- where requests go ---


async def test_path_style_and_region(script: Script) -> None:
    async with at(script, "&region=ap-south-1&object-lock=false") as storage:
        await storage.write("a", b"x")
    assert script.requests[0][1] == "/bucket/p/a"
    (headers,) = script.headers("PUT")
    assert headers["authorization"].startswith(f"AWS4-HMAC-SHA256 Credential={ACCESS}/")
    assert "/ap-south-1/s3/aws4_request" in headers["authorization"]


@pytest.mark.parametrize("more", ["&force-path-style=false", "&provider=alibaba"])
async def test_virtual_host_style(script: Script, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", script.endpoint)
    async with open_storage(f"s3://bucket/p?endpoint=http://minio.test:9000&{KEYS}&object-lock=false{more}") as storage:
        await storage.write("a", b"x")
        assert not storage.backend().s3.force_path_style
    ((method, url, headers),) = script.requests
    assert (method, url, headers["Host"]) == ("PUT", "http://bucket.minio.test:9000/p/a", "bucket.minio.test:9000")


@pytest.mark.parametrize(
    ("more", "host"),
    [
        ("", "s3.amazonaws.com:443"),
        ("&region=eu-west-1", "s3.eu-west-1.amazonaws.com:443"),
        ("&region=eu-west-1&force-path-style=false", "bucket.s3.eu-west-1.amazonaws.com:443"),
        ("&region=eu-west-1&use-accelerate-endpoint=true", "bucket.s3-accelerate.amazonaws.com:443"),
        ("&region=eu-west-1&role-arn=arn:aws:iam::123456789012:role/x", "sts.eu-west-1.amazonaws.com:443"),
    ],
)
async def test_amazons_endpoints(script: Script, monkeypatch: pytest.MonkeyPatch, more: str, host: str) -> None:
    script.answers = {"CONNECT": [Answer(502)]}
    monkeypatch.setenv("HTTPS_PROXY", script.endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    async with open_storage(f"s3://bucket/p?{KEYS}&object-lock=false{more}") as storage:
        with pytest.raises(StorageUnavailableError, match="cannot be reached"):
            await storage.write("a", b"x")
    assert {(method, path) for method, path, _ in script.requests} == {("CONNECT", host)}


# --- object lock ---


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


async def test_a_bucket_that_locks_is_recognised(script: Script) -> None:
    script.answers = {
        "GET": [Answer(200, body=LOCKED)],
        "POST": [Answer(200, body=UPLOAD)],
        "HEAD": [Answer(404)],
    }
    async with at(script) as storage:
        assert not storage.backend().s3.object_lock_enabled
        await storage.prepare()
        assert storage.backend().s3.object_lock_enabled
        await storage.write("a", b"some data")
        assert await storage.create("b", b"other data")
    assert [headers["content-md5"] for headers in script.headers("PUT")] == [md5(b"some data"), md5(b"other data")]
    assert [path for method, path, _ in script.requests if method == "GET"] == ["/bucket?object-lock"]


async def test_the_url_may_tell_of_the_lock(script: Script) -> None:
    async with at(script, "&object-lock=true") as storage:
        assert storage.backend().s3.object_lock_enabled
        await storage.write("a", b"some data")
    assert [method for method, _, _ in script.requests] == ["PUT"]
    assert script.headers("PUT")[0]["content-md5"] == md5(b"some data")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(403, "AccessDenied"),
        Answer(404, "ObjectLockConfigurationNotFoundError"),
        Answer(400, "InvalidRequest"),
        Answer(501, "NotImplemented"),
        Answer(200, body=b"<ListBucketResult/>"),
    ],
)
async def test_a_bucket_that_does_not_lock_or_does_not_say(script: Script, answer: Answer) -> None:
    script.answers = {"GET": [answer], "POST": [Answer(200, body=UPLOAD)]}
    async with at(script) as storage:
        await storage.prepare()
        await storage.write("a", b"x")
        assert not storage.backend().s3.object_lock_enabled
    assert "content-md5" not in script.headers("PUT")[0]


async def test_throttling_does_not_pass_for_no_lock(script: Script) -> None:
    script.answers = {"GET": [Answer(503, "SlowDown")]}
    async with at(script) as storage:
        with pytest.raises(StorageUnavailableError, match=r"asks to try later \(SlowDown\)"):
            await storage.prepare()


async def test_moto_with_object_lock(s3_server: S3Server, bucket: str) -> None:
    s3_server.client.create_bucket(Bucket=f"{bucket}-locked", ObjectLockEnabledForBucket=True)
    for name, locked in ((bucket, False), (f"{bucket}-locked", True)):
        async with open_storage(s3_server.url(name)) as storage:
            await storage.prepare()
            await storage.write("a", b"x")
            assert storage.backend().s3.object_lock_enabled == locked


# --- TLS ---


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[Script, str]]:
    """A server with a certificate of an authority that nobody knows, and that authority's file."""
    authority = Authority()
    pair = authority.issue("127.0.0.1")
    for name, data in (("ca.pem", authority.ca), ("cert.pem", pair.cert), ("key.pem", pair.key)):
        (tmp_path / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serving(context) as found:
        yield found, str(tmp_path / "ca.pem")


async def test_an_authority_of_ones_own(tls: tuple[Script, str], monkeypatch: pytest.MonkeyPatch) -> None:
    script, ca = tls
    monkeypatch.setenv("AWS_CA_BUNDLE", ca)
    async with at(script, "&object-lock=false") as storage:
        await storage.write("a", b"x")
    assert script.requests[0][:2] == ("PUT", "/bucket/p/a")


async def test_an_authority_of_the_connection(tls: tuple[Script, str]) -> None:
    script, ca = tls
    given = S3Credentials(access_key=ACCESS, secret_access_key=SECRET, verify=ca)
    url = f"s3://bucket/p?endpoint={script.endpoint}&object-lock=false"
    async with open_storage(url, credentials=given) as storage:
        await storage.write("a", b"x")
    assert script.requests[0][:2] == ("PUT", "/bucket/p/a")


async def test_an_authority_that_nobody_knows(tls: tuple[Script, str]) -> None:
    script, _ = tls
    async with at(script, "&object-lock=false") as storage:
        with pytest.raises(AuthenticationError, match="is not trusted over TLS"):
            await storage.write("a", b"x")
    assert script.requests == []
