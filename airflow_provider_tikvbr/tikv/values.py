"""How a raw value is stored, per API version.

==========  ===========================================================================================
V1          the user value
V1TTL       user value + 8-byte big-endian expire time (Unix seconds, 0 = never)
V2          user value [+ 8-byte big-endian expire time] + one flag byte (bit 0: has an expire time,
            bit 1: the pair is deleted)
==========  ===========================================================================================

Source: TiKV, ``components/api_version/src``.
"""

from __future__ import annotations

from typing import NamedTuple

from airflow_provider_tikvbr.tikv.keys import ApiVersion

EXPIRE_LENGTH = 8
FLAG_EXPIRES = 0b01
FLAG_DELETED = 0b10


class RawValue(NamedTuple):
    """A stored value, taken apart.

    :param value: what the user wrote.
    :param expire_at: when it expires, in Unix seconds; 0 = never.
    :param deleted: whether it marks a deletion (V2 only).
    """

    value: bytes
    expire_at: int = 0
    deleted: bool = False

    def is_live(self, now: int) -> bool:
        """Whether a reader sees the pair.

        :param now: Unix seconds.
        """
        return not self.deleted and (not self.expire_at or self.expire_at > now)


def decode_value(api_version: ApiVersion, data: bytes) -> RawValue:
    """Take a stored value apart.

    :param data: the value as RocksDB and SST files hold it.
    :raises ValueError: the value is too short for its version, or has flags that nobody knows.
    """
    if api_version is ApiVersion.V1:
        return RawValue(data)
    if api_version is ApiVersion.V1TTL:
        return RawValue(data[:-EXPIRE_LENGTH], _expire_at(data, len(data)))
    if not data:
        raise ValueError("a V2 value without its flag byte")
    flags = data[-1]
    if flags == 0:
        return RawValue(data[:-1])
    if flags & ~(FLAG_EXPIRES | FLAG_DELETED):
        raise ValueError(f"a V2 value with unknown flags {flags:#04x}")
    deleted = bool(flags & FLAG_DELETED)
    if not flags & FLAG_EXPIRES:
        return RawValue(data[:-1], 0, deleted)
    end = len(data) - 1
    return RawValue(data[: end - EXPIRE_LENGTH], _expire_at(data, end), deleted)


def encode_value(api_version: ApiVersion, value: bytes, *, expire_at: int = 0, deleted: bool = False) -> bytes:
    """Put a stored value together.

    :param expire_at: when it expires, in Unix seconds; 0 = never.
    :param deleted: mark a deletion; ``value`` is usually empty then.
    :raises ValueError: the version cannot hold an expire time, or a deletion.
    """
    if deleted and api_version is not ApiVersion.V2:
        raise ValueError(f"{api_version.name} values cannot mark a deletion")
    if api_version is ApiVersion.V1:
        if expire_at:
            raise ValueError("V1 values cannot expire")
        return value
    if api_version is ApiVersion.V1TTL:
        return value + expire_at.to_bytes(EXPIRE_LENGTH, "big")
    flags = FLAG_DELETED if deleted else 0
    if not expire_at:
        return value + bytes((flags,))
    return value + expire_at.to_bytes(EXPIRE_LENGTH, "big") + bytes((flags | FLAG_EXPIRES,))


def _expire_at(data: bytes, end: int) -> int:
    """Read the eight bytes before ``end``."""
    if end < EXPIRE_LENGTH:
        raise ValueError(f"a value of {len(data)} bytes is too short to hold an expire time")
    return int.from_bytes(data[end - EXPIRE_LENGTH : end], "big")
