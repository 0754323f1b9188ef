"""What a run works on, drawn from its seed: two clusters, their pairs, and the options of the jobs."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from fastcrc import crc64

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.raw import RawFormat, RawReader, region_bounds
from airflow_provider_tikvbr.rawbr.options import (
    BackupOptions,
    Compression,
    GcTtlFrom,
    RestoreOptions,
    VerifyFiles,
)
from airflow_provider_tikvbr.rawbr.summary import Checksum
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher, CipherMethod
from airflow_provider_tikvbr.tikv.keys import (
    CONVERTED_TS,
    EVERYTHING,
    ApiKey,
    ApiVersion,
    EngineKey,
    KeyCodec,
    KeyRange,
    UserKey,
    decode_desc_ts,
)
from airflow_provider_tikvbr.tikv.values import encode_value

# How long a job of a run may make no progress, in seconds: longer than any schedule lasts.
BUDGET_S = 12.0
AWKWARD_KEYS = (
    b"\x00",
    b"\x00\x00",
    b"\x00" * 9,
    b"a",
    b"a\x00",
    *(b"\xff" * n for n in (1, 8, 9, 10, 11, 16, 20)),
    b"\xff" * 10 + b"\x01",
    b"r\x00\x00\x00",
    b"r\x00\x00\x00a",
    b"r\x00\x00\x01",
    b"r\x00\x00\x01zz",
    b"x",
    b"z",
    b"{",
    b"~",
    b"1234567",
    b"12345678",
    b"12345678\x00",
    b"123456789012345",
    b"1234567890123456",
    b"12345678" * 3,
)
# In V2 the default keyspace has number 0; the other one is there to be left alone, or to be the one of the job.
KEYSPACES = (0, 1)


class Pair(NamedTuple):
    """What a client, and a change feed, would see of a key.

    :param expire: when it expires, in Unix seconds; 0 for never.
    :param ts: its timestamp; 0 where there is none.
    """

    value: bytes
    expire: int
    ts: int


Pairs = dict[ApiKey, Pair]


class Row(NamedTuple):
    """One version of a pair as it is written; without a value it is a V2 deletion."""

    key: ApiKey
    value: bytes | None
    expire: int
    ts: int


class Clock:
    """PD's clock: the real one, and as much more as a check wants to see things expire."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a cluster looks like."""

    api_version: ApiVersion
    version: str
    stores: int
    replicas: int
    pd_members: int
    split_keys: tuple[UserKey, ...]

    def __str__(self) -> str:
        return (
            f"{self.api_version.name} {self.version}, {self.stores} stores, {self.replicas} replicas,"
            f" {self.pd_members} PDs, {len(self.split_keys)} splits"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that does not depend on chance any more once the seed is given.

    :param keyspace: the keyspace that is backed up.
    :param dst_keyspace: the one it is restored into.
    :param keys: the range of the backup.
    :param part: the range of the restore.
    :param rows: what is written into the source, other keyspaces included.
    :param wanted: the pairs that the backup must hold.
    :param old_rows: what is in the target before.
    :param after: what the target must hold after the restore.
    :param expected: the checksum of the backup's pairs in the part.
    :param dirty: whether a checksum of the part must find other pairs too.
    """

    seed: int
    source: Shape
    target: Shape
    keyspace: int
    dst_keyspace: int
    keys: KeyRange[UserKey]
    part: KeyRange[UserKey]
    rows: tuple[Row, ...] = field(repr=False)
    wanted: Pairs = field(repr=False)
    old_rows: tuple[Row, ...] = field(repr=False)
    after: Pairs = field(repr=False)
    expected: Checksum
    dirty: bool
    backup: BackupOptions
    restore: RestoreOptions

    @property
    def dst_codec(self) -> KeyCodec:
        """How the backup and the target write keys."""
        return KeyCodec(self.target.api_version, self.dst_keyspace)

    def __str__(self) -> str:
        return (
            f"source {self.source}; target {self.target}; keyspace {self.keyspace}; {len(self.rows)} rows,"
            f" {len(self.wanted)} in the backup, {self.expected.total_kvs} in the part, dirty {self.dirty}"
        )


def rng_of(seed: int, name: str) -> random.Random:
    """A stream of chance of its own for each theme, so that a draw more in one changes no other."""
    return random.Random(f"{seed}/{name}")


def make_world(seed: int) -> World:
    """Draw a world."""
    rng = rng_of(seed, "world")
    api = rng.choice(list(ApiVersion))
    dst = rng.choice([api, ApiVersion.V2])
    versions = ["8.5.0"] * 4 + ["9.0.0", "7.1.0", "6.5.0", "6.1.1"]
    if api is dst and api is not ApiVersion.V2:
        versions += ["5.4.0", "5.0.0"]
    version = rng.choice(versions)
    keys = _keys(rng, rng.choice([0, 1, 30, 30, 120, 120, 250, 250, 400]))
    borders = _borders(rng, keys)
    source = _shape(rng, api, version, borders)
    target = _shape(rng, dst, version if int(version[0]) < 6 else rng.choice(versions[:8]), borders)
    keyspace = rng.choice([0, 0, 0, 1]) if api is ApiVersion.V2 else 0
    dst_keyspace = keyspace if dst is api else 0

    wide = _range(rng, borders, EVERYTHING) if rng.random() < 0.5 else EVERYTHING
    part = _range(rng, borders, wide) if rng.random() < 0.4 else wide
    codec, dst_codec = KeyCodec(api, keyspace), KeyCodec(dst, dst_keyspace)

    rows: list[Row] = []
    for number in KEYSPACES if api is ApiVersion.V2 else KEYSPACES[:1]:
        rows += _rows(rng, KeyCodec(api, number), keys if number == keyspace else keys[:20])
    inside = codec.api_range(wide)
    wanted = {key: pair for key, pair in live(api, rows).items() if inside.contains(key)}
    if dst is not api:
        wanted = {
            dst_codec.api_key(codec.user_key(k)): Pair(p.value, p.expire, CONVERTED_TS) for k, p in wanted.items()
        }

    dst_part = dst_codec.api_range(part)
    restored = {key: pair for key, pair in wanted.items() if dst_part.contains(key)}
    old_rows = _old_rows(rng, dst_codec, dst_part, keys)
    after = overlay(dst, old_rows, restored)
    there = {key: pair for key, pair in after.items() if dst_part.contains(key)}
    expected = checksum_of(restored)
    return World(
        seed=seed,
        source=source,
        target=target,
        keyspace=keyspace,
        dst_keyspace=dst_keyspace,
        keys=wide,
        part=part,
        rows=tuple(rows),
        wanted=wanted,
        old_rows=tuple(old_rows),
        after=after,
        expected=expected,
        dirty=checksum_of(there) != expected,
        backup=_backup_options(rng, wide, dst if dst is not api or rng.random() < 0.5 else None, version),
        restore=_restore_options(rng, part, target.version),
    )


def _shape(rng: random.Random, api_version: ApiVersion, version: str, borders: list[UserKey]) -> Shape:
    stores = rng.choice([1, 2, 3, 3, 3, 4])
    return Shape(
        api_version=api_version,
        version=version,
        stores=stores,
        replicas=min(rng.choice([1, 2, 3, 3]), stores),
        pd_members=rng.choice([1, 1, 2, 3]),
        split_keys=tuple(sorted(rng.sample(borders, min(len(borders), rng.choice([0, 3, 12, 25, 40]))))),
    )


def _keys(rng: random.Random, count: int) -> list[UserKey]:
    if count <= 1:
        return [UserKey(rng.choice([b"k", b"\xff" * 12, b"\x00"]))][:count]
    keys = {k for k in AWKWARD_KEYS if rng.random() < 0.5}
    if rng.random() < 0.15:
        keys.add(b"")
    while len(keys) < count:
        keys.add(_key(rng, count, keys))
    return [UserKey(k) for k in sorted(keys)]


def _key(rng: random.Random, count: int, keys: set[bytes]) -> bytes:
    roll = rng.random()
    if roll < 0.5 or not keys:
        return b"key-%05d" % rng.randrange(10 * count)
    if roll < 0.65:
        return rng.randbytes(rng.randrange(1, 20))
    if roll < 0.75:
        return b"\xff" * rng.randrange(1, 22) + rng.randbytes(rng.randrange(3))
    if roll < 0.9:
        return rng.choice(sorted(keys))[:30] + rng.choice([b"\x00", b"\xff", b"0"])
    if roll < 0.92:
        return rng.randbytes(rng.choice([100, 1000, 4000]))
    return bytes([rng.choice([0, 1, 0x72, 0xFE, 0xFF])]) * rng.randrange(1, 18)


def _value(rng: random.Random) -> bytes:
    roll = rng.random()
    if roll < 0.05:
        return b""
    most = 100 if roll < 0.95 else 5000 if roll < 0.99 else 40000
    return rng.randbytes(rng.randrange(1, most))


def _borders(rng: random.Random, keys: list[UserKey]) -> list[UserKey]:
    """Keys at which ranges and regions may begin: on pairs, right beside them, and anywhere."""
    found: set[bytes] = set()
    for _ in range(60):
        key = rng.choice(keys) if keys else b"a"
        near = [key, key + b"\x00", key[:-1], key[:3], key + b"\xff"]
        found.add(rng.choice([*near, rng.randbytes(rng.randrange(1, 9)), b"\xff" * rng.randrange(1, 18)]))
    return [UserKey(k) for k in sorted(found - {b""})]


def _range(rng: random.Random, borders: list[UserKey], within: KeyRange[UserKey]) -> KeyRange[UserKey]:
    inside = [b for b in borders if within.contains(b)]
    if len(inside) < 2:
        return within
    start, end = sorted(rng.sample(inside, 2))
    open_start, open_end = rng.random() < 0.25, rng.random() < 0.25
    return KeyRange(within.start if open_start else start, within.end if open_end else end)


def _rows(rng: random.Random, codec: KeyCodec, keys: Iterable[UserKey]) -> list[Row]:
    now = int(time.time())
    rows = []
    for key in keys:
        ts = ((now * 1000 - 10_000_000) << 18) + rng.randrange(10**9) if codec.is_v2 else 0
        for _ in range(rng.randrange(1, 4) if codec.is_v2 else 1):
            ts += rng.randrange(1, 10**6) if codec.is_v2 else 0
            gone = codec.is_v2 and rng.random() < 0.1
            rows.append(Row(codec.api_key(key), None if gone else _value(rng), _expire(rng, codec, now), ts))
    return rows


def _expire(rng: random.Random, codec: KeyCodec, now: int) -> int:
    roll = rng.random()
    if codec.api_version is ApiVersion.V1 or roll < 0.5:
        return 0
    # Long gone, or nowhere near: nothing expires while a run lasts.
    return now + 100_000 + rng.randrange(10**6) if roll < 0.85 else now - 10 - rng.randrange(1000)


def _old_rows(rng: random.Random, codec: KeyCodec, part: KeyRange[ApiKey], keys: list[UserKey]) -> list[Row]:
    rows: list[Row] = []
    if rng.random() < 0.3:
        rows = _rows(rng, codec, sorted({*_keys(rng, 30), *rng.sample(keys, min(len(keys), 10))}))
        if rng.random() < 0.5:
            rows = [row for row in rows if not part.contains(row.key)]
    if codec.is_v2:
        other = KeyCodec(codec.api_version, 1 - codec.keyspace_id)
        rows += _rows(rng, other, keys[:10])
    return rows


def live(api_version: ApiVersion, rows: Iterable[Row]) -> Pairs:
    """What clients see of rows: the newest version of each key, unless it is deleted or expired."""
    newest: dict[ApiKey, Row] = {}
    for row in rows:
        if row.key not in newest or row.ts >= newest[row.key].ts:
            newest[row.key] = row
    now = int(time.time())
    return {
        key: Pair(row.value, row.expire, row.ts)
        for key, row in newest.items()
        if row.value is not None and not 0 < row.expire <= now
    }


def overlay(api_version: ApiVersion, rows: Iterable[Row], restored: Pairs) -> Pairs:
    """What clients see when pairs were restored over rows."""
    new = [Row(key, pair.value, pair.expire, pair.ts) for key, pair in restored.items()]
    return live(api_version, [*rows, *new])


def checksum_of(pairs: Pairs) -> Checksum:
    """The three numbers of some pairs, counted another way than the package does."""
    crc = size = 0
    for key, pair in pairs.items():
        crc ^= crc64.xz(key + pair.value)
        size += len(key) + len(pair.value)
    return Checksum(crc, len(pairs), size)


def _cipher(rng: random.Random, version: str) -> Cipher:
    if rng.random() < 0.6 or version < "5.3":
        return PLAINTEXT
    method = rng.choice([m for m in CipherMethod if m.key_length])
    return Cipher(method=method, key=bytes(range(method.key_length)))


def _backup_options(rng: random.Random, keys: KeyRange[UserKey], dst: ApiVersion | None, version: str) -> BackupOptions:
    return BackupOptions(
        keys=keys,
        dst_api_version=dst,
        compression=rng.choice(list(Compression)),
        compression_level=rng.choice([0, 0, 3]),
        rate_limit=rng.choice([0, 0, 2_000_000]),
        cipher=_cipher(rng, version),
        gc_ttl_s=rng.choice([3, 300]),
        gcttl_from=rng.choice(list(GcTtlFrom)),
        safe_interval_s=rng.choice([0, 60]),
        checksum=rng.random() < 0.4 and version >= "6.1.1",
        checksum_concurrency=rng.choice([1, 8, 512]),
        remove_schedulers=rng.random() < 0.4,
        budget_s=BUDGET_S,
        owner="manual__2026/backup",
    )


def _restore_options(rng: random.Random, keys: KeyRange[UserKey], version: str) -> RestoreOptions:
    return RestoreOptions(
        keys=keys,
        rate_limit=rng.choice([0, 0, 5_000_000]),
        concurrency=rng.choice([1, 4, 512]),
        checksum=rng.random() < 0.5 and version >= "6.1.1",
        checksum_concurrency=rng.choice([1, 8, 512]),
        online=rng.random() < 0.2,
        merge_region_size=rng.choice([None, 2000, 50000]),
        merge_region_keys=rng.choice([None, 10, 100]),
        split_region_max_keys=rng.choice([1, 2, 1024]),
        verify_files=rng.choice(list(VerifyFiles)),
        budget_s=BUDGET_S,
        owner="manual__2026/restore",
    )


# --- clusters ---


async def start_cluster(shape: Shape, directory: Path, rng: random.Random) -> tuple[EmbeddedCluster, Clock]:
    """Start a cluster whose leaders lie anywhere."""
    clock = Clock()
    cluster = EmbeddedCluster(
        data_dir=directory,
        api_version=shape.api_version,
        stores=shape.stores,
        replicas=shape.replicas,
        pd_members=shape.pd_members,
        version=shape.version,
        split_keys=shape.split_keys,
        keyspaces={"other": KEYSPACES[1]} if shape.api_version is ApiVersion.V2 else None,
        # So that it gives the peers of a store that is gone to another one soon, if there is one.
        max_store_down_s=rng.choice([0.2, 0.5]) if shape.stores > shape.replicas else None,
        clock=clock,
    )
    await cluster.start()
    for region in list(cluster.topology.regions):
        if rng.random() < 0.3:
            cluster.topology.transfer_leader(region.id, rng.choice(region.store_ids))
    return cluster, clock


async def fill(cluster: EmbeddedCluster, rows: Iterable[Row]) -> None:
    """Write rows to all peers of their regions, with the timestamps they have."""
    topology = cluster.topology
    changes: dict[int, list[tuple[EngineKey, bytes | None]]] = {}
    for row in rows:
        stored = encode_value(topology.api_version, row.value or b"", expire_at=row.expire, deleted=row.value is None)
        change = (topology.codec.engine_key(row.key, row.ts), stored)
        for store_id in topology.region_of(topology.codec.region_key(row.key)).store_ids:
            changes.setdefault(store_id, []).append(change)
    for store_id, of_store in changes.items():
        cluster.engines[store_id].write(of_store)


def dump(cluster: EmbeddedCluster) -> Pairs:
    """What the leaders of a cluster hold, read from the inside."""
    raw = RawFormat(cluster.topology.api_version)
    found: Pairs = {}
    for region in cluster.topology.regions:
        reader = RawReader(engine=cluster.engines[region.leader_store_id], raw=raw)
        for pair in reader.scan(region_bounds(region.keys)):
            ts = decode_desc_ts(pair.data_key[-8:]) if raw.is_v2 else 0
            found[pair.key] = Pair(pair.value, pair.expire, ts)
    return found


def with_cipher(world: World) -> RestoreOptions:
    """The restore's options with the key of the backup."""
    return replace(world.restore, cipher=world.backup.cipher)
