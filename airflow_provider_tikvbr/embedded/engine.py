"""The RocksDB instance of one embedded store.

Inside, keys are what TiKV keeps: ``z`` followed by the engine key. All column families of raw calls exist; raw data
live in ``default``.

Three properties of the RocksDB binding shape this module. An iterator that is still alive keeps the database's lock
even after it was closed, so scans run as jobs of the engine, which ends them before it closes. An iterator does not keep
its options alive, although RocksDB reads the upper bound from their memory. And a lower bound is not honoured.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NewType, ParamSpec, TypeVar, cast

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    IngestExternalFileOptions,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
)

from airflow_provider_tikvbr.embedded.limits import ImportMode, RateLimiter
from airflow_provider_tikvbr.tikv.keys import EngineKey, KeyRange

# A key as RocksDB sees it: DATA_PREFIX and the engine key.
DataKey = NewType("DataKey", bytes)

DATA_PREFIX = b"z"
DATA_END = DataKey(b"{")

CF_DEFAULT = "default"
OTHER_CFS = ("lock", "write")
CFS = (CF_DEFAULT, *OTHER_CFS)

JOBS_AT_A_TIME = 2
_MIB = 1024 * 1024
_BATCH_PAIRS = 2000
_CHECK_EVERY = 512

P = ParamSpec("P")
R = TypeVar("R")


class EngineClosedError(Exception):
    """The store stopped while a job was running."""


def data_key(key: EngineKey) -> DataKey:
    """The form that RocksDB sees."""
    return DataKey(DATA_PREFIX + key)


def engine_key(key: DataKey) -> EngineKey:
    """Undo :func:`data_key`."""
    return EngineKey(key[1:])


class StoreEngine:
    """One store's RocksDB, with a pool for the jobs that would hold up the event loop.

    :param store_id: number of the store.
    :param path: directory of the store; RocksDB lives in ``db`` below it, files to ingest in ``import``, and files
        that no restart needs in ``scratch``.
    """

    def __init__(self, *, store_id: int, path: Path) -> None:
        self.store_id = store_id
        self.path = path
        self.import_dir = path / "import"
        self.scratch_dir = path / "scratch"
        shutil.rmtree(self.scratch_dir, ignore_errors=True)
        for directory in (self.import_dir, self.scratch_dir):
            directory.mkdir(parents=True, exist_ok=True)
        self.import_mode = ImportMode()
        self.download_limiter = RateLimiter()
        self._db = Rdict(str(path / "db"), _options(), column_families={cf: _options() for cf in OTHER_CFS})
        self._cfs: dict[str, Rdict] = {cf: self._db.get_column_family(cf) for cf in OTHER_CFS}
        self._cfs[CF_DEFAULT] = self._db
        self._handles = {cf: self._db.get_column_family_handle(cf) for cf in OTHER_CFS}
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=JOBS_AT_A_TIME, thread_name_prefix=f"store-{store_id}")

    # --- life ---

    async def run(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a job in the engine's pool.

        :raises EngineClosedError: the store stops.
        """
        if self._closing.is_set():
            raise EngineClosedError(f"store {self.store_id} is stopped")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: job(*args, **kwargs))

    def check_open(self) -> None:
        """Give long jobs a point to stop at.

        :raises EngineClosedError: the store stops.
        """
        if self._closing.is_set():
            raise EngineClosedError(f"store {self.store_id} is stopped")

    def close(self) -> None:
        """Let running jobs end, then close RocksDB."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for cf in OTHER_CFS:
            self._cfs[cf].close()
        self._cfs.clear()
        self._handles.clear()
        self._db.close()

    # --- reading ---

    def get(self, key: EngineKey, cf: str = CF_DEFAULT) -> bytes | None:
        """The stored value of a key."""
        value: bytes | None = self._cfs[cf].get(DATA_PREFIX + key)
        return value

    def items(
        self, keys: KeyRange[EngineKey], *, reverse: bool = False, cf: str = CF_DEFAULT
    ) -> Iterator[tuple[DataKey, bytes]]:
        """The stored pairs of a range, as they were when the scan began.

        :param keys: the range; an open end means the end of all data.
        :param reverse: from the end of the range downwards.
        """
        lower = DATA_PREFIX + keys.start
        upper = DATA_PREFIX + keys.end if keys.end else DATA_END
        options = ReadOptions()
        if not reverse:
            options.set_iterate_upper_bound(upper)
            # Delegating from here keeps ``options`` alive as long as the iterator.
            yield from cast("Iterator[tuple[DataKey, bytes]]", self._cfs[cf].items(from_key=lower, read_opt=options))
            return
        found = self._cfs[cf].items(backwards=True, from_key=upper, read_opt=options)
        for pair in cast("Iterator[tuple[DataKey, bytes]]", found):
            if pair[0] < lower:
                return
            # The first step back may land on the end itself, which is not part of the range.
            if pair[0] < upper:
                yield pair

    def guarded(self, pairs: Iterator[tuple[DataKey, bytes]]) -> Iterator[tuple[DataKey, bytes]]:
        """The same pairs, giving up when the store stops.

        :raises EngineClosedError: the store stops.
        """
        while chunk := list(itertools.islice(pairs, _CHECK_EVERY)):
            self.check_open()
            yield from chunk

    # --- writing ---

    def write(self, changes: Iterable[tuple[EngineKey, bytes | None]], cf: str = CF_DEFAULT) -> None:
        """Put pairs, and delete the keys whose value is None, in large atomic batches."""
        handle = self._handles.get(cf)
        todo = iter(changes)
        while chunk := list(itertools.islice(todo, _BATCH_PAIRS)):
            batch = WriteBatch(raw_mode=True)
            for key, value in chunk:
                if value is None:
                    batch.delete(DATA_PREFIX + key, handle)
                else:
                    batch.put(DATA_PREFIX + key, value, handle)
            self._db.write(batch)

    def delete_range(self, keys: KeyRange[EngineKey], cf: str = CF_DEFAULT) -> None:
        """Delete all of a range."""
        upper = DATA_PREFIX + keys.end if keys.end else DATA_END
        self._cfs[cf].delete_range(DATA_PREFIX + keys.start, upper)

    def ingest(self, path: Path, cf: str = CF_DEFAULT) -> None:
        """Take an SST file in; the file is moved.

        :raises Exception: RocksDB refuses the file.
        """
        options = IngestExternalFileOptions()
        options.set_move_files(True)
        self._cfs[cf].ingest_external_file([str(path)], options)

    def copy_range(self, keys: KeyRange[EngineKey], target: StoreEngine) -> None:
        """Make the range in another engine equal to the one here: what a peer that moves needs."""
        for cf in CFS:
            target.delete_range(keys, cf)
            pairs: Iterator[tuple[EngineKey, bytes | None]] = (
                (EngineKey(k[1:]), v) for k, v in self.guarded(self.items(keys, cf=cf))
            )
            target.write(pairs, cf)


def _options() -> Any:
    # Small buffers: a cluster of several stores shares one process with its tests.
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_write_buffer_size(16 * _MIB)
    options.set_max_write_buffer_number(3)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(1)
    options.set_max_open_files(256)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_max_total_wal_size(64 * _MIB)
    options.set_compression_type(DBCompressionType.lz4())
    table = BlockBasedOptions()
    table.set_block_size(32 * 1024)
    table.set_block_cache(Cache(16 * _MIB))
    table.set_bloom_filter(10, False)
    options.set_block_based_table_factory(table)
    return options
