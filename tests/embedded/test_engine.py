from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.engine import DataKey, EngineClosedError, StoreEngine
from airflow_provider_tikvbr.embedded.sst_writer import write_sst
from airflow_provider_tikvbr.tikv.keys import EngineKey, KeyRange


def key(number: int) -> EngineKey:
    return EngineKey(b"k%04d" % number)


def keys(start: bytes = b"", end: bytes = b"") -> KeyRange[EngineKey]:
    return KeyRange(EngineKey(start), EngineKey(end))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[StoreEngine]:
    engine = StoreEngine(store_id=1, path=tmp_path / "store-1")
    engine.write((key(i), b"v%d" % i) for i in range(5000))
    yield engine
    engine.close()


def test_rocksdb_sees_the_prefix_of_data_keys(engine: StoreEngine) -> None:
    assert next(engine.items(keys())) == (b"zk0000", b"v0")
    assert engine.get(key(7)) == b"v7"
    assert engine.get(EngineKey(b"no such key")) is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("start", "end", "numbers"),
    [
        (b"k0010", b"k0020", range(10, 20)),
        (b"k0010x", b"k0020x", range(11, 21)),
        (b"", b"k0003", range(3)),
        (b"k4997", b"", range(4997, 5000)),
        (b"", b"", range(5000)),
        (b"x", b"y", range(0)),
        (b"", b"a", range(0)),
    ],
)
def test_items_stay_in_the_range(
    engine: StoreEngine, start: bytes, end: bytes, numbers: range, *, reverse: bool
) -> None:
    found = engine.items(keys(start, end), reverse=reverse)
    gc.collect()  # the upper bound must outlive the call that set it
    expected = [b"zk%04d" % i for i in numbers]
    assert [k for k, _ in found] == (expected[::-1] if reverse else expected)


def test_a_scan_sees_the_data_as_they_were_when_it_began(engine: StoreEngine) -> None:
    found = engine.items(keys(b"k0000", b"k0010"))
    assert next(found)[1] == b"v0"
    engine.write([(key(1), b"new"), (key(2), None)])
    assert [v for _, v in found] == [b"v%d" % i for i in range(1, 10)]
    assert [v for _, v in engine.items(keys(b"k0000", b"k0004"))] == [b"v0", b"new", b"v3"]


def test_delete_range(engine: StoreEngine) -> None:
    engine.delete_range(keys(b"k0002", b"k4999"))
    assert [k for k, _ in engine.items(keys())] == [b"zk0000", b"zk0001", b"zk4999"]
    engine.delete_range(keys())
    assert list(engine.items(keys())) == []


def test_column_families_are_apart(engine: StoreEngine) -> None:
    engine.write([(key(0), b"lock")], "lock")
    assert engine.get(key(0), "lock") == b"lock"
    assert engine.get(key(0), "write") is None
    assert engine.get(key(0)) == b"v0"
    assert list(engine.items(keys(), cf="lock")) == [(b"zk0000", b"lock")]


def test_copy_range_makes_two_engines_equal(engine: StoreEngine, tmp_path: Path) -> None:
    other = StoreEngine(store_id=2, path=tmp_path / "store-2")
    other.write([(key(100), b"stale"), (EngineKey(b"k0100stale"), b"stale"), (key(9000), b"kept")])
    engine.write([(key(150), b"w")], "write")
    engine.copy_range(keys(b"k0100", b"k0200"), other)
    assert list(other.items(keys(b"k0100", b"k0200"))) == list(engine.items(keys(b"k0100", b"k0200")))
    assert other.get(key(150), "write") == b"w"
    assert other.get(key(9000)) == b"kept"
    other.close()


def test_ingest_replaces_and_moves_the_file(engine: StoreEngine) -> None:
    path = engine.import_dir / "one.sst"
    write_sst(path, [(DataKey(b"zk0001"), b"ingested"), (DataKey(b"zk9999"), b"ingested")])
    engine.ingest(path)
    assert engine.get(key(1)) == engine.get(key(9999)) == b"ingested"
    assert engine.get(key(2)) == b"v2"
    assert not path.exists()


def test_data_survive_and_scratch_files_do_not(tmp_path: Path) -> None:
    first = StoreEngine(store_id=1, path=tmp_path)
    first.write([(key(1), b"v")])
    (first.scratch_dir / "half.sst").write_bytes(b"half")
    (first.import_dir / "whole.sst").write_bytes(b"whole")
    first.close()
    first.close()
    second = StoreEngine(store_id=1, path=tmp_path)
    assert second.get(key(1)) == b"v"
    assert list(second.scratch_dir.iterdir()) == []
    assert [p.name for p in second.import_dir.iterdir()] == ["whole.sst"]
    second.close()


async def test_close_ends_jobs_under_way(engine: StoreEngine) -> None:
    started = threading.Event()

    def endless() -> None:
        while True:
            for _ in engine.guarded(engine.items(keys())):
                started.set()

    job = asyncio.ensure_future(engine.run(endless))
    await asyncio.to_thread(started.wait)
    await asyncio.to_thread(engine.close)
    with pytest.raises(EngineClosedError):
        await job
    with pytest.raises(EngineClosedError):
        await engine.run(endless)
