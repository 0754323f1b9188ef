"""Azure Blob Storage: against Azurite, and against a server that misbehaves as told."""

from __future__ import annotations

import base64
import hashlib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from azure.storage.blob import BlobServiceClient

from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.storage import azure
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from tests.storage.scripted_s3 import Answer, Script, serving
from tests.support.azurite import ACCOUNT, KEY, Azurite
from tests.support.certs import Authority, KeyPair

CUSTOMER_KEY = base64.b64encode(bytes(range(32))).decode()
HALF = {"ETag": '"e"', "Content-Range": "bytes 0-7/8"}
SECRETS = (KEY, "hunter2", CUSTOMER_KEY)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setattr(azure, "RETRIES", 0)
    with serving() as found:
        yield found


def at(script: Script, more: str = "") -> Storage:
    return open_storage(f"azure://backups/p?endpoint={script.endpoint}&account-name=acct&account-key={KEY}{more}")


def refusal(status: int, code: str) -> Answer:
    return Answer(status, code, headers={"x-ms-error-code": code, "Content-Type": "application/xml"})


def hides_secrets(error: BaseException) -> bool:
    texts = [str(error), repr(error)]
    if error.__cause__ is not None or not error.__suppress_context__:
        texts += [str(error.__cause__), str(error.__context__)]
    return not any(secret in text for text in texts for secret in SECRETS)


@pytest.fixture
async def service(azurite_server: Azurite) -> AsyncIterator[BlobServiceClient]:
    with BlobServiceClient(azurite_server.endpoint, credential={"account_name": ACCOUNT, "account_key": KEY}) as client:
        yield client


# --- Azurite ---


async def test_blobs_lie_where_tikv_puts_them(
    azurite_server: Azurite, container: str, service: BlobServiceClient
) -> None:
    async with open_storage(azurite_server.url(container, "/deep/prefix/")) as storage:
        await storage.prepare()
        await storage.write("1_2_3_default.sst", b"x")
    async with open_storage(azurite_server.url(container, "")) as storage:
        await storage.write("backupmeta", b"y")
    names = [blob.name for blob in service.get_container_client(container).list_blobs()]
    assert names == ["backupmeta", "deep/prefix/1_2_3_default.sst"]


async def test_neighbours_and_directories_are_not_listed(
    azurite_server: Azurite, container: str, service: BlobServiceClient
) -> None:
    made = service.create_container(container)
    for name in ("backups/monday/", "backups/monday2/a.sst", "backups/monday/a.sst"):
        made.upload_blob(name, b"x")
    # How accounts with a hierarchy show a directory.
    made.upload_blob("backups/monday/1", b"", metadata={"hdi_isfolder": "true"})
    async with open_storage(azurite_server.url(container)) as storage:
        assert [info async for info in storage.list()] == [ObjectInfo("a.sst", 1)]


async def test_long_lists_come_in_pages(
    azurite_server: Azurite, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "_PAGE", 2)
    async with open_storage(azurite_server.url(container)) as storage:
        await storage.prepare()
        for number in range(5):
            await storage.write(f"{number}.sst", b"x")
        assert [info.name async for info in storage.list()] == [f"{number}.sst" for number in range(5)]


async def test_an_empty_page_is_not_the_last_one(script: Script) -> None:
    def page(blobs: str, marker: str) -> Answer:
        body = f"<EnumerationResults ServiceEndpoint='e' ContainerName='c'><Blobs>{blobs}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
        return Answer(200, body=body.encode(), headers={"Content-Type": "application/xml"})

    blob = (
        "<Blob><Name>p/{}</Name><Properties><Last-Modified>Mon, 23 Nov 2026 22:00:00 GMT</Last-Modified><Etag>e</Etag>"
        "<Content-Length>3</Content-Length><BlobType>BlockBlob</BlobType></Properties></Blob>"
    )
    script.answers = {"GET": [page("", "1"), page(blob.format("a"), "2"), page("", "3"), page(blob.format("b"), "")]}
    async with at(script) as storage:
        assert [info async for info in storage.list()] == [ObjectInfo("a", 3), ObjectInfo("b", 3)]


async def test_a_big_file(azurite_server: Azurite, container: str) -> None:
    # More than the library puts or gets in one request.
    data = bytes(range(256)) * 4096 * 70
    async with open_storage(azurite_server.url(container)) as storage:
        await storage.prepare()
        assert await storage.create("backupmeta", data)
        assert not await storage.create("backupmeta", data)
        assert await storage.read("backupmeta") == data


async def test_odd_names(azurite_server: Azurite, container: str) -> None:
    async with open_storage(azurite_server.url(container, "a b+c%25d")) as storage:
        await storage.prepare()
        assert storage.display_url == f"azure://{container}/a b+c%d"
        await storage.write("x y&z?#.sst", b"x")
        assert [info.name async for info in storage.list()] == ["x y&z?#.sst"]
        assert await storage.read("x y&z?#.sst") == b"x"


async def test_prepare_makes_the_container(azurite_server: Azurite, container: str, service: BlobServiceClient) -> None:
    async with open_storage(azurite_server.url(container)) as storage:
        for call in (storage.read("a"), storage.write("a", b""), storage.create("a", b""), storage.delete("a")):
            with pytest.raises(StorageNotFoundError, match=f"there is no container {container} at http://127"):
                await call
        with pytest.raises(StorageNotFoundError, match="there is no container"):
            [info async for info in storage.list()]
        assert not await storage.exists("backupmeta")
        await storage.prepare()
        await storage.prepare()
    blobs = service.get_container_client(container).list_blobs(include=["uncommittedblobs", "deleted", "snapshots"])
    assert list(blobs) == []


async def test_the_tier_of_new_blobs(azurite_server: Azurite, container: str, service: BlobServiceClient) -> None:
    for tier in ("cool", "archive"):
        async with open_storage(azurite_server.url(container, more=f"&access-tier={tier}")) as storage:
            await storage.prepare()
            await storage.write(tier, b"x")
            # What goes to the archive cannot be read for hours, so small files of this process stay out of it.
            assert await storage.read(tier) == b"x"
    made = service.get_container_client(container)
    assert made.get_blob_client("backups/monday/cool").get_blob_properties().blob_tier == "Cool"
    made.get_blob_client("backups/monday/cool").set_standard_blob_tier("Archive")
    async with open_storage(azurite_server.url(container)) as storage:
        with pytest.raises(StorageError, match="cool: it is in the archive tier: bring it back"):
            await storage.read("cool")


async def test_a_wrong_key(azurite_server: Azurite, container: str) -> None:
    wrong = base64.b64encode(b"wrong").decode()
    async with open_storage(f"{azurite_server.url(container, key=False)}&account-key={wrong}") as storage:
        with pytest.raises(AuthenticationError, match=r"refuses access \(AuthorizationFailure\)") as caught:
            await storage.prepare()
    assert wrong not in str(caught.value)


# --- a server that misbehaves ---


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "AuthenticationFailed", AuthenticationError, "refuses access (AuthenticationFailed): check the"),
        (403, "AuthorizationPermissionMismatch", AuthenticationError, "refuses access (AuthorizationPermission"),
        (401, "InvalidAuthenticationInfo", AuthenticationError, "refuses access (InvalidAuthenticationInfo)"),
        (404, "BlobNotFound", StorageNotFoundError, "azure://backups/p/backupmeta does not exist"),
        (404, "ContainerNotFound", StorageNotFoundError, "there is no container backups at http://127.0.0.1"),
        (409, "ContainerBeingDeleted", StorageUnavailableError, "asks to try later (ContainerBeingDeleted)"),
        (503, "ServerBusy", StorageUnavailableError, "asks to try later (ServerBusy)"),
        (500, "OperationTimedOut", StorageUnavailableError, "asks to try later (OperationTimedOut)"),
        (500, "InternalError", StorageUnavailableError, "asks to try later (InternalError)"),
        (429, "TooManyRequests", StorageUnavailableError, "asks to try later (TooManyRequests)"),
        (409, "BlobArchived", StorageError, "it is in the archive tier"),
        (409, "BlobUsesCustomerSpecifiedEncryption", StorageError, "encrypted with another key"),
        (501, "FeatureNotSupported", StorageError, "answers FeatureNotSupported (501)"),
        (400, "OutOfRangeInput", InvalidOptionError, "backups cannot be the name of a container"),
        (400, "InvalidHeaderValue", StorageError, "answers InvalidHeaderValue (400)"),
    ],
)
async def test_refusals(script: Script, status: int, code: str, kind: type[TikvBrError], says: str) -> None:
    script.answers = {method: [refusal(status, code)] for method in ("GET", "PUT", "HEAD", "DELETE")}
    async with at(script) as storage:
        for call in (lambda: storage.read("backupmeta"), lambda: storage.write("backupmeta", b"x")):
            with pytest.raises(TikvBrError) as caught:
                await call()
            assert type(caught.value) is kind
            assert says in str(caught.value)
            assert hides_secrets(caught.value)
        if code == "ContainerBeingDeleted":
            with pytest.raises(StorageUnavailableError):
                await storage.create("backup.lock", b"x")


async def test_whoever_may_not_make_a_container_hears_that_it_is_missing(script: Script) -> None:
    script.answers = {"PUT": [refusal(404, "ContainerNotFound"), refusal(403, "AuthorizationFailure")]}
    async with at(script) as storage:
        with pytest.raises(StorageNotFoundError, match="there is no container backups"):
            await storage.prepare()


async def test_a_server_without_conditions_is_left_clean(script: Script) -> None:
    script.answers = {"PUT": [Answer(201)], "DELETE": [Answer(202)]}
    async with at(script) as storage:
        await storage.prepare()
    assert [method for method, _, _ in script.requests] == ["PUT", "DELETE"]
    assert script.requests[0][1] == script.requests[1][1]


async def test_throttling_is_waited_out(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(azure, "RETRIES", 2)
    monkeypatch.setattr(azure, "FIRST_WAIT_S", 0)
    script.answers = {"PUT": [refusal(503, "ServerBusy"), Answer(201)]}
    async with at(script) as storage:
        await storage.write("a", b"x")
    assert len(script.requests) == 2


async def test_answers_that_break_off(script: Script) -> None:
    script.answers = {"GET": [Answer(206, body=b"half", claimed_length=8, headers=HALF)]}
    async with at(script) as storage:
        with pytest.raises(StorageUnavailableError):
            await storage.read("a")


async def test_nobody_there(script: Script) -> None:
    url = f"azure://backups/p?endpoint=http://127.0.0.1:1&account-name=acct&account-key={KEY}"
    async with open_storage(url) as storage:
        with pytest.raises(StorageUnavailableError, match=r"http://127\.0\.0\.1:1 cannot be reached") as caught:
            await storage.read("a")
    assert hides_secrets(caught.value)


async def test_the_signature_is_used_and_not_shown(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    script.answers = {"GET": [refusal(403, "AuthenticationFailed")]}
    caplog.set_level("DEBUG")
    url = f"azure://backups/p?endpoint={script.endpoint}&account-name=acct&sas-token=sv%3D1%26sig%3Dhunter2"
    async with open_storage(url) as storage:
        with pytest.raises(AuthenticationError) as caught:
            await storage.read("a")
        assert storage.backend().azure_blob_storage.access_sig == "sv=1&sig=hunter2"
    assert "sig=hunter2" in script.requests[0][1]
    assert hides_secrets(caught.value)
    assert not [r for r in caplog.records if "azure" in r.name and r.levelname == "INFO"]


async def test_scope_and_customer_key_go_with_every_file(
    server_pair: KeyPair, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure, "RETRIES", 0)
    for name, data in (("ca", authority.ca), ("cert", server_pair.cert), ("key", server_pair.key)):
        (tmp_path / f"{name}.pem").write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    digest = base64.b64encode(hashlib.sha256(bytes(range(32))).digest()).decode()
    with serving(context) as script:
        script.answers = {
            "PUT": [Answer(201)],
            "GET": [Answer(206, body=b"x", headers={"ETag": '"e"', "Content-Range": "bytes 0-0/1"})],
        }
        async with at(script, f"&encryption-key={CUSTOMER_KEY}") as storage:
            told = storage.backend().azure_blob_storage
            assert told.encryption_key.encryption_key == CUSTOMER_KEY
            assert told.encryption_key.encryption_key_sha256 == digest
            await storage.write("a", b"x")
            assert await storage.read("a") == b"x"
        for method in ("PUT", "GET"):
            (sent,) = script.headers(method)
            assert (sent["x-ms-encryption-key"], sent["x-ms-encryption-key-sha256"]) == (CUSTOMER_KEY, digest)
            assert sent["x-ms-encryption-algorithm"] == "AES256"
        async with at(script, "&encryption-scope=finance") as storage:
            assert storage.backend().azure_blob_storage.encryption_scope == "finance"
            await storage.write("a", b"x")
        assert script.headers("PUT")[-1]["x-ms-encryption-scope"] == "finance"
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        async with at(script) as storage:
            with pytest.raises(AuthenticationError, match="is not trusted over TLS"):
                await storage.read("a")


def test_a_customer_key_is_not_kept_from_the_stores(script: Script) -> None:
    with pytest.raises(InvalidOptionError, match="encryption-key has to be sent to the stores"):
        open_storage(f"azure://b/p?account-name=acct&encryption-key={CUSTOMER_KEY}", send_credentials=False)


@pytest.mark.parametrize("library", ["azure.storage.blob", "azure.identity"])
def test_without_the_library(library: str) -> None:
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from airflow_provider_tikvbr.storage.factory import open_storage\n"
        "open_storage('azure://backups/p?account-name=acct')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "InvalidOptionError: storage azure:// needs the libraries" in done.stderr
    assert "pip install 'airflow-provider-tikvbr[azure]'" in done.stderr
