"""The four forms of a key, and the one place where they are turned into each other.

==========  =============================================  ================  ==========================================
form        where it occurs                                V1, V1TTL         V2
==========  =============================================  ================  ==========================================
user key    applications, ``--start`` and ``--end``        K                 K
API key     raw calls, backup requests and responses,      K                 ``r`` + 3-byte keyspace id + K
            backupmeta, SplitRegion
region key  region boundaries, PD look-ups, the range of   K                 memcomparable(API key)
            a Download
engine key  SST files after the leading ``z``, the range   K                 memcomparable(API key) + 8-byte descending
            of an Ingest                                                     timestamp
==========  =============================================  ================  ==========================================

Source: TiKV, ``components/api_version/src`` and ``components/codec``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Generic, NewType, TypeVar

from airflow_provider_tikvbr.tikv.redaction import show_key

UserKey = NewType("UserKey", bytes)
ApiKey = NewType("ApiKey", bytes)
RegionKey = NewType("RegionKey", bytes)
EngineKey = NewType("EngineKey", bytes)

K = TypeVar("K", UserKey, ApiKey, RegionKey, EngineKey)

GROUP = 8
RAW_MODE = b"r"
RAW_MODE_END = b"s"
MAX_KEYSPACE_ID = (1 << 24) - 1
MAX_TS = (1 << 64) - 1

# The timestamp that TiKV gives to pairs which a backup converts from V1 or V1TTL to V2.
CONVERTED_TS = 1


class ApiVersion(enum.IntEnum):
    """How a cluster encodes raw pairs; the numbers are those of ``kvrpcpb.APIVersion``."""

    V1 = 0
    V1TTL = 1
    V2 = 2

    @classmethod
    def parse(cls, text: str) -> ApiVersion:
        """Read ``v1``, ``V1TTL``, ... in any case.

        :raises ValueError: the text names no API version.
        """
        try:
            return cls[text.strip().upper()]
        except KeyError:
            raise ValueError(f"{text!r} is not an API version: give v1, v1ttl or v2") from None

    @property
    def in_context(self) -> ApiVersion:
        """The version that a request context carries: a V1TTL store takes requests stamped V1 only."""
        return ApiVersion.V2 if self is ApiVersion.V2 else ApiVersion.V1


@dataclass(frozen=True, slots=True)
class KeyRange(Generic[K]):
    """A half-open range ``[start, end)``; an empty end means no upper bound, an empty start no lower one."""

    start: K
    end: K

    def __repr__(self) -> str:
        return f"KeyRange(start={show_key(self.start)}, end={show_key(self.end)})"

    def contains(self, key: K) -> bool:
        """Whether the key lies in the range."""
        return self.start <= key and (not self.end or key < self.end)

    def covers(self, other: KeyRange[K]) -> bool:
        """Whether the other range lies wholly inside this one."""
        return self.start <= other.start and (not self.end or (bool(other.end) and other.end <= self.end))

    def intersect(self, other: KeyRange[K]) -> KeyRange[K] | None:
        """The part that both ranges share, or None."""
        start = max(self.start, other.start)
        end = min(self.end, other.end) if self.end and other.end else (self.end or other.end)
        return KeyRange(start, end) if not end or start < end else None


EVERYTHING: KeyRange[UserKey] = KeyRange(UserKey(b""), UserKey(b""))


def encode_memcomparable(data: bytes) -> bytes:
    """Encode so that bytes order survives concatenation: groups of eight, each followed by 0xFF minus its padding."""
    out = bytearray()
    full = len(data) // GROUP * GROUP
    for i in range(0, full, GROUP):
        out += data[i : i + GROUP]
        out.append(0xFF)
    pad = GROUP - (len(data) - full)
    out += data[full:]
    out += bytes(pad)
    out.append(0xFF - pad)
    return bytes(out)


def decode_memcomparable(data: bytes) -> tuple[bytes, bytes]:
    """Undo :func:`encode_memcomparable`.

    :return: the decoded bytes, and what follows the encoded ones.
    :raises ValueError: the bytes are cut short or were not encoded this way.
    """
    out = bytearray()
    at = 0
    while True:
        group = data[at : at + GROUP + 1]
        if len(group) != GROUP + 1:
            raise ValueError(f"not a memcomparable key: {show_key(data)} ends inside a group")
        pad = 0xFF - group[GROUP]
        if pad > GROUP or any(group[GROUP - pad : GROUP]):
            raise ValueError(f"not a memcomparable key: {show_key(data)} has a wrong marker or padding at byte {at}")
        out += group[: GROUP - pad]
        at += GROUP + 1
        if pad:
            return bytes(out), data[at:]


def region_boundary(key: RegionKey) -> RegionKey:
    """Where a store starts a region that it is told to split at a key.

    It cuts off whatever follows a memcomparable key, in the belief that this is a timestamp; in V1 too, where a key may
    look encoded by chance (TiKV, ``components/raftstore/src/coprocessor/split_observer.rs``).
    """
    try:
        rest = decode_memcomparable(key)[1]
    except ValueError:
        return key
    return RegionKey(key[: len(key) - len(rest)])


def encode_desc_ts(ts: int) -> bytes:
    """Eight bytes that sort newer timestamps first."""
    return (MAX_TS - ts).to_bytes(8, "big")


def decode_desc_ts(data: bytes) -> int:
    """Undo :func:`encode_desc_ts`."""
    return MAX_TS - int.from_bytes(data, "big")


@dataclass(frozen=True, slots=True)
class KeyCodec:
    """Turns keys of one API version (and, in V2, one keyspace) from form to form.

    :param api_version: the API version of the cluster, or of the files, that the keys belong to.
    :param keyspace_id: V2's keyspace, 0 to 2^24-1; the default keyspace is 0.
    """

    api_version: ApiVersion
    keyspace_id: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.keyspace_id <= MAX_KEYSPACE_ID:
            raise ValueError(f"keyspace id {self.keyspace_id} is outside 0..{MAX_KEYSPACE_ID}")

    @property
    def is_v2(self) -> bool:
        """Whether keys have a prefix and an encoding at all."""
        return self.api_version is ApiVersion.V2

    @property
    def prefix(self) -> bytes:
        """What an API key starts with: four bytes in V2, none otherwise."""
        return RAW_MODE + self.keyspace_id.to_bytes(3, "big") if self.is_v2 else b""

    @property
    def prefix_end(self) -> bytes:
        """What ends this keyspace; empty where there is no prefix."""
        if self.is_v2 and self.keyspace_id == MAX_KEYSPACE_ID:
            # The end of all raw keys; TiKV takes a range with another first byte at its end for none of raw keys.
            return RAW_MODE_END
        return (int.from_bytes(self.prefix, "big") + 1).to_bytes(4, "big") if self.is_v2 else b""

    # --- user key <-> API key ---

    def api_key(self, key: UserKey) -> ApiKey:
        """Prefix a user key."""
        return ApiKey(self.prefix + key)

    def api_range(self, keys: KeyRange[UserKey]) -> KeyRange[ApiKey]:
        """Prefix a range; in V2 an open end becomes the end of the keyspace."""
        end = self.prefix + keys.end if keys.end else self.prefix_end
        return KeyRange(self.api_key(keys.start), ApiKey(end))

    def user_key(self, key: ApiKey) -> UserKey:
        """Strip the prefix.

        :raises ValueError: the key belongs to another keyspace, or to no raw keyspace.
        """
        if not key.startswith(self.prefix):
            raise ValueError(f"API key {show_key(key)} does not start with {self.prefix.hex()}")
        return UserKey(key[len(self.prefix) :])

    def user_range(self, keys: KeyRange[ApiKey]) -> KeyRange[UserKey]:
        """Strip the prefix from a range; the end of the keyspace becomes an open end."""
        end = UserKey(b"") if keys.end == self.prefix_end else self.user_key(keys.end)
        return KeyRange(self.user_key(keys.start), end)

    # --- API key <-> region key ---

    def region_key(self, key: ApiKey) -> RegionKey:
        """The form of region boundaries; an empty key stays empty, the open end."""
        return RegionKey(encode_memcomparable(key)) if self.is_v2 and key else RegionKey(key)

    def region_range(self, keys: KeyRange[ApiKey]) -> KeyRange[RegionKey]:
        """A range in the form of region boundaries."""
        return KeyRange(self.region_key(keys.start), self.region_key(keys.end))

    def api_key_of_region_key(self, key: RegionKey) -> ApiKey:
        """Decode a region boundary.

        :raises ValueError: in V2, the boundary is not a memcomparable key.
        """
        return ApiKey(decode_memcomparable(key)[0]) if self.is_v2 and key else ApiKey(key)

    def api_range_of_regions(self, keys: KeyRange[RegionKey]) -> KeyRange[ApiKey]:
        """Undo :meth:`region_range`.

        :raises ValueError: in V2, a boundary is not a memcomparable key.
        """
        return KeyRange(self.api_key_of_region_key(keys.start), self.api_key_of_region_key(keys.end))

    # --- API key <-> engine key ---

    def engine_key(self, key: ApiKey, ts: int = CONVERTED_TS) -> EngineKey:
        """The form inside RocksDB and SST files, without the leading ``z``.

        :param ts: V2's timestamp of the pair; not used otherwise.
        """
        return EngineKey(encode_memcomparable(key) + encode_desc_ts(ts)) if self.is_v2 else EngineKey(key)

    def split_engine_key(self, key: EngineKey) -> tuple[ApiKey, int]:
        """The API key and, in V2, the timestamp (0 otherwise) of an engine key.

        :raises ValueError: in V2, the key is not memcomparable or does not end with a timestamp.
        """
        if not self.is_v2:
            return ApiKey(key), 0
        api_key, rest = decode_memcomparable(key)
        if len(rest) != 8:
            raise ValueError(f"engine key {show_key(key)} does not end with a timestamp")
        return ApiKey(api_key), decode_desc_ts(rest)
