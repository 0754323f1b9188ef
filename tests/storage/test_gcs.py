"""Google Cloud Storage: against an emulator, and against a server that misbehaves as told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.options import backup_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage import gcs
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage
from airflow_provider_tikvbr.storage.factory import open_storage, storage_of_backend
from airflow_provider_tikvbr.storage.gcs_location import GcsCredentials
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from tests.rawbr.jobs import cluster, make_pairs
from tests.support.gcs import Answer, GcsServer, Script, refusal, scripted, service_account
from tests.support.target import held, target


@pytest.fixture
def bucket(gcs_bucket: str) -> str:
    return gcs_bucket


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setattr(gcs, "RETRY_FOR_S", 0.01)
    with scripted() as found:
        yield found


def at(script: Script, more: str = "", **given: Any) -> Storage:
    return open_storage(f"gcs://bucket/p?endpoint={script.endpoint}{more}", **{"no_credentials": True, **given})


async def caught(storage: Storage, call: str = "read", *args: Any) -> TikvBrError:
    with pytest.raises(TikvBrError) as found:
        await getattr(storage, call)(*(args or ("a.sst",)))
    shown = [str(found.value), repr(found.value)]
    assert found.value.__cause__ is None
    assert found.value.__suppress_context__ or found.value.__context__ is None
    assert not any("hunter2" in text for text in shown)
    return found.value


# --- the emulator ---


async def test_objects_lie_where_tikv_puts_them(gcs_server: GcsServer, bucket: str) -> None:
    for prefix, name in (("/deep/prefix/", "1_2_3_default.sst"), ("", "backupmeta")):
        async with open_storage(gcs_server.url(bucket, prefix), no_credentials=True) as storage:
            await storage.write(name, b"x")
    assert gcs_server.keys(bucket) == ["backupmeta", "deep/prefix/1_2_3_default.sst"]


async def test_neighbours_and_directory_marks_are_not_listed(gcs_server: GcsServer, bucket: str) -> None:
    async with open_storage(gcs_server.url(bucket, ""), no_credentials=True) as whole:
        for key in ("backups/monday2/a.sst", "backups/monday/b.sst", "backups/monday/a.sst"):
            await whole.write(key, b"x")
    async with open_storage(gcs_server.url(bucket), no_credentials=True) as storage:
        assert [info.name async for info in storage.list()] == ["a.sst", "b.sst"]


async def test_odd_names(gcs_server: GcsServer, bucket: str) -> None:
    async with open_storage(gcs_server.url(bucket, "a b+c%25d"), no_credentials=True) as storage:
        await storage.write("x y&z?.sst", b"x")
        assert [info.name async for info in storage.list()] == ["x y&z?.sst"]
        assert await storage.read("x y&z?.sst") == b"x"


async def test_attributes_of_what_is_written(gcs_server: GcsServer, bucket: str) -> None:
    url = gcs_server.url(bucket, more="&storage-class=NEARLINE&predefined-acl=private")
    async with open_storage(url, no_credentials=True) as storage:
        await storage.write("a.sst", b"x" * (9 << 20))
        assert len(await storage.read("a.sst")) == 9 << 20
        told = storage.backend().gcs
    assert gcs_server.attributes(bucket, "backups/monday/a.sst")["storageClass"] == "NEARLINE"
    assert (told.storage_class, told.predefined_acl, told.credentials_blob) == ("NEARLINE", "private", "")


@pytest.mark.parametrize("path", ["", "/", "/storage/v1", "/storage/v1/", "/upload/storage/v1/"])
async def test_every_form_of_the_endpoint_means_the_same(gcs_server: GcsServer, bucket: str, path: str) -> None:
    url = f"gs://{bucket}/p?endpoint={gcs_server.endpoint}{path}"
    async with open_storage(url, no_credentials=True) as storage:
        await storage.write("a", b"a")
        backend = storage.backend()
    assert backend.gcs.endpoint == f"{gcs_server.endpoint}/storage/v1/"
    async with storage_of_backend(backend) as at_store:
        assert await at_store.read("a") == b"a"


async def test_the_emulators_variable_does_not_lead_elsewhere(
    gcs_server: GcsServer, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    async with open_storage(gcs_server.url(bucket), no_credentials=True) as storage:
        await storage.write("a", b"a")
        assert await storage.exists("a")


async def test_backupmeta_of_old_without_a_slash(gcs_server: GcsServer, bucket: str) -> None:
    async with open_storage(gcs_server.url(bucket, "backups"), no_credentials=True) as outer:
        await outer.write("mondaybackupmeta", b"old")
        await outer.write("mondaya.sst", b"x")
    async with open_storage(gcs_server.url(bucket), no_credentials=True) as storage:
        assert await storage.exists("backupmeta")
        assert await storage.read("backupmeta") == b"old"
        assert not await storage.exists("a.sst")
        await storage.write("backupmeta", b"new")
        assert await storage.read("backupmeta") == b"new"


@pytest.mark.parametrize(("call", "args"), [("prepare", ()), ("write", ("a", b"")), ("create", ("a", b""))])
async def test_a_missing_bucket(gcs_server: GcsServer, call: str, args: tuple[Any, ...]) -> None:
    async with open_storage(gcs_server.url("nowhere"), no_credentials=True) as storage:
        with pytest.raises(StorageNotFoundError, match="there is no bucket nowhere at http://127"):
            await getattr(storage, call)(*args)
        with pytest.raises(StorageNotFoundError, match="no bucket nowhere"):
            _ = [info async for info in storage.list()]


async def test_a_whole_backup(gcs_server: GcsServer, bucket: str, tmp_path: Path) -> None:
    url = gcs_server.url(bucket)
    async with cluster(tmp_path / "from") as (_, client), open_storage(url, no_credentials=True) as storage:
        summary = await backup(client, storage, backup_options(checksum=True))
        assert summary.verified
    async with (
        target(tmp_path / "to", ApiVersion.V1, stores=2, replicas=2) as (embedded, client),
        open_storage(url, no_credentials=True) as storage,
    ):
        restored = await restore(client, storage, restore_options(checksum=True))
        assert restored.verified
        assert await _pairs(embedded) == sorted(make_pairs())
    names = [key.removeprefix("backups/monday/") for key in gcs_server.keys(bucket)]
    assert all("/" not in name for name in names)
    assert "backupmeta" in names


async def _pairs(embedded: EmbeddedCluster) -> list[tuple[bytes, bytes]]:
    return await held(embedded)


async def test_the_condition_goes_with_the_upload(script: Script) -> None:
    script.answers = {"GET": [refusal(404)], "POST": [refusal(412, "conditionNotMet")]}
    async with at(script) as storage:
        assert not await storage.create("backup.lock", b"x")
    assert "ifGenerationMatch=0" in script.requests[-1][1]


# --- answers that the emulator does not give ---


async def test_long_lists_come_in_pages(script: Script) -> None:
    def page(key: str, **more: str) -> Answer:
        body = json.dumps({"items": [{"name": f"p/{key}", "size": "7"}], **more}).encode()
        return Answer(200, body, {"Content-Type": "application/json"})

    script.answers = {"GET": [page("a", nextPageToken="t1"), page("b")]}
    async with at(script) as storage:
        assert [info async for info in storage.list()] == [ObjectInfo("a", 7), ObjectInfo("b", 7)]
    assert "pageToken=t1" in script.requests[1][1]


async def test_prepare_drops_the_upload_that_it_begins(script: Script) -> None:
    script.answers = {
        "POST": [Answer(200, headers={"Location": f"{script.endpoint}/upload/1"})],
        "DELETE": [Answer(499)],
    }
    async with at(script) as storage:
        await storage.prepare()
    assert [request[:2] for request in script.requests][1:] == [("DELETE", "/upload/1")]
    assert "uploadType=resumable" in script.requests[0][1]


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (refusal(503), StorageUnavailableError, r"asks to try later \(503\)"),
        (refusal(500), StorageUnavailableError, r"asks to try later \(500\)"),
        (refusal(429), StorageUnavailableError, r"asks to try later \(429\)"),
        (refusal(408), StorageUnavailableError, r"asks to try later \(408\)"),
        (refusal(403, "rateLimitExceeded"), StorageUnavailableError, r"asks to try later \(403\)"),
        (refusal(403, "forbidden"), AuthenticationError, r"refuses access \(403\)"),
        (refusal(401), AuthenticationError, "asks for credentials, and none are used"),
        (refusal(400), StorageError, "answers with HTTP status 400"),
        (refusal(501), StorageError, "answers with HTTP status 501"),
        (
            refusal(404, message="The specified bucket does not exist."),
            StorageNotFoundError,
            "there is no bucket bucket",
        ),
        (Answer(200, b"xx", claimed_length=9), StorageUnavailableError, "broke off"),
        (Answer(200, b"data", {"x-goog-hash": "crc32c=AAAAAA=="}), StorageUnavailableError, "its own checksum"),
    ],
)
@pytest.mark.parametrize("call", ["read", "list"])
async def test_errors_are_ours(script: Script, answer: Answer, kind: type[TikvBrError], text: str, call: str) -> None:
    if call == "list" and (answer.status == 200 or answer.status == 404):
        pytest.skip("of reading only")
    script.answers = {"GET": [answer]}
    async with at(script) as storage:
        if call == "list":
            with pytest.raises(kind, match=text):
                _ = [info async for info in storage.list()]
            return
        error = await caught(storage)
    assert type(error) is kind
    assert re.search(text, str(error)), str(error)


async def test_a_throttled_call_is_tried_again(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "RETRY_FOR_S", 10.0)
    script.answers = {"GET": [refusal(503), refusal(429), Answer(200, b"data")]}
    async with at(script) as storage:
        assert await storage.read("a") == b"data"


async def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "RETRY_FOR_S", 0.01)
    async with open_storage("gcs://bucket/p?endpoint=http://127.0.0.1:1", no_credentials=True) as storage:
        error = await caught(storage)
    assert isinstance(error, StorageUnavailableError)
    assert "cannot be reached" in str(error)


# --- parameters ---


@pytest.mark.parametrize("given", ["storage-class=ARCHIVE", "predefined-acl=public", "endpoint=ftp://x", "region=x"])
def test_what_no_store_would_take(given: str) -> None:
    with pytest.raises(InvalidOptionError):
        open_storage(f"gcs://bucket/p?{given}")


# --- credentials ---


def token() -> Answer:
    body = json.dumps({"access_token": "the-token", "expires_in": 3600, "token_type": "Bearer"}).encode()
    return Answer(200, body, {"Content-Type": "application/json"})


@pytest.fixture
def key(script: Script) -> dict[str, str]:
    script.answers = {"TOKEN": [token()], "GET": [Answer(200, b"data")]}
    return service_account(f"{script.endpoint}/token")


@pytest.fixture(autouse=True)
def no_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)


async def test_the_file_of_the_url_is_used_and_sent(script: Script, key: dict[str, str], tmp_path: Path) -> None:
    text = json.dumps(key)
    path = tmp_path / "key.json"
    path.write_text(text)
    async with at(script, f"&credentials-file={path}", no_credentials=False) as storage:
        assert await storage.read("a") == b"data"
        backend = storage.backend()
    assert backend.gcs.credentials_blob == text
    assert script.requests[-1][2]["authorization"] == "Bearer the-token"
    async with storage_of_backend(backend) as at_store:
        assert await at_store.read("a") == b"data"
    async with at(script, f"&credentials-file={path}", no_credentials=False, send_credentials=False) as storage:
        assert storage.backend().gcs.credentials_blob == ""


@pytest.mark.parametrize("environment_first", [True, False])
async def test_the_order_of_environment_and_url(
    script: Script, key: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment_first: bool
) -> None:
    for name in ("url", "environment"):
        (tmp_path / name).write_text(json.dumps({**key, "private_key_id": name}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "environment"))
    more = f"&credentials-file={tmp_path / 'url'}"
    async with at(script, more, no_credentials=False, environment_first=environment_first) as storage:
        used = json.loads(storage.backend().gcs.credentials_blob)["private_key_id"]
    assert used == ("environment" if environment_first else "url")
    async with at(script, no_credentials=False) as storage:
        assert json.loads(storage.backend().gcs.credentials_blob)["private_key_id"] == "environment"


async def test_those_of_a_connection_go_first(script: Script, key: dict[str, str], tmp_path: Path) -> None:
    credentials = GcsCredentials(blob=json.dumps(key))
    more = f"&credentials-file={tmp_path / 'missing'}"
    async with at(script, more, no_credentials=False, credentials=credentials) as storage:
        assert await storage.read("a") == b"data"
        assert storage.backend().gcs.credentials_blob == credentials.blob
    assert "PRIVATE" not in repr(credentials)


async def test_a_users_own_can_be_used_but_not_sent(script: Script, tmp_path: Path) -> None:
    user = {"type": "authorized_user", "client_id": "id", "client_secret": "hunter2", "refresh_token": "hunter2"}
    path = tmp_path / "gcloud" / "application_default_credentials.json"
    path.parent.mkdir()
    path.write_text(json.dumps(user))
    async with at(script, no_credentials=False) as storage:
        with pytest.raises(InvalidOptionError, match="'authorized_user' are of no use to the stores") as found:
            storage.backend()
        assert found.value.parameter == "send_credentials_to_tikv"
        assert "send-credentials-to-tikv to false" in str(found.value)
    async with at(script, no_credentials=False, send_credentials=False) as storage:
        assert storage.backend().gcs.credentials_blob == ""


async def test_a_session_without_a_document(script: Script) -> None:
    from google.oauth2.credentials import Credentials

    script.answers = {"GET": [Answer(200, b"data")]}
    credentials = GcsCredentials(session=Credentials(token="session-token"))  # type: ignore[no-untyped-call]
    async with at(script, no_credentials=False, credentials=credentials) as storage:
        assert await storage.read("a") == b"data"
        assert script.requests[-1][2]["authorization"] == "Bearer session-token"
        with pytest.raises(InvalidOptionError, match="no JSON document"):
            storage.backend()


async def test_no_credentials_at_all(script: Script) -> None:
    async with at(script, no_credentials=False) as storage:
        error = await caught(storage)
    assert isinstance(error, AuthenticationError)
    assert "there are no Google credentials" in str(error)
    script.answers = {"GET": [Answer(200, b"data")]}
    async with at(script) as storage:
        assert await storage.read("a") == b"data"
    assert "authorization" not in script.requests[-1][2]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(refusal(400, "invalid_grant"), AuthenticationError), (refusal(503), StorageUnavailableError)],
)
async def test_a_token_that_is_refused(
    script: Script, key: dict[str, str], answer: Answer, kind: type[TikvBrError]
) -> None:
    script.answers["TOKEN"] = [answer]
    async with at(script, no_credentials=False, credentials=GcsCredentials(blob=json.dumps(key))) as storage:
        assert type(await caught(storage)) is kind


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "which does not exist"),
        (b"\xff\xfe", "which is no JSON document"),
        (b"hunter2", "is no JSON document"),
        (b"[]", "is no JSON document"),
        (b'{"type": "service_account", "private_key": "hunter2"}', "holds no usable Google credentials"),
        (b'{"type": "hunted"}', "holds no usable Google credentials"),
    ],
)
async def test_files_that_hold_no_credentials(script: Script, tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "key.json"
    if content is not None:
        path.write_bytes(content)
    async with at(script, f"&credentials-file={path}", no_credentials=False) as storage:
        error = await caught(storage)
    assert isinstance(error, InvalidOptionError)
    assert text in str(error)
    assert str(path) in str(error)
    assert script.requests == []


async def test_a_store_refuses_what_it_cannot_read(script: Script) -> None:
    async with at(script) as storage:
        backend = storage.backend()
    backend.gcs.credentials_blob = '{"type": "authorized_user"}'
    with pytest.raises(InvalidOptionError, match="of no use to the stores"):
        storage_of_backend(backend)
