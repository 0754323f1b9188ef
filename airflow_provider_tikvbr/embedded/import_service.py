"""Taking backup files in: ``import_sstpb.ImportSST``.

Source: TiKV, ``src/import`` and ``components/sst_importer/src``; what happens at a peer is in
``components/raftstore/src/store/fsm/apply.rs``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from airflow_provider_tikvbr.embedded import checks
from airflow_provider_tikvbr.embedded.checks import RegionChecks, RegionRefusedError
from airflow_provider_tikvbr.embedded.engine import CF_DEFAULT, StoreEngine
from airflow_provider_tikvbr.embedded.fault_storage import StoreFiles
from airflow_provider_tikvbr.embedded.import_files import (
    DownloadRefusedError,
    KeySpan,
    drop_stale,
    existing_span,
    import_path,
    take_sst,
    wanted_range,
)
from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.embedded.releases import as_seen_by, knows_multi_ingest
from airflow_provider_tikvbr.embedded.serving import Handler
from airflow_provider_tikvbr.embedded.storages import SharedStorages
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.exceptions import StorageNotFoundError, TikvBrError
from airflow_provider_tikvbr.proto import errorpb_pb2, import_sstpb_pb2, kvrpcpb_pb2, methods
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.storage.cipher import Cipher
from airflow_provider_tikvbr.tikv.keys import ApiVersion, RegionKey

# A restore asks for hundreds of downloads at a time; each holds a whole file in memory while it is checked.
DOWNLOADS_AT_A_TIME = 4

_INGEST_CFS = (CF_DEFAULT, "write")


@dataclass(slots=True)
class _Running:
    """Downloads of one file that are under way: one works, the others wait."""

    meta: bytes
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class ImportService:
    """Downloads and ingests for one store.

    :param topology: where regions and leaders stand.
    :param store_id: the store that serves.
    :param engines: the RocksDB of every store.
    :param files: how the store reads files.
    """

    def __init__(
        self, *, topology: Topology, store_id: int, engines: Mapping[int, StoreEngine], files: StoreFiles
    ) -> None:
        self._topology = topology
        self._files = files
        self._store_id = store_id
        self._engines = engines
        self._engine = engines[store_id]
        self._checks = RegionChecks(topology=topology, store_id=store_id)
        self._downloads = asyncio.Semaphore(DOWNLOADS_AT_A_TIME)
        self._storages = SharedStorages()
        self._at_work: dict[Path, _Running] = {}
        self._ingesting: set[Path] = set()
        # A store that starts is in normal mode and without limit, whatever it was before.
        self._engine.import_mode.switch(False)
        self._engine.download_limiter.set_rate(0)
        drop_stale(self._engine, topology)

    @property
    def _version(self) -> str:
        return self._topology.stores[self._store_id].version

    def handlers(self) -> dict[Method[Any, Any], Handler]:
        """The calls and what serves them."""
        table: dict[Method[Any, Any], Handler] = {
            methods.IMPORT_SWITCH_MODE: self.switch_mode,
            methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT: self.set_download_speed_limit,
            methods.IMPORT_DOWNLOAD: self.download,
            methods.IMPORT_INGEST: self.ingest,
            methods.IMPORT_MULTI_INGEST: self.multi_ingest,
        }
        return table

    # --- settings ---

    async def switch_mode(
        self, request: import_sstpb_pb2.SwitchModeRequest, _context: Any
    ) -> import_sstpb_pb2.SwitchModeResponse:
        """Enter or leave import mode; it ends by itself after a while."""
        self._engine.import_mode.switch(request.mode == import_sstpb_pb2.Import)
        if not self._engine.import_mode.is_on:
            # The end of a restore; what it left behind is of no use to the next one.
            drop_stale(self._engine, self._topology)
        return import_sstpb_pb2.SwitchModeResponse()

    async def set_download_speed_limit(
        self, request: import_sstpb_pb2.SetDownloadSpeedLimitRequest, _context: Any
    ) -> import_sstpb_pb2.SetDownloadSpeedLimitResponse:
        """Limit the bytes per second of all downloads together; 0 for no limit."""
        self._engine.download_limiter.set_rate(request.speed_limit)
        return import_sstpb_pb2.SetDownloadSpeedLimitResponse()

    # --- download ---

    async def download(
        self, request: import_sstpb_pb2.DownloadRequest, context: Any
    ) -> import_sstpb_pb2.DownloadResponse:
        """Fetch a file and keep what lies in the wanted range."""
        request = as_seen_by(self._version, request)
        if request.storage_backend.WhichOneof("backend") == "hdfs":
            # TiKV, ``components/external_storage/src/hdfs.rs``: reading is not implemented, and a panic ends the process.
            self._topology.crash(self._store_id)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        response = import_sstpb_pb2.DownloadResponse()
        try:
            span = await self._download_once(request)
        except TikvBrError as error:
            response.error.message = error.message
            return response
        if span is None:
            response.is_empty = True
        else:
            response.range.start, response.range.end = span
        return response

    async def _download_once(self, request: import_sstpb_pb2.DownloadRequest) -> KeySpan | None:
        """Let equal requests wait for one another: whoever comes second finds the file there."""
        try:
            path = import_path(self._engine, request.sst)
        except ValueError as error:
            raise DownloadRefusedError(str(error)) from None
        meta = request.sst.SerializeToString(deterministic=True)
        running = self._at_work.setdefault(path, _Running(meta))
        if running.meta != meta:
            raise DownloadRefusedError("mismatch request type")
        running.waiting += 1
        try:
            async with running.lock:
                return await self._download(request, path)
        finally:
            running.waiting -= 1
            if not running.waiting:
                self._at_work.pop(path, None)

    async def _download(self, request: import_sstpb_pb2.DownloadRequest, path: Path) -> KeySpan | None:
        rule = request.rewrite_rule
        if rule.old_key_prefix != rule.new_key_prefix or rule.new_timestamp:
            raise DownloadRefusedError("raw files are not rewritten here: leave the rewrite rule empty")
        found = await self._engine.run(existing_span, path)
        if found is not None:
            return found
        failed = f"Cannot read {_place(request)}/{request.name} into {self._engine.scratch_dir / path.name}: "
        try:
            # All that wait for their turn hold the storage open together.
            async with self._storages.use(request.storage_backend) as storage, self._downloads:
                data = await self._files.read(storage, request.name, region_id=request.sst.region_id)
                if self._topology.stores[self._store_id].disk_full:
                    raise DownloadRefusedError(f"{failed}No space left on device (os error 28)")
                await self._engine.download_limiter.spend(len(data))
                if request.sst.length and len(data) != request.sst.length:
                    raise DownloadRefusedError(f"{failed}downloaded size {len(data)}, expected {request.sst.length}")
                data = await self._decrypt(request, data)
                wanted = wanted_range(request.sst)
                return await self._engine.run(take_sst, data, wanted, path, self._engine.scratch_dir)
        except DownloadRefusedError:
            raise
        except StorageNotFoundError:
            raise DownloadRefusedError(failed + "No such file or directory (os error 2)") from None
        except TikvBrError as error:
            raise DownloadRefusedError(failed + error.message) from error

    async def _decrypt(self, request: import_sstpb_pb2.DownloadRequest, data: bytes) -> bytes:
        if not request.HasField("cipher_info"):
            return data
        try:
            cipher = Cipher.of_message(request.cipher_info)
        except ValueError as error:
            raise DownloadRefusedError(f'Encryption "{error}"') from error
        return await self._engine.run(cipher.decrypt, data, request.sst.cipher_iv)

    # --- ingest ---

    async def ingest(self, request: import_sstpb_pb2.IngestRequest, context: Any) -> import_sstpb_pb2.IngestResponse:
        """Take one file into a region."""
        return await self._ingest_all(request.context, [request.sst], context)

    async def multi_ingest(
        self, request: import_sstpb_pb2.MultiIngestRequest, context: Any
    ) -> import_sstpb_pb2.IngestResponse:
        """Take some files into a region."""
        if not knows_multi_ingest(self._version):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        return await self._ingest_all(request.context, request.ssts, context)

    async def _ingest_all(
        self, region_context: kvrpcpb_pb2.Context, ssts: Sequence[import_sstpb_pb2.SSTMeta], call: Any
    ) -> import_sstpb_pb2.IngestResponse:
        if not all(_fits(self._topology.api_version, sst.api_version) for sst in ssts):
            await call.abort(grpc.StatusCode.UNKNOWN, "IncompatibleApiVersion")
        response = import_sstpb_pb2.IngestResponse()
        try:
            with self._latched(ssts):
                region = self._checks.region(region_context, writes=True)
                if not all(import_path(self._engine, sst).exists() for sst in ssts):
                    error = checks.stale_command("The file which would be ingested doest not exist.")
                    raise RegionRefusedError(error)
                for sst in ssts:
                    self._check_sst(sst, region)
                with self._topology.pinned(region.keys):
                    await _to_the_end(asyncio.gather(*(self._apply(s, ssts) for s in region.store_ids)))
        except RegionRefusedError as refused:
            response.error.CopyFrom(refused.error)
        return response

    @contextlib.contextmanager
    def _latched(self, ssts: Sequence[import_sstpb_pb2.SSTMeta]) -> Iterator[None]:
        """Keep a second ingest of the same files out while the first is under way."""
        try:
            paths = {import_path(self._engine, sst) for sst in ssts}
        except ValueError as error:
            raise RegionRefusedError(errorpb_pb2.Error(message=str(error))) from None
        if paths & self._ingesting:
            raise RegionRefusedError(errorpb_pb2.Error(message="ingest file conflict"))
        self._ingesting |= paths
        try:
            yield
        finally:
            self._ingesting -= paths

    def _check_sst(self, sst: import_sstpb_pb2.SSTMeta, region: RegionState) -> None:
        """What the region checks of a file when the command is applied; a file that fails is of no use any more."""
        try:
            if sst.cf_name not in _INGEST_CFS:
                raise RegionRefusedError(errorpb_pb2.Error(message=f"invalid cf name {sst.cf_name}"))
            if sst.region_id != region.id:
                raise RegionRefusedError(checks.region_not_found(sst.region_id))
            if sst.region_epoch != region.epoch():
                raise RegionRefusedError(checks.epoch_not_match(region, sst.region_epoch))
            checks.check_in_region(RegionKey(sst.range.start), region)
            checks.check_in_region(RegionKey(sst.range.end), region)
        except RegionRefusedError:
            import_path(self._engine, sst).unlink(missing_ok=True)
            raise

    async def _apply(self, store_id: int, ssts: Sequence[import_sstpb_pb2.SSTMeta]) -> None:
        """Ingest at one peer; a peer without a file takes its store down, now and at every start.

        The peers of a store that is down ingest here what they would when it is back.
        """
        engine = self._engines[store_id]
        for sst in ssts:
            path = import_path(engine, sst)
            if not path.exists():
                reason = f"region {sst.region_id} ingested {path.name}, which is not here"
                self._topology.lacks(sst.region_id, store_id, reason)
                return
            await engine.run(engine.ingest, path, sst.cf_name)


async def _to_the_end(applied: asyncio.Future[list[None]]) -> None:
    """Wait for what was proposed: every peer applies it, whatever becomes of the client."""
    try:
        await asyncio.shield(applied)
    except asyncio.CancelledError:
        await asyncio.gather(applied, return_exceptions=True)
        raise


def _fits(storage: ApiVersion, file: int) -> bool:
    """Whether a file's API version suits; clients that do not know of TTL send V1 to a V1TTL store."""
    return file == int(storage) or (storage is ApiVersion.V1TTL and file == int(ApiVersion.V1))


def _place(request: import_sstpb_pb2.DownloadRequest) -> str:
    """The storage as TiKV names it in messages."""
    backend = request.storage_backend
    kind = backend.WhichOneof("backend")
    if kind == "local":
        return f"local://{backend.local.path}"
    if kind == "s3":
        return f"s3://{backend.s3.bucket}/{backend.s3.prefix}".rstrip("/")
    return f"{kind}://"
