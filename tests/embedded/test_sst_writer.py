from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.engine import DataKey, StoreEngine
from airflow_provider_tikvbr.embedded.sst_writer import SstCompression, write_sst
from airflow_provider_tikvbr.storage.sst import SstReader
from airflow_provider_tikvbr.tikv.keys import EngineKey, KeyRange

PAIRS = [(DataKey(b"zkey%06d" % i), b"value %d " % i * 30) for i in range(5000)]
NOISE = [(DataKey(b"zkey%06d" % i), os.urandom(200)) for i in range(1000)]
TYPES = {SstCompression.LZ4: 4, SstCompression.SNAPPY: 1, SstCompression.ZSTD: 7}


@pytest.mark.parametrize("compression", list(SstCompression))
def test_files_are_as_tikv_writes_them(tmp_path: Path, compression: SstCompression) -> None:
    path = tmp_path / "new" / "one.sst"
    assert write_sst(path, iter(PAIRS), compression=compression) == (PAIRS[0][0], PAIRS[-1][0])
    data = path.read_bytes()
    footer = data[-53:]
    assert footer[0] == 1  # CRC32C
    assert footer[41:45] == (2).to_bytes(4, "little")
    assert footer[45:] == (0x88E241B785F4CFF7).to_bytes(8, "little")
    assert b"fullfilter.rocksdb.BuiltinBloomFilter" in data
    reader = SstReader(data)
    reader.verify()
    properties = reader.properties
    assert properties["rocksdb.comparator"] == b"leveldb.BytewiseComparator"
    assert properties["rocksdb.external_sst_file.version"] == (2).to_bytes(4, "little")
    assert properties["rocksdb.external_sst_file.global_seqno"] == bytes(8)
    assert properties["rocksdb.block.based.table.whole.key.filtering"] == b"1"
    assert reader.entry_count == len(PAIRS)
    assert reader.number("rocksdb.raw.key.size") == sum(len(k) + 8 for k, _ in PAIRS)
    assert reader.number("rocksdb.raw.value.size") == sum(len(v) for _, v in PAIRS)
    # Ten bits of filter per key, in whole cache lines.
    assert reader.number("rocksdb.filter.size") == pytest.approx(len(PAIRS) * 10 / 8, abs=200)
    uncompressed = sum(len(k) + len(v) for k, v in PAIRS)
    assert reader.number("rocksdb.num.data.blocks") == pytest.approx(uncompressed / (32 * 1024), rel=0.15)
    first_block = reader._handles[0]
    assert data[first_block[0] + first_block[1]] == TYPES[compression]
    assert list(reader) == [(k[1:], v) for k, v in PAIRS]


def test_blocks_that_do_not_shrink_stay_plain(tmp_path: Path) -> None:
    path = tmp_path / "one.sst"
    write_sst(path, NOISE, compression=SstCompression.LZ4)
    reader = SstReader(path.read_bytes())
    first_block = reader._handles[0]
    assert path.read_bytes()[sum(first_block)] == 0
    assert list(reader) == [(k[1:], v) for k, v in NOISE]


def test_the_level_counts(tmp_path: Path) -> None:
    # Text that repeats itself irregularly leaves something to gain.
    words = [b"%d" % (i * i % 977) for i in range(4000)]
    pairs = [(DataKey(b"zk%06d" % i), b" ".join(words[i % 3000 : i % 3000 + 40])) for i in range(3000)]
    sizes = []
    for level in (1, 15):
        write_sst(tmp_path / "one.sst", pairs, compression=SstCompression.ZSTD, level=level)
        sizes.append((tmp_path / "one.sst").stat().st_size)
    assert sizes[1] < sizes[0]


def test_no_pairs_no_file(tmp_path: Path) -> None:
    assert write_sst(tmp_path / "one.sst", []) is None
    assert list(tmp_path.iterdir()) == []


def test_rocksdb_takes_the_file_in(tmp_path: Path) -> None:
    engine = StoreEngine(store_id=1, path=tmp_path)
    path = engine.import_dir / "one.sst"
    write_sst(path, PAIRS, compression=SstCompression.ZSTD)
    engine.ingest(path)
    assert list(engine.items(KeyRange(EngineKey(b""), EngineKey(b"")))) == PAIRS
    engine.close()
