"""SST files as TiKV writes them into backups: format 2, CRC32C, blocks of 32 KiB, a whole-key Bloom filter.

Source: TiKV, ``src/config/mod.rs`` and ``components/engine_rocks/src/sst.rs``. RocksDB itself would write a newer
format with other checksums, which older TiKV versions cannot open.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from pathlib import Path

from rocksdict import BlockBasedOptions, ChecksumType, DBCompressionType, Options, SstFileWriter

from airflow_provider_tikvbr.embedded.engine import DataKey

FORMAT_VERSION = 2
BLOCK_SIZE = 32 * 1024
BLOOM_BITS_PER_KEY = 10

# zlib's window bits, which RocksDB wants to know whatever the compression.
_WINDOW_BITS = -14


class SstCompression(enum.Enum):
    """How blocks are compressed."""

    LZ4 = "lz4"
    SNAPPY = "snappy"
    ZSTD = "zstd"


_TYPES = {
    SstCompression.LZ4: DBCompressionType.lz4,
    SstCompression.SNAPPY: DBCompressionType.snappy,
    SstCompression.ZSTD: DBCompressionType.zstd,
}


def write_sst(
    path: Path,
    pairs: Iterable[tuple[DataKey, bytes]],
    *,
    compression: SstCompression = SstCompression.LZ4,
    level: int = 0,
) -> tuple[DataKey, DataKey] | None:
    """Write an SST file.

    :param path: where; it is replaced.
    :param pairs: RocksDB keys in ascending order, and stored values.
    :param level: of the compression; 0 for its default.
    :return: the first and the last key; None, and no file, if there are no pairs.
    """
    options = Options(raw_mode=True)
    options.set_compression_type(_TYPES[compression]())
    if level:
        options.set_compression_options(_WINDOW_BITS, level, 0, 0)
    table = BlockBasedOptions()
    table.set_format_version(FORMAT_VERSION)
    table.set_checksum_type(ChecksumType.crc32c())
    table.set_block_size(BLOCK_SIZE)
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    options.set_block_based_table_factory(table)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = SstFileWriter(options)
    writer.open(str(path))
    first: DataKey | None = None
    key = DataKey(b"")
    for key, value in pairs:
        if first is None:
            first = key
        writer[key] = value
    if first is None:
        # RocksDB refuses to finish a file without entries.
        del writer
        path.unlink(missing_ok=True)
        return None
    writer.finish()
    return first, key
