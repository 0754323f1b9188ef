"""A backupmeta as JSON, laid out as ``tikv-br debug decode`` lays it out, and back.

Go writes the fields of a structure in the order of its declaration and leaves empty ones out; keys and digests are put
first, as hexadecimal digits; other bytes are Base64. The DDLs, which are JSON themselves, stand as what they are. Source:
tikv-br, ``pkg/utils/json.go``; kvproto, ``brpb.pb.go``.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, MutableSequence
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from airflow_provider_tikvbr.exceptions import BackupInvalidError, InvalidOptionError
from airflow_provider_tikvbr.proto import brpb_pb2

JSON_NAME: Final = "backupmeta.json"

# Fields of the Go structure, by how Go shows them where they are empty. Those of the first kind are no part of a raw
# backup and not known here.
_FOREIGN: Final = {
    "Schemas": "[]",
    "SchemaIndex": "<nil>",
    "DdlIndexes": "<nil>",
    "Policies": "[]",
    "NewCollationsEnabled": "",
}
_ALIASES: Final = {"start-version": "StartVersion", "end-version": "EndVersion"}
# In the order of Go's structure, behind what is spelled in its own way.
_ORDER: Final = (
    *("cluster_id", "cluster_version", "br_version", "version", "file_index", "start_version", "end_version"),
    *("is_raw_kv", "raw_range_index", "backup_result", "api_version"),
)
_HEX: Final = {"File": ("sha256", "start_key", "end_key"), "RawRange": ("start_key", "end_key")}


def encode_json(meta: brpb_pb2.BackupMeta) -> bytes:
    """Write a backupmeta as JSON, byte for byte as tikv-br does.

    :raises BackupInvalidError: its DDLs are not JSON.
    """
    said: dict[str, Any] = {}
    if meta.files:
        said["files"] = [_with_hex(file) for file in meta.files]
    if meta.raw_ranges:
        said["raw_ranges"] = [_with_hex(keys) for keys in meta.raw_ranges]
    if meta.ddls:
        try:
            ddls = json.loads(meta.ddls)
        except ValueError:
            raise BackupInvalidError("the backupmeta is damaged: its DDLs are not JSON") from None
        if ddls is not None:
            said["ddls"] = ddls
    said |= _plain(meta, _ORDER)
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    # As Go does, so that the text may stand in a web page.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode()


def decode_json(data: bytes) -> brpb_pb2.BackupMeta:
    """Read a backupmeta from JSON of :func:`encode_json`, or tikv-br's.

    :raises BackupInvalidError: it is no such JSON; it says where.
    """
    try:
        said = json.loads(data)
    except ValueError as err:
        raise BackupInvalidError(f"{JSON_NAME} is not JSON: {err}") from None
    if not isinstance(said, dict):
        raise BackupInvalidError(f"{JSON_NAME} holds no object")
    ddls = said.pop("ddls", None)
    meta = brpb_pb2.BackupMeta()
    _fill(meta, said, "", hex_fields=True)
    if ddls is not None:
        meta.ddls = json.dumps(ddls, ensure_ascii=False, separators=(",", ":")).encode()
    return meta


def _with_hex(message: Message) -> dict[str, Any]:
    names = _HEX[message.DESCRIPTOR.name]
    digits = {name: value.hex() for name in names if (value := getattr(message, name))}
    return digits | _plain(message, [field.name for field in message.DESCRIPTOR.fields if field.name not in names])


def _plain(message: Message, names: Any) -> dict[str, Any]:
    """The fields as Go writes them by itself, without the empty ones."""
    said: dict[str, Any] = {}
    for name in names:
        field = message.DESCRIPTOR.fields_by_name[name]
        value = getattr(message, name)
        if isinstance(value, Message):
            if message.HasField(name):
                said[name] = _plain(value, [each.name for each in value.DESCRIPTOR.fields])
        elif value:
            said[name] = [_value(field, each) for each in value] if _is_repeated(value) else _value(field, value)
    return said


def _is_repeated(value: Any) -> bool:
    """Whether a field has a list of values: its descriptor tells so in another way in each version of the library."""
    return isinstance(value, MutableSequence)


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if field.message_type is not None:
        return _plain(value, [each.name for each in field.message_type.fields])
    return value


def _fill(message: Message, said: Mapping[str, Any], place: str, *, hex_fields: bool) -> None:
    for name, value in said.items():
        where = f"{place}.{name}" if place else name
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            raise BackupInvalidError(f"{JSON_NAME} has the field {where}, which no backup of raw data has")
        if value is None:
            continue
        in_hex = hex_fields and name in _HEX.get(message.DESCRIPTOR.name, ())
        try:
            if field.message_type is None:
                _set(message, field, value, in_hex=in_hex)
            elif _is_repeated(getattr(message, name)):
                for at, each in enumerate(value):
                    below = hex_fields and name in ("files", "raw_ranges")
                    _fill(getattr(message, name).add(), each, f"{where}[{at}]", hex_fields=below)
            else:
                getattr(message, name).SetInParent()
                _fill(getattr(message, name), value, where, hex_fields=False)
        except (TypeError, ValueError, AttributeError, binascii.Error) as err:
            raise BackupInvalidError(f"{JSON_NAME} has a value that {where} cannot have: {err}") from None


def _set(message: Message, field: Any, value: Any, *, in_hex: bool) -> None:
    def read(text: Any) -> Any:
        if field.type != FieldDescriptor.TYPE_BYTES:
            return text
        return bytes.fromhex(text) if in_hex else base64.b64decode(text, validate=True)

    if _is_repeated(getattr(message, field.name)):
        getattr(message, field.name).extend(map(read, value))
    else:
        setattr(message, field.name, read(value))


def show_field(meta: brpb_pb2.BackupMeta, name: str) -> str:
    """One field as ``tikv-br debug decode --field`` prints it.

    :param name: of Go's structure, such as ``ClusterId``; or ``start-version``, ``end-version``.
    :raises InvalidOptionError: there is none of that name.
    """
    wanted = _ALIASES.get(name, name)
    if wanted in _FOREIGN:
        return _FOREIGN[wanted]
    fields = {"".join(word.title() for word in f.name.split("_")): f for f in meta.DESCRIPTOR.fields}
    field = fields.get(wanted)
    if field is None:
        known = ", ".join([*_ALIASES, *sorted([*fields, *_FOREIGN])])
        raise InvalidOptionError(f"field {name!r} is not known: give {known}", parameter="field")
    value = getattr(meta, field.name)
    if field.message_type is not None:
        if _is_repeated(value):
            return f"[{' '.join(_compact(each) for each in value)}]"
        return _compact(value) if meta.HasField(field.name) else "<nil>"
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return named.name if named is not None else str(value)
    if isinstance(value, bytes):
        return f"[{' '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _compact(message: Message) -> str:
    """A message as Go's library for Protocol Buffers prints it: each field as ``name:value`` and a blank."""
    parts: list[str] = []
    for field, value in message.ListFields():
        for each in value if _is_repeated(value) else [value]:
            if field.message_type is not None:
                parts.append(f"{field.name}:<{_compact(each)}> ")
            else:
                parts.append(f"{field.name}:{_quoted(each) if isinstance(each, (bytes, str)) else each} ")
    return "".join(parts)


_ESCAPES: Final = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x22: '\\"', 0x5C: "\\\\"}


def _quoted(value: bytes | str) -> str:
    data = value.encode() if isinstance(value, str) else value
    shown = (_ESCAPES.get(c) or (chr(c) if 0x20 <= c < 0x7F else f"\\{c:03o}") for c in data)
    return f'"{"".join(shown)}"'
