"""Backup of the regions that one store leads: ``backup.Backup/backup``.

Source: TiKV, ``components/backup/src`` (``endpoint.rs``, ``writer.rs``, ``utils.rs``).
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from fastcrc import crc64

from airflow_provider_tikvbr.embedded.checks import RegionChecks, RegionRefusedError, api_name, is_raw_range
from airflow_provider_tikvbr.embedded.checksum import Digest
from airflow_provider_tikvbr.embedded.conversion import Conversion
from airflow_provider_tikvbr.embedded.engine import CF_DEFAULT, CFS, DataKey, StoreEngine
from airflow_provider_tikvbr.embedded.fault_rules import Kind
from airflow_provider_tikvbr.embedded.fault_storage import InjectedStorageError, StoreFiles, told
from airflow_provider_tikvbr.embedded.limits import RateLimiter
from airflow_provider_tikvbr.embedded.raw import RawFormat, RawReader, region_bounds
from airflow_provider_tikvbr.embedded.releases import (
    as_seen_by,
    converts,
    gives_an_iv,
    replaces_local_files,
    sorts_files_by_store,
)
from airflow_provider_tikvbr.embedded.serving import Handler
from airflow_provider_tikvbr.embedded.sst_writer import SstCompression, write_sst
from airflow_provider_tikvbr.embedded.storages import io_error, open_for_store
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2, methods
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher, CipherMethod, new_iv
from airflow_provider_tikvbr.tikv.keys import (
    ApiKey,
    ApiVersion,
    KeyRange,
    RegionKey,
)

WORKERS = 2
# So many regions are noted ahead (``backup.batch-size``); one that changes before its turn comes is an error then.
BATCH = 8
_CHECK_EVERY = 0x3FF

_COMPRESSIONS = {
    brpb_pb2.UNKNOWN: SstCompression.LZ4,
    brpb_pb2.LZ4: SstCompression.LZ4,
    brpb_pb2.SNAPPY: SstCompression.SNAPPY,
    brpb_pb2.ZSTD: SstCompression.ZSTD,
}
# Storages where the files of a store share a directory; elsewhere its number is part of the name.
_WITH_DIRECTORIES = ("local", "s3")


class CancelledScanError(Exception):
    """The client has gone."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a region that a request asks for.

    :param keys: what to scan.
    :param api: the same as API keys of the cluster's version.
    """

    region_id: int
    version: int
    keys: KeyRange[RegionKey]
    api: KeyRange[ApiKey]


class BackupService:
    """Backs up what one store leads.

    :param topology: where regions and leaders stand.
    :param store_id: the store that serves.
    :param engines: the RocksDB of every store.
    :param files: how the store writes files.
    """

    def __init__(
        self, *, topology: Topology, store_id: int, engines: Mapping[int, StoreEngine], files: StoreFiles
    ) -> None:
        self._topology = topology
        self._store_id = store_id
        self._engine = engines[store_id]
        self._files = files

    def handlers(self) -> dict[Method[Any, Any], Handler]:
        """The call and what serves it."""
        return {methods.BACKUP: self.backup}

    async def backup(self, request: brpb_pb2.BackupRequest, context: Any) -> AsyncIterator[brpb_pb2.BackupResponse]:
        """One response per piece of a region, in no order; other stores' regions are left out without a word."""
        version = self._topology.stores[self._store_id].version
        request = as_seen_by(version, request)
        if not converts(version):
            request.dst_api_version = int(self._topology.api_version)  # type: ignore[assignment]
        if request.cf and request.cf not in CFS:
            await context.abort(grpc.StatusCode.UNKNOWN, f'InvalidCf {{ cf: "{request.cf}" }}')
        ranges = [KeyRange(ApiKey(r.start_key), ApiKey(r.end_key)) for r in request.sub_ranges]
        ranges = ranges or [KeyRange(ApiKey(request.start_key), ApiKey(request.end_key))]
        refusal = self._refusal(request, ranges)
        if refusal:
            yield _failed(refusal)
            return
        try:
            storage = open_for_store(request.storage_backend)
        except TikvBrError as error:
            yield _failed(io_error(error))
            return
        job = _Job(request, self._topology, self._store_id, self._engine, storage, self._files)
        try:
            async for response in job.responses(ranges):
                yield response
        finally:
            job.cancelled.set()
            await storage.close()

    def _refusal(self, request: brpb_pb2.BackupRequest, ranges: Iterable[KeyRange[ApiKey]]) -> str:
        ours = self._topology.api_version
        if not request.is_raw_kv:
            return 'Other("only raw pairs can be backed up here: set is_raw_kv")'
        convertible = request.dst_api_version in (int(ours), int(ApiVersion.V2))
        raw = ours is not ApiVersion.V2 or all(is_raw_range(r.start, r.end) for r in ranges)
        if convertible and raw:
            return ""
        names = f"cur: {api_name(ours)}, dst: {api_name(request.dst_api_version)}"
        return f'Other("[components/backup/src/endpoint.rs:1165]: invalid backup version, {names}")'


class _Job:
    """One backup request at work."""

    def __init__(
        self,
        request: brpb_pb2.BackupRequest,
        topology: Topology,
        store_id: int,
        engine: StoreEngine,
        storage: Storage,
        files: StoreFiles,
    ) -> None:
        self.cancelled = threading.Event()
        self._request = request
        self._topology = topology
        self._store_id = store_id
        self._engine = engine
        self._storage = storage
        self._files = files
        self._cf = request.cf or CF_DEFAULT
        self._limiter = RateLimiter(request.rate_limit)
        self._version = topology.stores[store_id].version
        self._convert = Conversion(topology.api_version, ApiVersion(int(request.dst_api_version)))
        self._reader = RawReader(engine=engine, raw=RawFormat(topology.api_version))
        self._checks = RegionChecks(topology=topology, store_id=store_id)

    async def responses(self, ranges: Sequence[KeyRange[ApiKey]]) -> AsyncIterator[brpb_pb2.BackupResponse]:
        """The responses as they come."""
        ready: asyncio.Queue[brpb_pb2.BackupResponse] = asyncio.Queue(maxsize=WORKERS)
        pieces = _ahead(self._pieces(ranges))
        workers = asyncio.gather(*(self._work(pieces, ready) for _ in range(WORKERS)))
        getter: asyncio.Future[brpb_pb2.BackupResponse] | None = None
        # Ending the workers is one more thing to wait for beside the next response.
        try:
            while True:
                getter = asyncio.ensure_future(ready.get())
                waiting: set[asyncio.Future[Any]] = {getter, workers}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    yield getter.result()
                    continue
                getter.cancel()
                if ready.empty():
                    await workers
                    return
        finally:
            self.cancelled.set()
            if getter is not None:
                getter.cancel()
            workers.cancel()
            await asyncio.gather(workers, return_exceptions=True)

    def _pieces(self, ranges: Iterable[KeyRange[ApiKey]]) -> Iterator[Piece]:
        """The pieces that this store leads; each look sees the regions as they are by then."""
        codec = self._topology.codec
        for api_range in ranges:
            wanted = codec.region_range(api_range)
            start = wanted.start
            while True:
                region = self._topology.region_of(start)
                keys = KeyRange(start, wanted.end).intersect(region.keys)
                if keys is None:
                    break
                if self._topology.leads(self._store_id, region):
                    yield Piece(region.id, region.version, keys, codec.api_range_of_regions(keys))
                # The region may have been split since: the next piece starts where this one ended.
                if not keys.end or (wanted.end and keys.end >= wanted.end):
                    break
                start = keys.end

    async def _work(self, pieces: Iterator[Piece], ready: asyncio.Queue[brpb_pb2.BackupResponse]) -> None:
        for piece in pieces:
            await ready.put(await self._back_up(piece))

    async def _back_up(self, piece: Piece) -> brpb_pb2.BackupResponse:
        response = brpb_pb2.BackupResponse(start_key=piece.api.start, end_key=piece.api.end)
        if converts(self._version):
            response.api_version = self._request.dst_api_version
        path = self._engine.scratch_dir / f"{uuid.uuid4().hex}.sst"
        try:
            self._checks.still_led(piece.region_id, piece.version)
            with self._topology.pinned(piece.keys):
                digest = await self._engine.run(self._write, piece, path)
            if digest is not None:
                data = await self._engine.run(path.read_bytes)
                response.files.append(await self._save(piece, data, digest))
        except RegionRefusedError as refused:
            response.error.region_error.CopyFrom(refused.error)
        except _BadCipherError:
            text = "[components/backup/src/writer.rs:127]: new EncrypterReader error: UnknownEncryption"
            response.error.msg = f'Other("{text}")'
        except _FileExistsError as error:
            response.error.msg = f'Io(Custom {{ kind: AlreadyExists, error: "{error}" }})'
        except TikvBrError as error:
            response.error.msg = io_error(error)
        finally:
            path.unlink(missing_ok=True)
        return response

    def _write(self, piece: Piece, path: Path) -> Digest | None:
        """Scan one piece into an SST file; runs in a thread, which goes on for a moment when the client has gone."""
        try:
            return self._write_rows(piece, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _write_rows(self, piece: Piece, path: Path) -> Digest | None:
        digest = Digest()
        pairs = self._reader.scan(region_bounds(piece.keys), cf=self._cf)
        rows = self._counted(self._convert.rows(pairs), digest)
        compression = _COMPRESSIONS[self._request.compression_type]
        written = write_sst(path, rows, compression=compression, level=self._request.compression_level)
        self._check_cancelled()
        return digest if written else None

    def _counted(self, rows: Iterator[tuple[DataKey, bytes, bytes]], digest: Digest) -> Iterator[tuple[DataKey, bytes]]:
        """Count rows on their way into the file."""
        crc_of = crc64.xz
        crc = kvs = size = 0
        for key, stored, data in rows:
            crc ^= crc_of(data)
            kvs += 1
            size += len(data)
            if not kvs & _CHECK_EVERY:
                self._check_cancelled()
            yield key, stored
        digest.crc64xor, digest.kvs, digest.bytes = crc, kvs, size

    def _check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise CancelledScanError("the client has gone")

    async def _save(self, piece: Piece, data: bytes, digest: Digest) -> brpb_pb2.File:
        iv = new_iv()
        cipher = self._cipher()
        stored = await self._engine.run(cipher.encrypt, data, iv)
        name = f"{self._base_name(piece)}_{self._cf}.sst"
        local = self._request.storage_backend.WhichOneof("backend") == "local"
        if local and not replaces_local_files(self._version) and await self._storage.exists(name):
            raise _FileExistsError(f"[{name}] is already exists in {self._request.storage_backend.local.path}")
        if local and self._topology.stores[self._store_id].disk_full:
            raise InjectedStorageError(told(Kind.STORAGE_DISK_FULL, methods.BACKUP.path))
        await self._limiter.spend(len(stored))
        await self._files.write(self._storage, name, stored, region_id=piece.region_id)
        keys = self._convert.api_range(piece.api)
        return brpb_pb2.File(
            name=name,
            sha256=await self._engine.run(lambda: hashlib.sha256(stored).digest()),
            start_key=keys.start,
            end_key=keys.end,
            crc64xor=digest.crc64xor,
            total_kvs=digest.kvs,
            total_bytes=digest.bytes,
            cf=self._cf,
            size=len(stored),
            cipher_iv=iv if gives_an_iv(self._version) else b"",
        )

    def _cipher(self) -> Cipher:
        if not self._request.HasField("cipher_info"):
            return PLAINTEXT
        info = self._request.cipher_info
        try:
            return Cipher(method=CipherMethod(int(info.cipher_type)), key=info.cipher_key)
        except ValueError as error:
            raise _BadCipherError from error

    def _base_name(self, piece: Piece) -> str:
        kind = self._request.storage_backend.WhichOneof("backend")
        slash = "/" if kind in _WITH_DIRECTORIES and sorts_files_by_store(self._version) else "_"
        base = f"{self._store_id}{slash}{piece.region_id}_{piece.version}"
        if not piece.api.start:
            return base
        return f"{base}_{hashlib.sha256(piece.api.start).hexdigest()}_{int(time.time() * 1000)}"


def _ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, looked for some at a time."""
    while batch := list(itertools.islice(pieces, BATCH)):
        yield from batch


class _BadCipherError(Exception):
    """Nobody can encrypt like this."""


class _FileExistsError(Exception):
    """The store does not write over files."""


def _failed(message: str) -> brpb_pb2.BackupResponse:
    return brpb_pb2.BackupResponse(error=brpb_pb2.Error(msg=message))
