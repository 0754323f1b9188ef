"""From what servers answer to the package's error tree: gRPC status codes, PD's errors and TiKV's region errors.

What a status or an error kind means for the next try is decided here and nowhere else. Sources: protocol definitions
``errorpb.proto`` and ``pdpb.proto``; what PD and TiKV of versions 5 to 9 answer; gRPC's status code guide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message

from airflow_provider_tikvbr.exceptions import (
    ApiVersionError,
    AuthenticationError,
    BackupFileError,
    DownloadFailedError,
    EpochNotMatchError,
    NotLeaderError,
    PDUnavailableError,
    ProtocolError,
    RegionError,
    RegionNotFoundError,
    RegionNotReadyError,
    RegionRefusedError,
    ServerIsBusyError,
    StaleCommandError,
    StoreNotMatchError,
    StoreUnavailableError,
    TikvBrError,
    UnsupportedError,
    WrongClusterError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, errorpb_pb2, pdpb_pb2
from airflow_provider_tikvbr.secret_text import hide
from airflow_provider_tikvbr.tikv.model import Peer, Region
from airflow_provider_tikvbr.tikv.redaction import show_answer

UNAVAILABLE: Final = "unavailable"
# Fields of the JSON of Google credentials that let somebody in.
_SECRET_FIELD: Final = re.compile("key|secret|token$")
MAX_TEXT: Final = 400

# What each gRPC status means. UNAVAILABLE here stands for "the server cannot be reached or does not answer now":
# PDUnavailableError or StoreUnavailableError, depending on whom we asked.
STATUS_CODES: Final[Mapping[grpc.StatusCode, type[TikvBrError] | str]] = {
    grpc.StatusCode.OK: ProtocolError,
    grpc.StatusCode.CANCELLED: UNAVAILABLE,
    grpc.StatusCode.UNKNOWN: UNAVAILABLE,
    grpc.StatusCode.INVALID_ARGUMENT: ProtocolError,
    grpc.StatusCode.DEADLINE_EXCEEDED: UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND: ProtocolError,
    grpc.StatusCode.ALREADY_EXISTS: ProtocolError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION: ProtocolError,
    grpc.StatusCode.ABORTED: UNAVAILABLE,
    grpc.StatusCode.OUT_OF_RANGE: ProtocolError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.INTERNAL: UNAVAILABLE,
    grpc.StatusCode.UNAVAILABLE: UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS: ProtocolError,
}

# Texts that mean something else than their status code does, lower case. TiKV ends refused calls with UNKNOWN, and
# gRPC reports a failed TLS handshake as UNAVAILABLE like any other failed connection.
STATUS_TEXTS: Final[tuple[tuple[str, type[TikvBrError]], ...]] = (
    ("mismatch cluster id", WrongClusterError),
    ("incompatibleapiversion", ApiVersionError),
    ("api version in request does not match", ApiVersionError),
    ("invalidcf", ProtocolError),
    ("message larger than max", ProtocolError),
    ("certificate_verify_failed", AuthenticationError),
    ("certificate_required", AuthenticationError),
    ("bad_certificate", AuthenticationError),
    ("unknown_ca", AuthenticationError),
    ("wrong_version_number", AuthenticationError),
    ("peer name", AuthenticationError),
)

# What each field of errorpb.Error means.
REGION_ERRORS: Final[Mapping[str, type[RegionError] | type[RegionRefusedError]]] = {
    "not_leader": NotLeaderError,
    "region_not_found": RegionNotFoundError,
    # Checked after the epoch, so a fresher look at the region would not help.
    "key_not_in_region": RegionRefusedError,
    "epoch_not_match": EpochNotMatchError,
    "server_is_busy": ServerIsBusyError,
    "stale_command": StaleCommandError,
    "store_not_match": StoreNotMatchError,
    "raft_entry_too_large": RegionRefusedError,
    "max_timestamp_not_synced": RegionNotReadyError,
    "read_index_not_ready": RegionNotReadyError,
    "proposal_in_merging_mode": RegionNotReadyError,
    "data_is_not_ready": RegionNotReadyError,
    "region_not_initialized": RegionNotReadyError,
    "disk_full": RegionRefusedError,
    "recovery_in_progress": RegionNotReadyError,
    "flashback_in_progress": RegionNotReadyError,
    "flashback_not_prepared": RegionRefusedError,
    "is_witness": RegionNotReadyError,
    "mismatch_peer_id": RegionNotReadyError,
    "bucket_version_not_match": RegionNotReadyError,
    # Every request of ours may be sent twice, so not knowing whether it was applied is no reason to stop.
    "undetermined_result": RegionNotReadyError,
}

# An error with a text only: newer kinds than we know, and some that never got a field.
MESSAGE_ONLY: Final = "message"
NO_VALID_SPLIT_KEY: Final = "no_valid_split_key"

# What TiKV says of a file that is not there, of another length, damaged, or read with the wrong key; lower case.
BAD_FILE_TEXTS: Final = (
    "no such file or directory",
    "nosuchkey",
    "downloaded size",
    "corruption: block checksum mismatch",
    "corruption: bad table magic number",
)

# A storage refuses whoever asks; the texts are those of AWS, Google, Azure and their SDKs.
REFUSED_TEXTS: Final = (
    "accessdenied",
    "access denied",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "expiredtoken",
    "invalidtoken",
    "forbidden",
    "credentialsnotloaded",
    "couldn't find aws credentials",
)

PD_ERRORS: Final[Mapping[int, type[TikvBrError]]] = {
    pdpb_pb2.OK: ProtocolError,
    pdpb_pb2.UNKNOWN: PDUnavailableError,
    pdpb_pb2.NOT_BOOTSTRAPPED: PDUnavailableError,
    pdpb_pb2.STORE_TOMBSTONE: StoreUnavailableError,
    pdpb_pb2.ALREADY_BOOTSTRAPPED: ProtocolError,
    pdpb_pb2.INCOMPATIBLE_VERSION: UnsupportedError,
    pdpb_pb2.REGION_NOT_FOUND: RegionNotFoundError,
    pdpb_pb2.GLOBAL_CONFIG_NOT_FOUND: ProtocolError,
    pdpb_pb2.DUPLICATED_ENTRY: ProtocolError,
    pdpb_pb2.ENTRY_NOT_FOUND: ProtocolError,
    pdpb_pb2.INVALID_VALUE: ProtocolError,
    pdpb_pb2.DATA_COMPACTED: ProtocolError,
    pdpb_pb2.REGIONS_NOT_CONTAIN_ALL_KEY_RANGE: RegionNotReadyError,
}


def is_pd_method(method: str) -> bool:
    """Whether a gRPC path is one of PD's."""
    return method.startswith(("/pdpb.", "/keyspacepb."))


def from_grpc(
    err: grpc.RpcError, *, method: str, address: str, store_id: int | None = None, reach: str | None = None
) -> TikvBrError:
    """Classify a failed gRPC call.

    :param err: what grpc raised.
    :param method: gRPC path of the call.
    :param address: host and port that was called.
    :param store_id: the store that was called; None for PD.
    :param reach: where the call went, if that is not the address.
    """
    code = err.code()
    details = str(err.details() or "")
    kind = STATUS_CODES.get(code, ProtocolError)
    low = details.lower()
    kind = next((cls for text, cls in STATUS_TEXTS if text in low), kind)
    fields: dict[str, Any] = {"address": address, "method": method, "code": code.name, "store_id": store_id}
    who = server_name(address, store_id, reach)
    name = method.rpartition("/")[2]
    reason = one_line(details) or code.name
    if kind is UNAVAILABLE:
        verb = "did not answer in time" if code is grpc.StatusCode.DEADLINE_EXCEEDED else f"is not available ({reason})"
        if is_pd_method(method):
            return PDUnavailableError(f"{who} {verb} ({name})", endpoints=(address,), **fields)
        return StoreUnavailableError(f"{who} {verb} ({name})", **fields)
    if kind is WrongClusterError:
        return WrongClusterError(f"{who} belongs to another cluster: {reason}", **fields)
    if kind is AuthenticationError:
        return AuthenticationError(
            f"{who} and this client do not agree on TLS or on who may connect: {reason}", **fields
        )
    if kind is UnsupportedError:
        return UnsupportedError(f"{who} does not know the call {name}: it is too old or too new for it", **fields)
    if kind is ApiVersionError:
        return ApiVersionError(f"{who} has another API version than the request ({name}): {reason}", **fields)
    return ProtocolError(f"{who} refused {name}: {code.name}: {reason}", **fields)


def region_error_kind(error: errorpb_pb2.Error) -> str:
    """Name of the field of a region error that is set, or ``message``."""
    for field in error.DESCRIPTOR.fields:
        if field.message_type is not None and error.HasField(field.name):
            return str(field.name)
    return MESSAGE_ONLY


def from_region_error(
    error: errorpb_pb2.Error, *, region_id: int | None, store_id: int | None, address: str | None = None
) -> TikvBrError:
    """Classify a region error.

    :param error: what the store answered.
    :param region_id: the region that was addressed.
    :param store_id: the store that was addressed.
    :param address: host and port of that store.
    """
    kind = region_error_kind(error)
    fields: dict[str, Any] = {"kind": kind, "region_id": region_id, "store_id": store_id, "address": address}
    who = f"{server_name(address, store_id)}, region {region_id}"
    text = show_answer(one_line(error.message))
    if kind == "not_leader":
        leader = Peer.of(error.not_leader.leader) if error.not_leader.leader.id else None
        hint = f"its leader is on store {leader.store_id}" if leader else "its leader is not known"
        return NotLeaderError(f"{who}: this store does not lead the region, {hint}", leader=leader, **fields)
    if kind == "epoch_not_match":
        regions = tuple(Region.of(r) for r in error.epoch_not_match.current_regions)
        return EpochNotMatchError(f"{who}: the region has changed: {text}", current_regions=regions, **fields)
    if kind == "server_is_busy":
        busy = error.server_is_busy
        # Newer stores estimate the wait instead of asking for a pause.
        wait_s = max(busy.backoff_ms, busy.estimated_wait_ms) / 1000
        return ServerIsBusyError(
            f"{who}: the store is busy: {show_answer(busy.reason) or text}", backoff_s=wait_s, **fields
        )
    if kind == MESSAGE_ONLY:
        if "no valid key" in text.lower():
            fields["kind"] = NO_VALID_SPLIT_KEY
            return RegionRefusedError(f"{who}: {text}", **fields)
        return RegionNotReadyError(f"{who}: {text or 'an error of unknown kind'}", **fields)
    cls = REGION_ERRORS[kind]
    return cls(f"{who}: {kind.replace('_', ' ')}: {show_answer(_detail(error, kind)) or text}", **fields)


def from_pd_error(error: pdpb_pb2.Error, *, method: str, address: str) -> TikvBrError:
    """Classify an error in PD's response header.

    :param error: what PD answered.
    :param method: gRPC path of the call.
    :param address: host and port of PD.
    """
    name = method.rpartition("/")[2]
    cls = PD_ERRORS.get(error.type, ProtocolError)
    known = error.type in PD_ERRORS
    code = pdpb_pb2.ErrorType.Name(error.type) if known else str(error.type)
    fields: dict[str, Any] = {"address": address, "method": method, "code": code}
    message = f"PD at {address} refused {name}: {code}: {one_line(error.message)}"
    if error.type == pdpb_pb2.NOT_BOOTSTRAPPED:
        message = f"PD at {address} has no cluster yet: no TiKV store has joined it ({name})"
    if issubclass(cls, PDUnavailableError):
        return cls(message, endpoints=(address,), **fields)
    if issubclass(cls, RegionError):
        return cls(message, kind=code.lower(), **fields)
    return cls(message, **fields)


def from_kv_error(text: str, *, method: str, region_id: int, store_id: int, address: str) -> TikvBrError:
    """Classify the ``error`` string of a raw call's response.

    :param text: what the store answered.
    """
    fields: dict[str, Any] = {"region_id": region_id, "store_id": store_id, "address": address, "method": method}
    name = method.rpartition("/")[2]
    message = f"{server_name(address, store_id)} refused {name} for region {region_id}: {show_answer(one_line(text))}"
    low = text.lower()
    # A scan's refusal is the debug text of the same error.
    if "api version in request does not match" in low or "apiversionnotmatched" in low:
        return ApiVersionError(message, **fields)
    return ProtocolError(message, **fields)


def from_download_error(
    text: str, *, file: str, store_id: int, address: str, secrets: tuple[str, ...] = ()
) -> TikvBrError:
    """Classify the ``error.message`` of a Download.

    A file that is missing, cut short, damaged or enciphered with another key stays so, and so do wrong credentials; all
    the rest may pass.

    :param text: what the store answered.
    :param file: name of the file in the backup.
    :param secrets: texts that must not appear in the error.
    """
    text = hide(text, secrets)
    fields: dict[str, Any] = {"file": file, "store_id": store_id, "address": address}
    message = f"{server_name(address, store_id)} could not fetch the backup file {file}: {one_line(text)}"
    low = text.lower()
    if any(mark in low for mark in BAD_FILE_TEXTS):
        remedy = "put back what is wrong from a copy of the backup, or use another backup"
        return BackupFileError(f"{message}: it is missing, damaged or not the backup's; {remedy}", **fields)
    # Credentials that have run out are renewed for the next try, where whoever gives them out does so.
    if any(mark in low for mark in REFUSED_TEXTS) and "expiredtoken" not in low:
        del fields["file"]
        return AuthenticationError(f"{message}: the storage refuses the store, so check its credentials", **fields)
    return DownloadFailedError(message, **fields)


def secrets_of(backend: brpb_pb2.StorageBackend) -> tuple[str, ...]:
    """The texts of a storage message that a store may quote, and that must never be shown."""
    s3, azure, blob = backend.s3, backend.azure_blob_storage, backend.gcs.credentials_blob
    found = [s3.access_key, s3.secret_access_key, s3.session_token, s3.external_id]
    found += [azure.shared_key, azure.access_sig, azure.encryption_key.encryption_key]
    # A store's HTTP library shows the URL of a request, but may have put its parameters into another order.
    found += [part.partition("=")[2] for part in azure.access_sig.split("&") if part.startswith("sig=")]
    try:
        account = json.loads(blob) if blob else {}
    except ValueError:
        account = {}
    values = account.items() if isinstance(account, dict) else ()
    found += [blob, *(value for name, value in values if isinstance(value, str) and _SECRET_FIELD.search(name))]
    return tuple(text for text in (*found, *map(unquote, found)) if text)


def server_name(address: str | None, store_id: int | None, reach: str | None = None) -> str:
    """How messages call a server: ``store 4 (host:port)`` or ``PD at host:port``.

    :param reach: where it is reached, if that is not the address.
    """
    if address and reach and reach != address:
        where = f"at {address} (reached at {reach})"
        return f"PD {where}" if store_id is None else f"store {store_id} {where}"
    if store_id is not None:
        return f"store {store_id} ({address})" if address else f"store {store_id}"
    return f"PD at {address}" if address else "the server"


def _detail(error: errorpb_pb2.Error, kind: str) -> str:
    detail: Message = getattr(error, kind)
    return str(getattr(detail, "reason", "") or "")


def one_line(text: str) -> str:
    """A server's text on one line, cut where it becomes a debug dump."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 3] + "..."
