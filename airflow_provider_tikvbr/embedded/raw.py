"""Raw pairs of one API version on top of RocksDB: what a live pair is and how it is found.

Formats: TiKV, ``components/api_version/src`` (values) and ``src/storage/raw`` (reading).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from airflow_provider_tikvbr.embedded.engine import CF_DEFAULT, DATA_PREFIX, DataKey, StoreEngine
from airflow_provider_tikvbr.tikv.keys import (
    GROUP,
    ApiKey,
    ApiVersion,
    EngineKey,
    KeyCodec,
    KeyRange,
    RegionKey,
    encode_memcomparable,
)
from airflow_provider_tikvbr.tikv.values import EXPIRE_LENGTH, decode_value, encode_value

TS_LENGTH = 8
DELETED = encode_value(ApiVersion.V2, b"", deleted=True)
# An engine key does not tell keyspaces apart: the API key that is in it does.
CODECS = {version: KeyCodec(version) for version in ApiVersion}


class LivePair(NamedTuple):
    """A pair that is neither deleted nor expired.

    :param key: its API key.
    :param value: the user's value.
    :param expire: when it expires, in Unix seconds; 0 for never.
    :param data_key: its key in RocksDB.
    :param stored: its value in RocksDB.
    """

    key: ApiKey
    value: bytes
    expire: int
    data_key: DataKey
    stored: bytes


def decode_stored_memcomparable(data: bytes) -> bytes:
    """Decode what this store has encoded itself: the fast way, without checks."""
    body = b"".join([data[i : i + GROUP] for i in range(0, len(data), GROUP + 1)])
    return body[: len(body) - 0xFF + data[-1]]


@dataclass(frozen=True, slots=True)
class RawFormat:
    """How one API version stores raw pairs.

    :param api_version: the cluster's API version.
    """

    api_version: ApiVersion

    @property
    def _codec(self) -> KeyCodec:
        return CODECS[self.api_version]

    @property
    def is_v2(self) -> bool:
        """Whether keys carry timestamps."""
        return self.api_version is ApiVersion.V2

    @property
    def has_ttl(self) -> bool:
        """Whether pairs may expire."""
        return self.api_version is not ApiVersion.V1

    def value(self, value: bytes, ttl: int) -> bytes:
        """The stored form of a user's value.

        :param ttl: seconds to live from now; 0 for ever.
        """
        return encode_value(self.api_version, value, expire_at=int(time.time()) + ttl if ttl else 0)

    def put(self, key: ApiKey, value: bytes, ttl: int, ts: int) -> tuple[EngineKey, bytes]:
        """What a put writes."""
        return self._codec.engine_key(key, ts), self.value(value, ttl)

    def delete(self, key: ApiKey, ts: int) -> tuple[EngineKey, bytes | None]:
        """What a delete writes: in V2 a mark of its own timestamp."""
        return self._codec.engine_key(key, ts), DELETED if self.is_v2 else None


def region_bounds(keys: KeyRange[RegionKey]) -> KeyRange[EngineKey]:
    """A region's range as RocksDB is scanned: region keys are engine keys without timestamp."""
    return KeyRange(EngineKey(keys.start), EngineKey(keys.end))


class RawReader:
    """Reads the live raw pairs of one store.

    :param engine: the store's RocksDB.
    :param raw: how pairs are stored.
    """

    def __init__(self, *, engine: StoreEngine, raw: RawFormat) -> None:
        self._engine = engine
        self._raw = raw

    def get(self, key: ApiKey, cf: str = CF_DEFAULT) -> LivePair | None:
        """The live pair of a key."""
        if not self._raw.is_v2:
            found = EngineKey(key)
            stored = self._engine.get(found, cf)
            return None if stored is None else self._live(key, DataKey(DATA_PREFIX + found), stored)
        start = encode_memcomparable(key)
        # Timestamps are eight bytes, so the newest version is the first key after the bare encoding.
        newest = next(self._engine.items(KeyRange(EngineKey(start), EngineKey(start + b"\xff" * 9)), cf=cf), None)
        return None if newest is None else self._live(key, newest[0], newest[1])

    def _live(self, key: ApiKey, found: DataKey, stored: bytes) -> LivePair | None:
        pair = decode_value(self._raw.api_version, stored)
        return LivePair(key, pair.value, pair.expire_at, found, stored) if pair.is_live(int(time.time())) else None

    def scan(self, keys: KeyRange[EngineKey], *, reverse: bool = False, cf: str = CF_DEFAULT) -> Iterator[LivePair]:
        """The live pairs of a range in key order, or in reverse.

        :param keys: the range, in V2 without timestamps.
        :raises EngineClosedError: the store stops.
        """
        pairs = self._engine.guarded(self._engine.items(keys, reverse=reverse, cf=cf))
        if self._raw.api_version is ApiVersion.V1:
            return (LivePair(ApiKey(k[1:]), v, 0, k, v) for k, v in pairs)
        if self._raw.api_version is ApiVersion.V1TTL:
            return _live_v1ttl(pairs)
        return _live_v2(_newest_reverse(pairs) if reverse else _newest(pairs))


def _live_v1ttl(pairs: Iterator[tuple[DataKey, bytes]]) -> Iterator[LivePair]:
    now = int(time.time())
    for key, stored in pairs:
        expire = int.from_bytes(stored[-EXPIRE_LENGTH:], "big")
        if not 0 < expire <= now:
            yield LivePair(ApiKey(key[1:]), stored[:-EXPIRE_LENGTH], expire, key, stored)


def _newest(pairs: Iterator[tuple[DataKey, bytes]]) -> Iterator[tuple[DataKey, bytes]]:
    last = b""
    for pair in pairs:
        bare = pair[0][:-TS_LENGTH]
        if bare != last:
            last = bare
            yield pair


def _newest_reverse(pairs: Iterator[tuple[DataKey, bytes]]) -> Iterator[tuple[DataKey, bytes]]:
    held: tuple[DataKey, bytes] | None = None
    for pair in pairs:
        if held is not None and held[0][:-TS_LENGTH] != pair[0][:-TS_LENGTH]:
            yield held
        held = pair
    if held is not None:
        yield held


def _live_v2(pairs: Iterator[tuple[DataKey, bytes]]) -> Iterator[LivePair]:
    now = int(time.time())
    for key, stored in pairs:
        value, expire, deleted = decode_value(ApiVersion.V2, stored)
        if not deleted and not 0 < expire <= now:
            api_key = ApiKey(decode_stored_memcomparable(key[1:-TS_LENGTH]))
            yield LivePair(api_key, value, expire, key, stored)
