"""SST files that the real TiKV wrote, and such that RocksDB writes in every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fastcrc import crc64
from rocksdict import (
    BlockBasedIndexType,
    BlockBasedOptions,
    ChecksumType,
    DataBlockIndexType,
    DBCompressionType,
    Options,
    SstFileWriter,
)

from airflow_provider_tikvbr.exceptions import BackupFileError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher
from airflow_provider_tikvbr.storage.sst import SstReader
from airflow_provider_tikvbr.tikv.keys import EngineKey, KeyCodec, KeyRange
from airflow_provider_tikvbr.tikv.values import decode_value
from tests.support import golden

Pairs = dict[bytes, bytes]
COMPRESSIONS = {
    "none": DBCompressionType.none,
    "snappy": DBCompressionType.snappy,
    "lz4": DBCompressionType.lz4,
    "zstd": DBCompressionType.zstd,
}


def write_sst(
    path: Path,
    pairs: Pairs,
    *,
    format_version: int = 2,
    compression: str = "zstd",
    prefix: bytes = b"z",
    block_size: int = 1024,
    change: Callable[[BlockBasedOptions], None] = lambda table: None,
) -> bytes:
    table = BlockBasedOptions()
    table.set_format_version(format_version)
    table.set_checksum_type(ChecksumType.crc32c())
    table.set_block_size(block_size)
    table.set_bloom_filter(10, False)
    change(table)
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(COMPRESSIONS[compression]())
    writer = SstFileWriter(options)
    writer.open(str(path))
    for key in sorted(pairs):
        writer[prefix + key] = pairs[key]
    writer.finish()
    return path.read_bytes()


def sample(count: int = 600) -> Pairs:
    pairs: Pairs = {b"user:%06d" % n: b"value %d " % n * (n % 40) for n in range(count)}
    # Lengths on both sides of one, two and three varint bytes.
    for length in (0, 1, 127, 128, 255, 256, 16383, 16384):
        pairs[b"key-" + b"k" * length] = b"v"
        pairs[b"value-%06d" % length] = b"v" * length
    return pairs


def engine(key: bytes) -> EngineKey:
    return EngineKey(key)


@pytest.mark.parametrize("backup", golden.backups(), ids=str)
def test_golden_files_hold_the_truth(backup: golden.Golden) -> None:
    cipher = Cipher.parse("aes256-ctr", key_hex=golden.AES256_KEY) if backup.crypter else PLAINTEXT
    data = (backup.path / "backupmeta").read_bytes()
    meta = brpb_pb2.BackupMeta.FromString(data if cipher.is_plain else cipher.decrypt(data[16:], data[:16]))
    codec = KeyCodec(backup.api_version)
    found: Pairs = {}
    for file in meta.files:
        reader = SstReader(cipher.decrypt((backup.path / file.name).read_bytes(), file.cipher_iv), name=file.name)
        reader.verify()
        checksum = total_bytes = count = 0
        for key, stored in reader:
            api_key, _ = codec.split_engine_key(key)
            value = decode_value(backup.api_version, stored).value
            found[codec.user_key(api_key)] = value
            checksum ^= crc64.xz(api_key + value)
            total_bytes += len(api_key) + len(value)
            count += 1
        assert (checksum, count, total_bytes) == (file.crc64xor, file.total_kvs, file.total_bytes)
        assert reader.entry_count == file.total_kvs
        assert reader.format_version == 2
    assert found == {pair.key: pair.value for pair in backup.pairs}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("format_version", [2, 3, 4, 5])
def test_formats_and_compressions(tmp_path: Path, format_version: int, compression: str) -> None:
    pairs = sample()
    data = write_sst(tmp_path / "a.sst", pairs, format_version=format_version, compression=compression)
    reader = SstReader(data)
    reader.verify()
    assert list(reader) == sorted(pairs.items())
    assert reader.format_version == format_version
    assert reader.entry_count == len(pairs)
    assert (reader.first_key, reader.last_key) == (min(pairs), max(pairs))


def test_a_view_will_do(tmp_path: Path) -> None:
    data = write_sst(tmp_path / "a.sst", {b"a": b"1"})
    assert list(SstReader(memoryview(b"before" + data)[6:])) == [(b"a", b"1")]


def test_indexes_with_size_differences(tmp_path: Path) -> None:
    pairs = sample()
    data = write_sst(
        tmp_path / "a.sst", pairs, format_version=5, change=lambda table: table.set_index_block_restart_interval(8)
    )
    reader = SstReader(data)
    assert reader.number("rocksdb.index.value.is.delta.encoded") == 1
    assert list(reader) == sorted(pairs.items())


def test_blocks_with_a_hash_index(tmp_path: Path) -> None:
    def change(table: BlockBasedOptions) -> None:
        table.set_data_block_index_type(DataBlockIndexType.binary_and_hash())

    pairs = sample()
    assert list(SstReader(write_sst(tmp_path / "a.sst", pairs, change=change))) == sorted(pairs.items())


def test_keys_that_go_on_with_the_bytes_of_a_trailer(tmp_path: Path) -> None:
    trailer = b"\x01" + bytes(7)
    keys = [
        b"k",
        b"k\x01",
        b"k\x01\x00",
        b"k" + trailer,
        b"k" + trailer + b"\x01",
        b"k" + trailer * 2,
        b"k" + trailer * 30,
    ]
    pairs: Pairs = {key: b"%d" % n for n, key in enumerate(keys)}
    assert list(SstReader(write_sst(tmp_path / "a.sst", pairs))) == sorted(pairs.items())


RANGES = [
    (b"", b""),
    (b"user:000300", b""),
    (b"", b"user:000300"),
    (b"user:000100", b"user:000101"),
    (b"user:000100x", b"user:000100y"),
    (b"user:0001", b"user:0005"),
    (b"zzz", b""),
    (b"", b"a"),
    (b"key-", b"user:000000"),
    (b"value-016384", b"value-016384\x00"),
]


@pytest.mark.parametrize("format_version", [2, 5])
def test_ranges(tmp_path: Path, format_version: int) -> None:
    pairs = sample()
    reader = SstReader(write_sst(tmp_path / "a.sst", pairs, format_version=format_version))
    for start, end in RANGES + [(key, b"") for key in pairs] + [(b"", key) for key in pairs]:
        keys = KeyRange(engine(start), engine(end))
        expected = sorted((k, v) for k, v in pairs.items() if keys.contains(engine(k)))
        assert list(reader.pairs(keys)) == expected


def test_ranges_read_only_what_they_need(tmp_path: Path) -> None:
    data = bytearray(write_sst(tmp_path / "a.sst", sample(), compression="none"))
    data[10] ^= 1
    reader = SstReader(bytes(data))
    assert dict(reader.pairs(KeyRange(engine(b"user:000300"), engine(b"user:000301"))))
    with pytest.raises(BackupFileError, match="the block at byte 0 is damaged"):
        list(reader)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    pairs: Pairs = {b"key%04d" % n: b"value%d" % n * 5 for n in range(40)}
    data = write_sst(tmp_path / "a.sst", pairs, block_size=256)
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 0x10
        if at < len(data) - 53 or not _reads(bytes(broken)):
            with pytest.raises(BackupFileError, match=r"1/a\.sst cannot be read: ") as caught:
                SstReader(bytes(broken), name="1/a.sst").verify()
            assert caught.value.file == "1/a.sst"
        else:
            # The footer's padding means nothing, so flipping it changes nothing.
            assert list(SstReader(bytes(broken))) == sorted(pairs.items())


def _reads(data: bytes) -> bool:
    try:
        SstReader(data).verify()
    except BackupFileError:
        return False
    return True


@pytest.mark.parametrize("length", [0, 10, 52, 53, 500])
def test_cut_files(tmp_path: Path, length: int) -> None:
    data = write_sst(tmp_path / "a.sst", sample())
    with pytest.raises(BackupFileError, match="it is no SST file, or it is encrypted or cut short"):
        SstReader(data[:length])
    with pytest.raises(BackupFileError):
        SstReader(data[length + 1 :]).verify()


def test_files_of_another_kind(tmp_path: Path) -> None:
    def hashes(table: BlockBasedOptions) -> None:
        table.set_checksum_type(ChecksumType.xxh3())

    def partitions(table: BlockBasedOptions) -> None:
        table.set_index_type(BlockBasedIndexType.two_level_index_search())

    with pytest.raises(BackupFileError, match="it has format version 6, only 2 to 5 can be read"):
        SstReader(write_sst(tmp_path / "a.sst", {b"a": b""}, format_version=6))
    with pytest.raises(BackupFileError, match="its checksums are of kind 4, only CRC32C"):
        SstReader(write_sst(tmp_path / "b.sst", {b"a": b""}, change=hashes))
    with pytest.raises(BackupFileError, match="its index is of kind 2, only plain ones"):
        SstReader(write_sst(tmp_path / "c.sst", sample(), change=partitions))
    with pytest.raises(BackupFileError, match="the block at byte 0 does not make sense"):
        list(SstReader(write_sst(tmp_path / "d.sst", {b"a": b""}, prefix=b"")))


def test_deletions_are_no_backup(tmp_path: Path) -> None:
    table = BlockBasedOptions()
    table.set_format_version(2)
    table.set_checksum_type(ChecksumType.crc32c())
    options = Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    writer = SstFileWriter(options)
    writer.open(str(tmp_path / "a.sst"))
    writer[b"za"] = b"1"
    del writer[b"zb"]
    writer.finish()
    with pytest.raises(BackupFileError, match=r"it has rocksdb\.deleted\.keys: it is not part of a backup"):
        SstReader((tmp_path / "a.sst").read_bytes())
