"""Every gRPC status, every PD error and every region error has a meaning; and real answers have the right one.

``answers.jsonl`` holds what PD and TiKV 9.0.0-beta.2 answered to requests made to fail.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr import exceptions as e
from airflow_provider_tikvbr.proto import (
    brpb_pb2,
    errorpb_pb2,
    import_sstpb_pb2,
    kvrpcpb_pb2,
    metapb_pb2,
    methods,
    pdpb_pb2,
)
from airflow_provider_tikvbr.tikv import errors
from airflow_provider_tikvbr.tikv.model import Peer, Region

ANSWERS = {
    answer["case"]: answer
    for line in (Path(__file__).parent / "answers.jsonl").read_text().splitlines()
    for answer in [json.loads(line)]
}
PD_METHOD = methods.PD_GET_REGION.path
KV_METHOD = methods.KV_RAW_GET.path


def rpc_error(code: grpc.StatusCode, details: str = "some text") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


def at_store(code: grpc.StatusCode, details: str = "some text") -> e.TikvBrError:
    return errors.from_grpc(rpc_error(code, details), method=KV_METHOD, address="a:1", store_id=4)


def at_pd(code: grpc.StatusCode, details: str = "some text") -> e.TikvBrError:
    return errors.from_grpc(rpc_error(code, details), method=PD_METHOD, address="pd:1")


# --- gRPC status codes ---

TRANSIENT = {"CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNAVAILABLE"}


def test_every_status_code_is_in_the_table() -> None:
    assert set(errors.STATUS_CODES) == set(grpc.StatusCode)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_status_code_has_a_meaning(code: grpc.StatusCode) -> None:
    store, pd = at_store(code), at_pd(code)
    if code.name in TRANSIENT:
        assert type(store) is e.StoreUnavailableError
        assert type(pd) is e.PDUnavailableError
        assert pd.endpoints == ("pd:1",)
    else:
        assert isinstance(store, e.TerminalError)
        assert type(store) is type(pd)
    assert store.attrs() == {"address": "a:1", "method": KV_METHOD, "code": code.name, "store_id": 4}
    assert "store 4 (a:1)" in str(store)
    assert "PD at pd:1" in str(pd)


def test_status_codes_that_say_more() -> None:
    assert type(at_pd(grpc.StatusCode.PERMISSION_DENIED)) is e.AuthenticationError
    assert type(at_pd(grpc.StatusCode.UNAUTHENTICATED)) is e.AuthenticationError
    assert type(at_pd(grpc.StatusCode.UNIMPLEMENTED)) is e.UnsupportedError
    assert "did not answer in time" in str(at_store(grpc.StatusCode.DEADLINE_EXCEEDED))


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Ssl handshake failed: CERTIFICATE_VERIFY_FAILED", e.AuthenticationError),
        (grpc.StatusCode.UNAVAILABLE, "Ssl handshake failed: WRONG_VERSION_NUMBER", e.AuthenticationError),
        (grpc.StatusCode.UNAVAILABLE, "not leader", e.StoreUnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (9 vs. 4)", e.ProtocolError),
        (grpc.StatusCode.FAILED_PRECONDITION, "mismatch cluster id, need 7 but got 1", e.WrongClusterError),
    ],
)
def test_the_text_of_a_status_may_tell_more(code: grpc.StatusCode, details: str, kind: type[e.TikvBrError]) -> None:
    assert type(at_store(code, details)) is kind


def test_a_long_text_is_one_short_line() -> None:
    message = str(at_store(grpc.StatusCode.UNAVAILABLE, "first\nsecond " + "x" * 5000))
    assert "\n" not in message
    assert len(message) < 500


# --- region errors ---

FIELDS = [f.name for f in errorpb_pb2.Error.DESCRIPTOR.fields if f.name != "message"]
NOT_NOW = {
    "max_timestamp_not_synced",
    "read_index_not_ready",
    "proposal_in_merging_mode",
    "data_is_not_ready",
    "region_not_initialized",
    "recovery_in_progress",
    "flashback_in_progress",
    "is_witness",
    "mismatch_peer_id",
    "bucket_version_not_match",
    "undetermined_result",
}
REFUSED = {"key_not_in_region", "raft_entry_too_large", "disk_full", "flashback_not_prepared"}
OWN = {
    "not_leader": e.NotLeaderError,
    "region_not_found": e.RegionNotFoundError,
    "epoch_not_match": e.EpochNotMatchError,
    "server_is_busy": e.ServerIsBusyError,
    "stale_command": e.StaleCommandError,
    "store_not_match": e.StoreNotMatchError,
}


def region_error(**fields: Any) -> e.TikvBrError:
    return errors.from_region_error(errorpb_pb2.Error(**fields), region_id=7, store_id=4, address="a:1")


def test_every_region_error_is_in_the_table() -> None:
    assert set(errors.REGION_ERRORS) == set(FIELDS)
    assert NOT_NOW | REFUSED | set(OWN) == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_region_error_has_a_meaning(name: str) -> None:
    message = errorpb_pb2.Error(message="some text")
    getattr(message, name).SetInParent()
    error = errors.from_region_error(message, region_id=7, store_id=4, address="a:1")
    expected = OWN.get(name) or (e.RegionRefusedError if name in REFUSED else e.RegionNotReadyError)
    assert type(error) is expected
    assert isinstance(error, (e.RegionError, e.RegionRefusedError))
    assert error.kind == name
    assert (error.region_id, error.store_id, error.address) == (7, 4, "a:1")
    assert "store 4 (a:1), region 7" in str(error)


def test_not_leader_carries_the_leader() -> None:
    error = region_error(not_leader=errorpb_pb2.NotLeader(region_id=7, leader=metapb_pb2.Peer(id=9, store_id=5)))
    assert isinstance(error, e.NotLeaderError)
    assert error.leader == Peer(9, 5)
    assert "its leader is on store 5" in str(error)


def test_not_leader_may_not_know_the_leader() -> None:
    error = region_error(not_leader=errorpb_pb2.NotLeader(region_id=7))
    assert isinstance(error, e.NotLeaderError)
    assert error.leader is None


def test_epoch_not_match_carries_the_regions() -> None:
    region = metapb_pb2.Region(
        id=7,
        start_key=b"a",
        end_key=b"b",
        region_epoch=metapb_pb2.RegionEpoch(conf_ver=2, version=3),
        peers=[metapb_pb2.Peer(id=9, store_id=5)],
    )
    error = region_error(epoch_not_match=errorpb_pb2.EpochNotMatch(current_regions=[region]))
    assert isinstance(error, e.EpochNotMatchError)
    assert error.current_regions == (Region.of(region),)
    assert error.current_regions[0].version == 3


@pytest.mark.parametrize(("backoff_ms", "estimated_ms", "seconds"), [(1500, 0, 1.5), (0, 250, 0.25), (0, 0, 0)])
def test_a_busy_store_says_how_long(backoff_ms: int, estimated_ms: int, seconds: float) -> None:
    busy = errorpb_pb2.ServerIsBusy(reason="scheduler is busy", backoff_ms=backoff_ms, estimated_wait_ms=estimated_ms)
    error = region_error(server_is_busy=busy)
    assert isinstance(error, e.ServerIsBusyError)
    assert error.backoff_s == seconds
    assert "scheduler is busy" in str(error)


def test_disk_full_gives_its_reason() -> None:
    assert "disk is nearly full" in str(region_error(disk_full=errorpb_pb2.DiskFull(reason="disk is nearly full")))


def test_a_text_alone_may_pass() -> None:
    error = region_error(message="ingest file conflict")
    assert isinstance(error, e.RegionNotReadyError)
    assert error.kind == "message"


def test_no_valid_split_key_does_not_pass() -> None:
    error = region_error(message="no valid key found for split.")
    assert isinstance(error, e.RegionRefusedError)
    assert error.kind == errors.NO_VALID_SPLIT_KEY


# --- PD's errors ---


def test_every_pd_error_is_in_the_table() -> None:
    assert set(errors.PD_ERRORS) == set(pdpb_pb2.ErrorType.values())


@pytest.mark.parametrize("number", pdpb_pb2.ErrorType.values())
def test_every_pd_error_has_a_meaning(number: int) -> None:
    name = pdpb_pb2.ErrorType.Name(number)
    error = errors.from_pd_error(pdpb_pb2.Error(type=name, message="some text"), method=PD_METHOD, address="pd:1")
    assert type(error) is errors.PD_ERRORS[number]
    assert (error.code, error.address, error.method) == (name, "pd:1", PD_METHOD)
    assert "PD at pd:1" in str(error)


def test_a_pd_error_of_the_future() -> None:
    message = pdpb_pb2.Error.FromString(b"\x08\x63\x12\x03new")
    error = errors.from_pd_error(message, method=PD_METHOD, address="pd:1")
    assert type(error) is e.ProtocolError
    assert error.code == "99"


def test_a_cluster_without_stores() -> None:
    error = errors.from_pd_error(pdpb_pb2.Error(type="NOT_BOOTSTRAPPED"), method=PD_METHOD, address="pd:1")
    assert "no TiKV store has joined it" in str(error)


# --- real answers ---


def real_region_error(case: str) -> e.TikvBrError:
    answer = ANSWERS[case]
    method = next(m for m in vars(methods).values() if isinstance(m, methods.Method) and m.path == answer["method"])
    response = method.response.FromString(base64.b64decode(answer["response"]))
    error = response.error if method.path.startswith("/import_sstpb") else response.region_error
    return errors.from_region_error(error, region_id=32, store_id=1)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("raw_get_stale_epoch", e.EpochNotMatchError),
        ("raw_get_region_not_found", e.RegionNotFoundError),
        ("raw_get_store_not_match", e.StoreNotMatchError),
        ("raw_get_not_leader", e.NotLeaderError),
        ("raw_checksum", e.RegionRefusedError),
        ("split_stale_epoch", e.EpochNotMatchError),
        ("split_no_valid_key", e.RegionRefusedError),
        ("multi_ingest_probe", e.StoreNotMatchError),
        ("ingest_not_downloaded", e.StaleCommandError),
        ("ingest_not_leader", e.NotLeaderError),
    ],
)
def test_real_region_errors(case: str, kind: type[e.TikvBrError]) -> None:
    assert type(real_region_error(case)) is kind


def test_a_real_epoch_error_tells_every_region() -> None:
    error = real_region_error("raw_get_stale_epoch")
    assert isinstance(error, e.EpochNotMatchError)
    first, *others = error.current_regions
    assert (first.id, first.start, first.end, first.version) == (32, b"idx\x0080\x01", b"user:00000770", 8)
    assert [p.store_id for p in first.peers] == [1, 5, 4]
    assert others


@pytest.mark.parametrize(
    ("case", "store_id", "kind"),
    [
        ("ingest_other_api", 1, e.ApiVersionError),
        ("backup_bad_cf", 1, e.ProtocolError),
        ("get_mode", 1, e.UnsupportedError),
        ("wrong_cluster_id", None, e.WrongClusterError),
    ],
)
def test_real_statuses(case: str, store_id: int | None, kind: type[e.TikvBrError]) -> None:
    answer = ANSWERS[case]
    error = errors.from_grpc(
        rpc_error(grpc.StatusCode[answer["code"]], answer["details"]),
        method=answer["method"],
        address="a:1",
        store_id=store_id,
    )
    assert type(error) is kind


@pytest.mark.parametrize(
    "case", ["download_missing_file", "download_wrong_length", "download_bit_flip", "download_wrong_cipher"]
)
def test_real_download_failures_that_stay(case: str) -> None:
    response = import_sstpb_pb2.DownloadResponse.FromString(base64.b64decode(ANSWERS[case]["response"]))
    error = errors.from_download_error(response.error.message, file="1/2_default.sst", store_id=1, address="a:1")
    assert isinstance(error, e.BackupFileError)
    assert error.file == "1/2_default.sst"
    assert "store 1 (a:1) could not fetch the backup file 1/2_default.sst" in str(error)


def test_download_failures_that_may_pass() -> None:
    text = "Cannot read s3://bucket/x into /data: error trying to connect: Connection refused"
    error = errors.from_download_error(text, file="x", store_id=1, address="a:1")
    assert type(error) is e.DownloadFailedError


@pytest.mark.parametrize("text", ["AccessDenied", "InvalidAccessKeyId", "403 Forbidden", "CredentialsNotLoaded"])
def test_a_store_that_the_storage_refuses_is_not_asked_for_ever(text: str) -> None:
    error = errors.from_download_error(f"Cannot read s3://b/p: {text}", file="x", store_id=1, address="a:1")
    assert type(error) is e.AuthenticationError
    assert "check its credentials" in str(error)


def test_what_a_store_quotes_of_its_credentials_is_hidden() -> None:
    azure = brpb_pb2.AzureBlobStorage(shared_key="c2hhcmVkIGtleQ==", access_sig="sv=1&sig=ca%2Fnary%3D&se=2")
    azure.encryption_key.encryption_key = "Y3VzdG9tZXIga2V5"
    account = {
        "type": "service_account",
        "private_key": "-----BEGIN-----\nMIIcanaryOfTheAccount\n",
        "private_key_id": "0ca",
    }
    s3 = brpb_pb2.S3(secret_access_key="canary/s3", session_token="canary token", external_id="between us")
    for backend, texts in (
        (brpb_pb2.StorageBackend(azure_blob_storage=azure), ("c2hhcmVkIGtleQ==", "?se=2&sig=ca%2Fnary%3D", "ca/nary=")),
        (brpb_pb2.StorageBackend(azure_blob_storage=azure), ("x-ms-encryption-key: Y3VzdG9tZXIga2V5",)),
        (brpb_pb2.StorageBackend(s3=s3), ("x-amz-security-token:canary token", "canary%2Fs3", "between us")),
        (brpb_pb2.StorageBackend(gcs=brpb_pb2.GCS(credentials_blob=json.dumps(account))), ("MIIcanaryOfTheAccount",)),
    ):
        secrets = errors.secrets_of(backend)
        for text in texts:
            said = f"{errors.from_download_error(f'Cannot read: {text}!', file='x', store_id=1, address='a:1', secrets=secrets)}"
            assert said.endswith("***!"), said
    assert errors.secrets_of(brpb_pb2.StorageBackend(gcs=brpb_pb2.GCS(credentials_blob="[broken"))) == ("[broken",) * 2


@pytest.mark.parametrize("case", ["raw_get_other_api", "raw_get_v1ttl_stamp"])
def test_real_api_version_refusals(case: str) -> None:
    response = kvrpcpb_pb2.RawGetResponse.FromString(base64.b64decode(ANSWERS[case]["response"]))
    error = errors.from_kv_error(response.error, method=KV_METHOD, region_id=32, store_id=1, address="a:1")
    assert type(error) is e.ApiVersionError


def test_other_refusals_of_raw_calls() -> None:
    response = kvrpcpb_pb2.RawPutResponse.FromString(base64.b64decode(ANSWERS["raw_put_ttl"]["response"]))
    error = errors.from_kv_error(
        response.error, method=methods.KV_RAW_PUT.path, region_id=32, store_id=1, address="a:1"
    )
    assert type(error) is e.ProtocolError
    assert "refused RawPut for region 32: ttl is not enabled" in str(error)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("store_missing", e.PDUnavailableError),
        ("get_operator_none", e.RegionNotFoundError),
        ("scatter_empty", e.RegionNotFoundError),
    ],
)
def test_real_pd_errors(case: str, kind: type[e.TikvBrError]) -> None:
    answer = ANSWERS[case]
    method = next(m for m in vars(methods).values() if isinstance(m, methods.Method) and m.path == answer["method"])
    header = method.response.FromString(base64.b64decode(answer["response"])).header
    assert type(errors.from_pd_error(header.error, method=method.path, address="pd:1")) is kind
