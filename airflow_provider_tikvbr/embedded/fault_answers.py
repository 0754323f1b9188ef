"""The errors that servers put into their answers: what stands in them, and where each answer carries them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded import checks
from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.proto import brpb_pb2, errorpb_pb2, pdpb_pb2, tikvpb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange, RegionKey

#: A region error with a text only.
TEXT_ONLY = "message"
#: Every kind of region error.
REGION_ERRORS = tuple(str(field.name) for field in errorpb_pb2.Error.DESCRIPTOR.fields)
#: Every error in the header of PD's answers.
PD_ERRORS = tuple(name for name in pdpb_pb2.ErrorType.DESCRIPTOR.values_by_name if name != "OK")

# The answers' fields that hold a region error, an error text, and PD's error; in this order they are looked for.
_CARRIERS = {
    "region_error": (("region_error",), ("error",), ("error", "store_error"), ("error", "region_error")),
    "text_error": (("error",), ("error", "msg"), ("error", "message")),
    "pd_error": (("header", "error"),),
}
_TYPES = {"region_error": "errorpb.Error", "text_error": None, "pd_error": "pdpb.Error"}


def _carrier(response: type[Message], kind: str) -> tuple[str, ...] | None:
    for path in _CARRIERS[kind]:
        descriptor: Any = response.DESCRIPTOR
        found: Any = None
        for name in path:
            found = descriptor.fields_by_name.get(name) if descriptor is not None else None
            if found is None:
                break
            descriptor = found.message_type
        if found is None or (descriptor.full_name if descriptor is not None else None) != _TYPES[kind]:
            continue
        # A message of another error tree: its text stands for the whole.
        if kind == "text_error" and found.containing_type.full_name == "errorpb.Error":
            continue
        return path
    return None


def carries(response: type[Message], kind: str) -> bool:
    """Whether an answer can hold an error: of any kind but these three, every answer meets it."""
    if kind not in _CARRIERS:
        return True
    if response is tikvpb_pb2.BatchCommandsResponse:
        return kind != "pd_error"
    return _carrier(response, kind) is not None


def refusal(answer: Message | None, response: type[Message], kind: str, error: Message | str) -> Message:
    """An answer that holds an error and nothing else.

    :param answer: what would have been answered, where it is known already.
    :param response: its class.
    """
    if isinstance(answer, tikvpb_pb2.BatchCommandsResponse):
        refused = tikvpb_pb2.BatchCommandsResponse(request_ids=answer.request_ids)
        for each in answer.responses:
            command = each.WhichOneof("cmd")
            inner = getattr(each, command)
            out = getattr(refused.responses.add(), command)
            out.CopyFrom(inner if _carrier(type(inner), kind) is None else refusal(inner, type(inner), kind, error))
        return refused
    made = response()
    if isinstance(answer, brpb_pb2.BackupResponse):
        # A store tells which piece it could not back up.
        made.MergeFrom(brpb_pb2.BackupResponse(start_key=answer.start_key, end_key=answer.end_key))
    path = _carrier(response, kind)
    if path is None:
        return made
    *outer, last = path
    holder: Any = made
    for name in outer:
        holder = getattr(holder, name)
    if isinstance(error, str):
        setattr(holder, last, error)
    else:
        getattr(holder, last).CopyFrom(error)
        if path == ("error", "store_error"):
            # TiKV repeats the text beside it.
            holder.message = getattr(error, "message", "")
    return made


# --- region errors ---


def region_error(
    kind: str, *, region: RegionState | None, store_id: int | None, chance: random.Random
) -> errorpb_pb2.Error:
    """A region error as a store tells it.

    :param kind: field of ``errorpb.Error``, or ``message``.
    :param region: the region that was asked for, if it is known.
    :param store_id: the store that tells it.
    :param chance: where a store may say one thing or another.
    """
    region_id = 0 if region is None else region.id
    error = errorpb_pb2.Error(message=f"injected {kind}")
    if kind == TEXT_ONLY:
        return error
    detail = getattr(error, kind)
    detail.SetInParent()
    if "region_id" in detail.DESCRIPTOR.fields_by_name:
        detail.region_id = region_id
    fill = _DETAILS.get(kind)
    if fill is not None:
        fill(error, region, store_id or 0, chance)
    return error


def _not_leader(error: errorpb_pb2.Error, region: RegionState | None, store_id: int, chance: random.Random) -> None:
    error.message = f"peer is not leader for region {region.id if region else 0}, leader may None"
    others = [] if region is None else [peer for peer in region.peers if peer.store_id != store_id]
    # A store in the middle of an election does not know; one that has lost it names another peer.
    if others and chance.random() < 0.5:
        error.not_leader.leader.CopyFrom(chance.choice(others).message())


def _epoch(error: errorpb_pb2.Error, region: RegionState | None, _store_id: int, _chance: random.Random) -> None:
    error.message = f"EpochNotMatch current epoch of region {region.id if region else 0} is newer"
    if region is not None:
        error.epoch_not_match.current_regions.append(region.message())


def _busy(error: errorpb_pb2.Error, _region: RegionState | None, _store_id: int, chance: random.Random) -> None:
    error.server_is_busy.reason = "scheduler is busy"
    error.server_is_busy.backoff_ms = chance.choice((0, 5, 50))


def _key(error: errorpb_pb2.Error, region: RegionState | None, _store_id: int, _chance: random.Random) -> None:
    if region is not None:
        error.CopyFrom(checks.key_not_in_region(RegionKey(region.end + b"\x00"), region))


def _store(error: errorpb_pb2.Error, _region: RegionState | None, store_id: int, _chance: random.Random) -> None:
    error.message = f"to store id {store_id}, mine {store_id + 1}"
    error.store_not_match.request_store_id = store_id
    error.store_not_match.actual_store_id = store_id + 1


def _entry(error: errorpb_pb2.Error, region: RegionState | None, _store_id: int, _chance: random.Random) -> None:
    error.message = f"raft entry is too large, region {region.id if region else 0}, entry size 8388609"
    error.raft_entry_too_large.entry_size = (8 << 20) + 1


def _disk(error: errorpb_pb2.Error, _region: RegionState | None, store_id: int, _chance: random.Random) -> None:
    error.message = f"store {store_id} disk full"
    error.disk_full.store_id.append(store_id)
    error.disk_full.reason = "the disk of the store is almost full"


def _peer(error: errorpb_pb2.Error, region: RegionState | None, store_id: int, _chance: random.Random) -> None:
    peer = None if region is None else region.peer_on(store_id)
    error.mismatch_peer_id.request_peer_id = peer.id if peer else 0
    error.mismatch_peer_id.store_peer_id = (peer.id if peer else 0) + 1


def _reason(error: errorpb_pb2.Error, _region: RegionState | None, _store_id: int, _chance: random.Random) -> None:
    error.read_index_not_ready.reason = "can not read index due to merge"


def _bucket(error: errorpb_pb2.Error, region: RegionState | None, _store_id: int, _chance: random.Random) -> None:
    error.bucket_version_not_match.version = 2
    if region is not None:
        error.bucket_version_not_match.keys.extend([region.start, region.end])


def _result(error: errorpb_pb2.Error, _region: RegionState | None, _store_id: int, _chance: random.Random) -> None:
    error.undetermined_result.message = "the result of the proposal is not known"


_Fill = Callable[[errorpb_pb2.Error, "RegionState | None", int, random.Random], None]
_DETAILS: dict[str, _Fill] = {
    "not_leader": _not_leader,
    "epoch_not_match": _epoch,
    "server_is_busy": _busy,
    "key_not_in_region": _key,
    "store_not_match": _store,
    "raft_entry_too_large": _entry,
    "disk_full": _disk,
    "mismatch_peer_id": _peer,
    "read_index_not_ready": _reason,
    "bucket_version_not_match": _bucket,
    "undetermined_result": _result,
}


# --- which region a message is about ---


def regions_of(message: Any, topology: Topology) -> Iterator[RegionState]:
    """The regions that a request or a message of a backup stream concerns, as they are now."""
    codec = topology.codec
    names = message.DESCRIPTOR.fields_by_name
    if isinstance(message, (brpb_pb2.BackupRequest, brpb_pb2.BackupResponse)):
        keys = KeyRange(ApiKey(message.start_key), ApiKey(message.end_key))
        yield from topology.scan(codec.region_range(keys))
    elif isinstance(message, pdpb_pb2.ScanRegionsRequest):
        yield from topology.scan(KeyRange(RegionKey(message.start_key), RegionKey(message.end_key)), message.limit)
    elif isinstance(message, pdpb_pb2.BatchScanRegionsRequest):
        for each in message.ranges:
            yield from topology.scan(KeyRange(RegionKey(each.start_key), RegionKey(each.end_key)))
    elif "region_key" in names:
        yield topology.region_of(RegionKey(message.region_key))
    else:
        for region_id in _ids(message, names):
            region = topology.by_id(region_id)
            if region is not None:
                yield region


def _ids(message: Any, names: Any) -> Iterator[int]:
    if "sst" in names:
        yield message.sst.region_id
    elif "context" in names:
        yield message.context.region_id
    elif "regions_id" in names and message.regions_id:
        yield from message.regions_id
    elif "region_id" in names:
        yield message.region_id
