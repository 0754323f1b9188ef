from __future__ import annotations

import pytest

from airflow_provider_tikvbr.exceptions import (
    ApiVersionError,
    AuthenticationError,
    NotLeaderError,
    ProtocolError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    StoreUnavailableError,
    TikvBrError,
    WrongClusterError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, errorpb_pb2, kvrpcpb_pb2
from airflow_provider_tikvbr.rawbr.responses import clean, existing_file, finished_keys, from_backup_error
from airflow_provider_tikvbr.tikv.errors import secrets_of
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, KeyRange
from airflow_provider_tikvbr.tikv.model import Store

STORE = Store(id=3, address="10.0.0.3:20160")
URL = "s3://bucket/prefix"


# Texts as TiKV 9 answers them.
@pytest.mark.parametrize(
    ("msg", "kind", "fatal"),
    [
        ('Io(Os { code: 2, kind: NotFound, message: "No such file or directory" })', StorageNotFoundError, True),
        ('Io(Custom { kind: NotFound, error: "bad storage backend " })', StorageNotFoundError, True),
        ('Io(Os { code: 13, kind: PermissionDenied, message: "Permission denied" })', StorageError, True),
        ('Io(Os { code: 28, kind: StorageFull, message: "No space left on device" })', StorageError, True),
        ('Io(Custom { kind: Other, error: "failed to put object ... code: Some("NoSuchBucket") ..." })',
         StorageNotFoundError, True),
        ('Io(Custom { kind: Other, error: "... code: Some("AccessDenied") ..." })', AuthenticationError, True),
        ('Io(Custom { kind: Other, error: "... code: Some("SlowDown"), message: Please reduce ..." })',
         StorageUnavailableError, False),
        ('Io(Custom { kind: Other, error: "put object timeout 15min, ..." })', StorageUnavailableError, False),
        ('Io(Custom { kind: Other, error: "... Connection refused (os error 111)" })', StorageUnavailableError, False),
        ('Io(Custom { kind: Other, error: "connection reset by peer" })', StorageUnavailableError, False),
        ('Other("[components/backup/src/endpoint.rs:1165]: invalid backup version, cur: V1, dst: V1ttl")',
         ApiVersionError, True),
        ('Other("[components/backup/src/writer.rs:127]: new EncrypterReader error: UnknownEncryption")',
         StorageError, True),
        ('Other("[components/backup/src/endpoint.rs:1187]: fail to flush causal ts, Pd(Other(timeout))")',
         StoreUnavailableError, False),
        ('Io(Custom { kind: PermissionDenied, error: "... code: Some("ExpiredToken") ..." })', AuthenticationError, True),
        ("", StorageError, True),
    ],
)  # fmt: skip
def test_texts(msg: str, kind: type[TikvBrError], fatal: bool) -> None:
    error, ends = from_backup_error(brpb_pb2.Error(msg=msg), store=STORE, url=URL)
    assert (type(error), ends) == (kind, fatal)
    assert error.store_id == 3
    assert str(error).startswith("store 3 (10.0.0.3:20160) ")


@pytest.mark.parametrize(
    ("msg", "name"),
    [
        ('Io(Custom { kind: AlreadyExists, error: "[1/2_5_default.sst] is already exists in /backups/monday" })',
         "1/2_5_default.sst"),
        ('Io(Custom { kind: Other, error: "[1/2_5_default.sst] is already exists in /backups/monday" })', None),
        ('Io(Os { code: 17, kind: AlreadyExists, message: "File exists" })', None),
        ("", None),
    ],
)  # fmt: skip
def test_a_file_in_the_way(msg: str, name: str | None) -> None:
    assert existing_file(brpb_pb2.Error(msg=msg)) == name


def test_region_error_ends_nothing() -> None:
    region = errorpb_pb2.Error(not_leader=errorpb_pb2.NotLeader(region_id=7))
    error, fatal = from_backup_error(brpb_pb2.Error(region_error=region), store=STORE, url=URL)
    assert isinstance(error, NotLeaderError)
    assert not fatal


def test_cluster_id_error_ends_all() -> None:
    detail = brpb_pb2.ClusterIDError(current=1, request=2)
    error, fatal = from_backup_error(brpb_pb2.Error(cluster_id_error=detail), store=STORE, url=URL)
    assert isinstance(error, WrongClusterError)
    assert fatal
    assert "cluster 1, not to 2" in str(error)


def test_transactional_error_is_left_to_the_leader() -> None:
    error, fatal = from_backup_error(brpb_pb2.Error(kv_error=kvrpcpb_pb2.KeyError()), store=STORE, url=URL)
    assert isinstance(error, ProtocolError)
    assert not fatal


def test_texts_are_short_and_without_secrets() -> None:
    s3 = brpb_pb2.S3(secret_access_key="hush", session_token="token")
    secrets = secrets_of(brpb_pb2.StorageBackend(s3=s3))
    assert set(secrets) == {"hush", "token"}
    assert secrets_of(brpb_pb2.StorageBackend(noop=brpb_pb2.Noop())) == ()
    text = clean('Other("[a/b.rs:12]: bad\n key hush")' + "x" * 1000, secrets)
    assert text.startswith('Other("bad key ***")')
    assert len(text) == 400


def response(start: bytes, end: bytes, *files: tuple[bytes, bytes], version: int = 0) -> brpb_pb2.BackupResponse:
    return brpb_pb2.BackupResponse(
        start_key=start,
        end_key=end,
        api_version=version,  # type: ignore[arg-type]
        files=[brpb_pb2.File(name="f", start_key=s, end_key=e) for s, e in files],
    )


def finished(got: brpb_pb2.BackupResponse, *, start: bytes = b"b", end: bytes = b"m", dst: int = 0) -> KeyRange[ApiKey]:
    return finished_keys(
        got,
        request=brpb_pb2.BackupRequest(start_key=start, end_key=end, dst_api_version=dst),  # type: ignore[arg-type]
        codec=KeyCodec(ApiVersion.V1),
        dst_codec=KeyCodec(ApiVersion(dst)),
        store=STORE,
    )


def test_good_responses() -> None:
    assert finished(response(b"c", b"d", (b"c", b"d"))) == KeyRange(ApiKey(b"c"), ApiKey(b"d"))
    assert finished(response(b"", b""), start=b"", end=b"") == KeyRange(ApiKey(b""), ApiKey(b""))
    converted = response(b"c", b"", (b"r\0\0\0c", b"r\0\0\1"), version=2)
    assert finished(converted, end=b"", dst=2) == KeyRange(ApiKey(b"c"), ApiKey(b""))


@pytest.mark.parametrize(
    ("got", "dst"),
    [
        (response(b"a", b"d"), 0),
        (response(b"c", b"n"), 0),
        (response(b"c", b""), 0),
        (response(b"d", b"c"), 0),
        (response(b"c", b"c"), 0),
        (response(b"c", b"d", (b"c", b"e")), 0),
        (response(b"c", b"d", (b"c", b"")), 0),
        (response(b"c", b"d", version=0), 2),
        (response(b"c", b"d", (b"c", b"d"), version=2), 2),
    ],
)
def test_responses_that_make_no_sense(got: brpb_pb2.BackupResponse, dst: int) -> None:
    with pytest.raises(ProtocolError, match=r"store 3 \(10\.0\.0\.3:20160\) ") as caught:
        finished(got, dst=dst)
    assert caught.value.store_id == 3
