"""Read SST files: RocksDB block-based tables as TiKV writes them into backups.

Formats 2 to 5, CRC32C, blocks stored plainly or compressed with snappy, lz4 or zstd. Source: RocksDB, ``table/format.cc``
and ``table/block_based``.

Keys come out as :data:`~airflow_provider_tikvbr.tikv.keys.EngineKey`: without the leading ``z`` that TiKV puts before
every key of its data, and without RocksDB's own eight bytes (sequence number and type) behind it.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NoReturn

import cramjam
import google_crc32c

from airflow_provider_tikvbr.exceptions import BackupFileError
from airflow_provider_tikvbr.tikv.keys import EngineKey, KeyRange

Pair = tuple[EngineKey, bytes]

DATA_PREFIX = 0x7A  # the letter z
TRAILER = 8  # a key's sequence number and type, behind the user part

FOOTER = 53
MAGIC = (0x88E241B785F4CFF7).to_bytes(8, "little")
FORMATS = range(2, 6)
BLOCK_TRAILER = 5  # compression type and checksum, behind each block

CHECKSUM_NONE, CHECKSUM_CRC32C = 0, 1
NONE, SNAPPY, LZ4, ZSTD = 0, 1, 4, 7
MAX_BLOCK = 1 << 30  # no real block is near; a larger claim would only exhaust the memory

RANGE_DELETIONS = "rocksdb.range_del"
PROPERTIES = "rocksdb.properties"
BINARY_SEARCH = 0
# A backup holds live pairs only; a file that counts any of these is not one of a backup.
NEVER = ("rocksdb.deleted.keys", "rocksdb.merge.operands", "rocksdb.num.range-deletions")


class SstReader:
    """One SST file, held in memory.

    :param data: the whole file, decrypted.
    :param name: how errors call it.
    :raises BackupFileError: it is no SST, not one that can be read here, or it is damaged.
    """

    def __init__(self, data: bytes | memoryview, *, name: str = "the SST file") -> None:
        self._data = memoryview(data)
        self.name = name
        footer = bytes(self._data[-FOOTER:])
        if len(footer) < FOOTER or footer[-8:] != MAGIC:
            self._fail("it is no SST file, or it is encrypted or cut short")
        self.format_version = int.from_bytes(footer[41:45], "little")
        if self.format_version not in FORMATS:
            self._fail(f"it has format version {self.format_version}, only 2 to 5 can be read")
        self._checksum = footer[0]
        if self._checksum not in (CHECKSUM_NONE, CHECKSUM_CRC32C):
            self._fail(f"its checksums are of kind {self._checksum}, only CRC32C can be read")
        try:
            metaindex, at = _handle(footer, 1)
            index, _ = _handle(footer, at)
            self._meta = {
                key.decode("latin-1"): _handle(value, 0)[0] for key, value in _entries(self._block(metaindex))
            }
            self.properties: dict[str, bytes] = self._read_properties()
            self._bounds, self._handles = self._read_index(index)
        except IndexError:
            self._fail("its index does not make sense")

    # --- what it says of itself ---

    def number(self, name: str) -> int:
        """A numeric property that is stored as a varint; 0 if the file has none."""
        value = self.properties.get(name)
        return _varint(value, 0)[0] if value else 0

    @property
    def entry_count(self) -> int:
        """Number of pairs."""
        return self.number("rocksdb.num.entries")

    @property
    def first_key(self) -> EngineKey | None:
        """The smallest key; None if the file is empty."""
        return self._pairs(0)[0][0] if self._handles else None

    @property
    def last_key(self) -> EngineKey | None:
        """The largest key; None if the file is empty."""
        return self._pairs(len(self._handles) - 1)[-1][0] if self._handles else None

    # --- its pairs ---

    def __iter__(self) -> Iterator[Pair]:
        return self.pairs()

    def pairs(self, keys: KeyRange[EngineKey] | None = None) -> Iterator[Pair]:
        """The pairs in key order; checksums are checked on the way.

        :param keys: only those in here; blocks outside of it are not even decompressed.
        :raises BackupFileError: a block is damaged.
        """
        return chain.from_iterable(self.blocks(keys))

    def blocks(self, keys: KeyRange[EngineKey] | None = None) -> Iterator[Sequence[Pair]]:
        """The same, block by block: the fastest way through a whole file."""
        if keys is None:
            for number in range(len(self._handles)):
                yield self._pairs(number)
            return
        # A block's bound is not smaller than its last key: the first bound that is not below the start is the block.
        first = bisect_left(self._bounds, keys.start) if keys.start else 0
        for number in range(first, len(self._handles)):
            pairs = self._pairs(number)
            if number == first and keys.start:
                pairs = pairs[bisect_left(pairs, keys.start, key=_key) :]
            if keys.end and pairs and pairs[-1][0] >= keys.end:
                yield pairs[: bisect_left(pairs, keys.end, key=_key)]
                return
            yield pairs

    def verify(self) -> None:
        """Check every block, the order of the keys and their number.

        :raises BackupFileError: something is wrong.
        """
        for handle in self._meta.values():
            self._checked(handle)
        total = 0
        last: EngineKey | None = None
        for pairs in self.blocks():
            names = [key for key, _ in pairs]
            if (last is not None and names[0] <= last) or not all(map(operator.lt, names, names[1:])):
                self._fail("its keys are out of order")
            last = names[-1]
            total += len(names)
        if total != self.entry_count:
            self._fail(f"it holds {total} pairs, but says {self.entry_count}")

    # --- blocks ---

    def _fail(self, reason: str) -> NoReturn:
        raise BackupFileError(f"{self.name} cannot be read: {reason}", file=self.name)

    def _checked(self, handle: tuple[int, int]) -> bytes:
        """A stored block with its compression type behind it, after its checksum was compared."""
        offset, size = handle
        end = offset + size + 1
        stored = bytes(self._data[offset:end])
        if len(stored) != size + 1 or end + 4 > len(self._data):
            self._fail(f"a block lies outside of the file, at byte {offset}")
        if self._checksum == CHECKSUM_CRC32C:
            crc = google_crc32c.value(stored)
            # RocksDB masks checksums, so that the checksum of data that holds checksums stays useful.
            masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            if masked != int.from_bytes(self._data[end : end + 4], "little"):
                self._fail(f"the block at byte {offset} is damaged")
        return stored

    def _block(self, handle: tuple[int, int]) -> bytes:
        stored = self._checked(handle)
        kind = stored[-1]
        if kind == NONE:
            return stored[:-1]
        payload = memoryview(stored)[:-1]
        try:
            if kind == SNAPPY:
                return bytes(cramjam.snappy.decompress_raw(payload))
            if kind not in (LZ4, ZSTD):
                self._fail(f"its compression {kind} is not known: only snappy, lz4 and zstd can be read")
            length, at = _varint(stored, 0)
            if length > MAX_BLOCK:
                self._fail(f"the block at byte {handle[0]} claims to have {length} bytes")
            if kind == ZSTD:
                block = bytes(cramjam.zstd.decompress(payload[at:], output_len=length))
            else:
                block = bytes(cramjam.lz4.decompress_block(payload[at:], output_len=length))
        except cramjam.DecompressionError:
            self._fail(f"the block at byte {handle[0]} cannot be decompressed")
        if len(block) != length:
            self._fail(f"the block at byte {handle[0]} has {len(block)} bytes instead of {length}")
        return block

    def _read_properties(self) -> dict[str, bytes]:
        if PROPERTIES not in self._meta or RANGE_DELETIONS in self._meta:
            self._fail("it has no properties, or deletes ranges: it is not part of a backup")
        found = {key.decode("latin-1"): value for key, value in _entries(self._block(self._meta[PROPERTIES]))}
        for name in NEVER:
            if found.get(name, b"\0") != b"\0":
                self._fail(f"it has {name}: it is not part of a backup")
        return found

    def _read_index(self, handle: tuple[int, int]) -> tuple[list[bytes], list[tuple[int, int]]]:
        """Upper bounds (as engine keys) and places of the data blocks."""
        kind = int.from_bytes(self.properties.get("rocksdb.block.based.table.index.type", b""), "little")
        if kind != BINARY_SEARCH:
            self._fail(f"its index is of kind {kind}, only plain ones can be read")
        trailer = 0 if self.number("rocksdb.index.key.is.user.key") else TRAILER
        block = self._block(handle)
        bounds: list[bytes] = []
        handles: list[tuple[int, int]] = []
        if self.number("rocksdb.index.value.is.delta.encoded"):
            entries = _delta_entries(block)
        else:
            entries = ((key, _handle(value, 0)[0]) for key, value in _entries(block))
        for key, place in entries:
            bounds.append(key[1 : len(key) - trailer])
            handles.append(place)
        return bounds, handles

    def _pairs(self, number: int) -> list[Pair]:
        handle = self._handles[number]
        try:
            pairs = _decode(self._block(handle))
        except (IndexError, ValueError):
            pairs = []
        return pairs or self._fail(f"the block at byte {handle[0]} does not make sense")


_key = operator.itemgetter(0)


def _decode(block: bytes) -> list[Pair]:
    """Take a data block apart.

    This loop is what reading an SST costs, so it spends nothing on calls: short lengths are read in place, and keys
    are built without prefix and trailer at once.

    :raises ValueError: the entries do not fit the block, or are none of TiKV's.
    """
    # 8 is TRAILER, written out: a global name costs a look-up per pair.
    pairs: list[Pair] = []
    append = pairs.append
    end = _entries_end(block)
    user = b""
    at = last = 0
    while at < end:
        shared = block[at]
        unshared = block[at + 1]
        length = block[at + 2]
        if shared < 128 and 8 <= unshared < 128:
            if length < 128:
                at += 3
            elif block[at + 3] < 128:
                length += (block[at + 3] - 1) << 7
                at += 4
            else:
                length, at = _varint(block, at + 2)
        else:
            shared, at = _varint(block, at)
            unshared, at = _varint(block, at)
            length, at = _varint(block, at)
            if unshared < 8:
                raise ValueError("two versions of one key")
        tail = at + unshared - 8
        if not shared:
            if block[at] != DATA_PREFIX:
                raise ValueError("not a key of TiKV's data")
            user = block[at + 1 : tail]
        elif shared <= len(user) + 1:
            user = user[: shared - 1] + block[at:tail]
        else:
            # The key goes on with bytes that happen to equal the trailer of the one before.
            user = (user + block[last : last + 8])[: shared - 1] + block[at:tail]
        last = tail
        at = tail + 8 + length
        append((user, block[tail + 8 : at]))  # type: ignore[arg-type]
    if at != end:
        raise ValueError("the last entry is cut short")
    return pairs


def _entries_end(block: bytes) -> int:
    """Where the entries end: behind them are the restart points, their number, and maybe a hash index."""
    end = len(block) - 4
    count = int.from_bytes(block[end:], "little")
    if count >> 31:
        end -= 2
        end -= int.from_bytes(block[end : end + 2], "little")
    end -= 4 * (count & 0x7FFFFFFF)
    if end < 0:
        raise IndexError("more restart points than bytes")
    return end


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a small block, keys as they stand."""
    end = _entries_end(block)
    key = b""
    at = 0
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        yield key, block[at : at + length]
        at += length


def _delta_entries(block: bytes) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """The entries of an index that gives only how much each block's size differs from the one before."""
    end = _entries_end(block)
    key = b""
    at = offset = size = 0
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        at += unshared
        if shared:
            difference, at = _varint(block, at)
            offset += size + BLOCK_TRAILER
            size += (difference >> 1) ^ -(difference & 1)
        else:
            (offset, size), at = _handle(block, at)
        yield key, (offset, size)


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """A block's offset and size, and where they end."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 128:
            return value, at
        shift += 7
