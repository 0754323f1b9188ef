"""A backupmeta as bytes and back, in steps that a running event loop hardly notices.

Half a million files make more than a hundred megabytes. Protobuf holds Python's global lock for all of one call, so even in
a thread one call for everything would stop the event loop for a second. Messages may be cut between their fields, and
the parts be read one after another (protobuf, "Encoding", on the merging of messages).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from airflow_provider_tikvbr.proto import brpb_pb2

# Milliseconds of work each.
FILES_AT_ONCE = 4096
BYTES_AT_ONCE = 1 << 20

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5

# Fields of newer writers that say nothing of raw data and are not read here (``brpb.proto`` of kvproto, messages
# ``BackupMeta``, ``File`` and ``MetaFile``): by their numbers, how each is written.
_UNREAD = {
    brpb_pb2.BackupMeta.DESCRIPTOR.name: {
        **dict.fromkeys((16, 20), _LENGTH),
        **dict.fromkeys((21, 23, 25, 26), _VARINT),
    },
    brpb_pb2.File.DESCRIPTOR.name: {13: _LENGTH},
    brpb_pb2.MetaFile.DESCRIPTOR.name: {6: _LENGTH},
}


def dump_meta(meta: brpb_pb2.BackupMeta) -> bytes:
    """The message as bytes, the fields in the order of their numbers."""
    if len(meta.files) <= FILES_AT_ONCE:
        return meta.SerializeToString(deterministic=True)
    return b"".join(_dumped(meta))


def _dumped(meta: brpb_pb2.BackupMeta) -> Iterator[bytes]:
    files = brpb_pb2.BackupMeta.FILES_FIELD_NUMBER
    before, after = brpb_pb2.BackupMeta(), brpb_pb2.BackupMeta()
    for field, value in meta.ListFields():
        if field.number == files:
            continue
        part = before if field.number < files else after
        if field.message_type is None and not isinstance(value, (int, str, bytes)):
            getattr(part, field.name).extend(value)
        elif field.message_type is None:
            setattr(part, field.name, value)
        else:
            getattr(part, field.name).MergeFrom(value)
    yield before.SerializeToString(deterministic=True)
    for at in range(0, len(meta.files), FILES_AT_ONCE):
        some = brpb_pb2.BackupMeta(files=meta.files[at : at + FILES_AT_ONCE])
        yield some.SerializeToString(deterministic=True)
    yield after.SerializeToString(deterministic=True)


def parse_meta(data: bytes) -> brpb_pb2.BackupMeta:
    """The message that bytes make.

    :raises DecodeError: they make none.
    """
    meta = brpb_pb2.BackupMeta()
    start = at = 0
    while at < len(data):
        at = _end_of_field(data, at)
        if at - start >= BYTES_AT_ONCE:
            meta.MergeFromString(data[start:at])
            start = at
    # Also what ends too early: protobuf says so.
    meta.MergeFromString(data[start:])
    return meta


def _end_of_field(data: bytes, at: int) -> int:
    tag, at = _varint(data, at)
    kind = tag & 7
    if kind == _LENGTH:
        length, at = _varint(data, at)
        return at + length
    if kind == _VARINT:
        return _varint(data, at)[1]
    if kind in (_EIGHT_BYTES, _FOUR_BYTES):
        return at + (8 if kind == _EIGHT_BYTES else 4)
    raise DecodeError("a field of a kind that backupmeta does not have")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise DecodeError("a number that does not end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def foreign_field(messages: Iterable[Message]) -> int | None:
    """The number of a field that nobody writes into a backupmeta, or not in this way; None if there is none.

    Nothing seals a backupmeta. One bit that turns over can make the entry of a file look like a field that is not known;
    protobuf passes over such a one, and the file would be missed by nobody, the comparison included.
    """
    for message in messages:
        unknown, unread = UnknownFieldSet(message), _UNREAD.get(message.DESCRIPTOR.name, {})
        for at in range(len(unknown)):
            if unread.get(unknown[at].field_number) != unknown[at].wire_type:
                return int(unknown[at].field_number)
    return None
