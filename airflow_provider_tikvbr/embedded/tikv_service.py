"""The raw calls of one store: ``tikvpb.Tikv``.

Semantics: TiKV, ``src/storage/mod.rs``. Each call checks its API version, keys and options first, then the region it
addresses, then does its work on the store's RocksDB; a write goes to the RocksDB of every peer of the region at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grpc

from airflow_provider_tikvbr.embedded import checks
from airflow_provider_tikvbr.embedded.checks import RegionChecks, RegionRefusedError, RequestRefusedError
from airflow_provider_tikvbr.embedded.checksum import digest_of
from airflow_provider_tikvbr.embedded.engine import CF_DEFAULT, StoreEngine
from airflow_provider_tikvbr.embedded.raw import LivePair, RawFormat, RawReader, region_bounds
from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.embedded.releases import as_seen_by, knows_checksum
from airflow_provider_tikvbr.embedded.serving import Handler
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.proto import errorpb_pb2, kvrpcpb_pb2, methods
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, EngineKey, KeyCodec, KeyRange, region_boundary

Change = tuple[EngineKey, "bytes | None"]

_COPROCESSOR_OFF = "Coprocessor plugin is disabled!"


class TikvService:
    """The raw calls.

    :param topology: where regions and leaders stand.
    :param store_id: the store that serves.
    :param engines: the RocksDB of every store.
    """

    def __init__(self, *, topology: Topology, store_id: int, engines: Mapping[int, StoreEngine]) -> None:
        self._topology = topology
        self._engines = engines
        self._engine = engines[store_id]
        self._store = topology.stores[store_id]
        self._api = topology.api_version
        self._codec = topology.codec
        self._raw = RawFormat(self._api)
        self._reader = RawReader(engine=self._engine, raw=self._raw)
        self._checks = RegionChecks(topology=topology, store_id=store_id)

    # --- reading ---

    async def raw_get(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawGetResponse:
        """The value of one key."""
        response = kvrpcpb_pb2.RawGetResponse()
        with _answer(response):
            pair = self._get(request, "raw_get")
            response.not_found = pair is None
            response.value = pair.value if pair else b""
        return response

    async def raw_get_key_ttl(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawGetKeyTTLResponse:
        """How many seconds a key has left."""
        response = kvrpcpb_pb2.RawGetKeyTTLResponse()
        with _answer(response):
            if not self._raw.has_ttl:
                # A real store without TTL dies of this call; to refuse it is all that a client could want.
                raise RequestRefusedError("ttl is not enabled, but get a request for a key's ttl", "TtlNotEnabled")
            pair = self._get(request, "raw_get_key_ttl")
            response.not_found = pair is None
            response.ttl = max(pair.expire - int(time.time()), 0) if pair and pair.expire else 0
        return response

    def _get(self, request: Any, command: str) -> LivePair | None:
        checks.check_api_version(self._api, request.context, command)
        checks.check_key_mode(self._api, [request.key], command)
        region = self._checks.region(request.context)
        cf = checks.check_cf(self._api, request.cf)
        self._check_read(ApiKey(request.key), region)
        return self._reader.get(ApiKey(request.key), cf)

    def _check_read(self, key: ApiKey, region: RegionState) -> None:
        """A V2 read seeks, which fails as a region error; a V1 read looks up, which fails as an unknown one."""
        region_key = self._codec.region_key(key)
        if self._codec.is_v2:
            checks.check_in_region(region_key, region)
        elif not region.keys.contains(region_key):
            shown = f"[{region.start.hex().upper()}, {region.end.hex().upper()})"
            text = f"Key {key.hex().upper()} is out of [region {region.id}] {shown}"
            raise RequestRefusedError(f'unknown error "{text}"', f'Kv(Error(Other("{text}")))')

    async def raw_batch_get(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawBatchGetResponse:
        """The values of some keys; missing ones are left out."""
        response = kvrpcpb_pb2.RawBatchGetResponse()
        with _answer(response, "pairs"):
            checks.check_api_version(self._api, request.context, "raw_batch_get")
            checks.check_key_mode(self._api, request.keys, "raw_batch_get")
            region = self._checks.region(request.context)
            cf = checks.check_cf(self._api, request.cf)
            for key in request.keys:
                self._check_read(ApiKey(key), region)
                pair = self._reader.get(ApiKey(key), cf)
                if pair is not None:
                    response.pairs.add(key=key, value=pair.value)
        return response

    async def raw_scan(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawScanResponse:
        """Pairs in order, from the start key on, up to the end key or the region's end."""
        response = kvrpcpb_pb2.RawScanResponse()
        with _answer(response, "kvs"):
            ranges = [(request.start_key, request.end_key)]
            await self._scan(request, ranges, request.limit, "raw_scan", response.kvs)
        return response

    async def raw_batch_scan(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawBatchScanResponse:
        """Like a scan, for some ranges."""
        response = kvrpcpb_pb2.RawBatchScanResponse()
        with _answer(response, "kvs"):
            ranges = [(r.start_key, r.end_key) for r in request.ranges]
            await self._scan(request, ranges, request.each_limit, "raw_batch_scan", response.kvs)
        return response

    async def _scan(
        self, request: Any, ranges: Sequence[tuple[ApiKey, ApiKey]], limit: int, command: str, out: Any
    ) -> None:
        checks.check_api_version(self._api, request.context, command)
        checks.check_range_mode(self._api, ranges, command)
        region = self._checks.region(request.context)
        cf = checks.check_cf(self._api, request.cf)
        if command == "raw_batch_scan":
            ranges = _complete(ranges, reverse=request.reverse)
        wanted = [self._scan_range(start, end, region, reverse=request.reverse) for start, end in ranges]
        with self._topology.pinned(region.keys):
            pairs = await self._engine.run(self._scan_job, wanted, limit, request.reverse, cf)
        for pair in pairs:
            out.add(key=pair.key, value=b"" if request.key_only else pair.value)

    def _scan_range(
        self, start: ApiKey, end: ApiKey, region: RegionState, *, reverse: bool
    ) -> KeyRange[EngineKey] | None:
        """Check where the scan seeks to, and clip its range to the region; None if nothing is left."""
        seek, stop = self._codec.region_key(start), self._codec.region_key(end)
        checks.check_in_region(seek, region, inclusive=True)
        keys = KeyRange(stop, seek) if reverse else KeyRange(seek, stop)
        if reverse and not seek:
            return None
        clipped = checks.clip(keys, region)
        return region_bounds(clipped) if clipped else None

    def _scan_job(
        self, ranges: Iterable[KeyRange[EngineKey] | None], limit: int, reverse: bool, cf: str
    ) -> list[LivePair]:
        found: list[LivePair] = []
        for keys in ranges:
            if keys is not None and limit:
                pairs = self._reader.scan(keys, reverse=reverse, cf=cf)
                found += [pair for pair, _ in zip(pairs, range(limit), strict=False)]
        return found

    async def raw_checksum(self, request: Any, context: Any) -> kvrpcpb_pb2.RawChecksumResponse:
        """The checksum of the live pairs in some ranges, as far as the region holds them."""
        if not knows_checksum(self._store.version):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        response = kvrpcpb_pb2.RawChecksumResponse()
        with _answer(response):
            ranges = [(r.start_key, r.end_key) for r in request.ranges]
            checks.check_api_version(self._api, request.context, "raw_checksum")
            checks.check_range_mode(self._api, ranges, "raw_checksum")
            region = self._checks.region(request.context)
            wanted = [self._scan_range(start, end, region, reverse=False) for start, end in ranges]
            with self._topology.pinned(region.keys):
                for keys in filter(None, wanted):
                    digest = await self._engine.run(lambda keys: digest_of(self._reader.scan(keys)), keys)
                    response.checksum ^= digest.crc64xor
                    response.total_kvs += digest.kvs
                    response.total_bytes += digest.bytes
        return response

    async def raw_coprocessor(self, _request: Any, _context: Any) -> kvrpcpb_pb2.RawCoprocessorResponse:
        """No plug-ins here."""
        return kvrpcpb_pb2.RawCoprocessorResponse(error=_COPROCESSOR_OFF)

    async def get_store_safe_ts(self, _request: Any, _context: Any) -> kvrpcpb_pb2.StoreSafeTSResponse:
        """All that was written so far can be read everywhere."""
        return kvrpcpb_pb2.StoreSafeTSResponse(safe_ts=self._topology.tso())

    # --- writing ---

    async def raw_put(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawPutResponse:
        """Write one pair."""
        response = kvrpcpb_pb2.RawPutResponse()
        with _answer(response):
            checks.check_api_version(self._api, request.context, "raw_put")
            checks.check_key_mode(self._api, [request.key], "raw_put")
            checks.check_key_size([request.key])
            checks.check_ttl(self._api, [request.ttl], 1)
            cf = checks.check_cf(self._api, request.cf)
            ts = self._topology.tso()
            change = self._raw.put(ApiKey(request.key), request.value, request.ttl, ts)
            self._write(request.context, [request.key], [change], cf)
        return response

    async def raw_batch_put(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawBatchPutResponse:
        """Write some pairs at once."""
        response = kvrpcpb_pb2.RawBatchPutResponse()
        with _answer(response):
            keys = [p.key for p in request.pairs]
            ttls = list(request.ttls) or [0]
            ttls = ttls * len(keys) if len(ttls) == 1 else ttls
            checks.check_api_version(self._api, request.context, "raw_batch_put")
            checks.check_key_mode(self._api, keys, "raw_batch_put")
            cf = checks.check_cf(self._api, request.cf)
            checks.check_key_size(keys)
            checks.check_ttl(self._api, ttls, len(keys))
            ts = self._topology.tso()
            changes: list[Change] = [
                self._raw.put(ApiKey(p.key), p.value, ttl, ts) for p, ttl in zip(request.pairs, ttls, strict=True)
            ]
            self._write(request.context, keys, changes, cf)
        return response

    async def raw_delete(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawDeleteResponse:
        """Delete one key."""
        response = kvrpcpb_pb2.RawDeleteResponse()
        with _answer(response):
            self._delete(request, [request.key], "raw_delete")
        return response

    async def raw_batch_delete(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawBatchDeleteResponse:
        """Delete some keys at once."""
        response = kvrpcpb_pb2.RawBatchDeleteResponse()
        with _answer(response):
            self._delete(request, request.keys, "raw_batch_delete")
        return response

    def _delete(self, request: Any, keys: Sequence[ApiKey], command: str) -> None:
        checks.check_api_version(self._api, request.context, command)
        checks.check_key_mode(self._api, keys, command)
        checks.check_key_size(keys)
        cf = checks.check_cf(self._api, request.cf)
        ts = self._topology.tso()
        self._write(request.context, keys, [self._raw.delete(k, ts) for k in keys], cf)

    async def raw_delete_range(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawDeleteRangeResponse:
        """Delete a range for good, in V2 too."""
        response = kvrpcpb_pb2.RawDeleteRangeResponse()
        with _answer(response):
            checks.check_key_size([request.start_key, request.end_key])
            checks.check_api_version(self._api, request.context, "raw_delete_range")
            checks.check_range_mode(self._api, [(request.start_key, request.end_key)], "raw_delete_range")
            cf = checks.check_cf(self._api, request.cf)
            region = self._checks.region(request.context, writes=True)
            keys = self._codec.region_range(KeyRange(ApiKey(request.start_key), ApiKey(request.end_key)))
            if keys.end and keys.start >= keys.end:
                raise RequestRefusedError("invalid delete range command", 'Other("invalid delete range command")')
            checks.check_in_region(keys.start, region)
            if keys.end or region.end:
                checks.check_in_region(keys.end, region, inclusive=True)
            for store_id in region.store_ids:
                self._engines[store_id].delete_range(region_bounds(keys), cf)
        return response

    async def raw_compare_and_swap(self, request: Any, _context: Any) -> kvrpcpb_pb2.RawCASResponse:
        """Write or delete a key if its value is the expected one; the old value is told in any case."""
        response = kvrpcpb_pb2.RawCASResponse()
        with _answer(response):
            checks.check_api_version(self._api, request.context, "raw_compare_and_swap")
            checks.check_key_mode(self._api, [request.key], "raw_compare_and_swap")
            cf = checks.check_cf(self._api, request.cf)
            checks.check_ttl(self._api, [request.ttl], 1)
            region = self._checks.region(request.context)
            key = ApiKey(request.key)
            self._check_read(key, region)
            old = self._reader.get(key, cf)
            response.previous_not_exist = old is None
            response.previous_value = old.value if old else b""
            expected = None if request.previous_not_exist else request.previous_value
            response.succeed = (old.value if old else None) == expected
            if response.succeed:
                ts = self._topology.tso()
                change: Change = self._raw.put(key, request.value, request.ttl, ts)
                if request.delete:
                    change = self._raw.delete(key, ts)
                self._write(request.context, [request.key], [change], cf)
        return response

    def _write(
        self, context: kvrpcpb_pb2.Context, keys: Iterable[ApiKey], changes: Sequence[Change], cf: str = CF_DEFAULT
    ) -> None:
        region = self._checks.region(context, writes=True)
        for key in keys:
            checks.check_in_region(self._codec.region_key(key), region)
        for store_id in region.store_ids:
            self._engines[store_id].write(changes, cf)

    # --- regions ---

    def handlers(self) -> dict[Method[Any, Any], Handler]:
        """The calls and what serves them."""
        return {
            methods.KV_RAW_GET: self.raw_get,
            methods.KV_RAW_BATCH_GET: self.raw_batch_get,
            methods.KV_RAW_PUT: self.raw_put,
            methods.KV_RAW_BATCH_PUT: self.raw_batch_put,
            methods.KV_RAW_DELETE: self.raw_delete,
            methods.KV_RAW_BATCH_DELETE: self.raw_batch_delete,
            methods.KV_RAW_SCAN: self.raw_scan,
            methods.KV_RAW_DELETE_RANGE: self.raw_delete_range,
            methods.KV_RAW_BATCH_SCAN: self.raw_batch_scan,
            methods.KV_RAW_GET_KEY_TTL: self.raw_get_key_ttl,
            methods.KV_RAW_COMPARE_AND_SWAP: self.raw_compare_and_swap,
            methods.KV_RAW_CHECKSUM: self.raw_checksum,
            methods.KV_RAW_COPROCESSOR: self.raw_coprocessor,
            methods.KV_SPLIT_REGION: self.split_region,
            methods.KV_GET_STORE_SAFE_TS: self.get_store_safe_ts,
        }

    async def split_region(self, request: Any, _context: Any) -> kvrpcpb_pb2.SplitRegionResponse:
        """Split a region at some keys; the API version of the context does not count."""
        request = as_seen_by(self._store.version, request)
        response = kvrpcpb_pb2.SplitRegionResponse()
        with _answer(response):
            region = self._checks.led_region(request.context)
            sent = request.context.region_epoch
            # Keys that are not raw are encoded whatever the cluster's API version.
            codec = self._codec if request.is_raw_kv else KeyCodec(ApiVersion.V2)
            keys = [codec.region_key(ApiKey(k)) for k in (request.split_keys or [request.split_key])]
            if sent.version != region.version:
                error = checks.epoch_not_match(region, sent)
                ours, theirs = checks.epoch_text(region.epoch()), checks.epoch_text(sent)
                error.message = f"EpochNotMatch [region {region.id}] {region.leader.id} epoch changed {ours} != {theirs}, retry later"
                raise RegionRefusedError(error)
            for key in keys:
                checks.check_in_region(key, region, inclusive=True)
            inside = [k for k in map(region_boundary, keys) if k > region.start and k != region.end]
            if not inside:
                raise RegionRefusedError(errorpb_pb2.Error(message="no valid key found for split."))
            self._checks.check_open(region, writes=True)
            pieces = [piece.message() for piece in self._topology.split(region.id, inside)]
            response.regions.extend(pieces)
            if len(pieces) == 2:
                response.left.CopyFrom(pieces[0])
                response.right.CopyFrom(pieces[1])
        return response


def _complete(ranges: Sequence[tuple[ApiKey, ApiKey]], *, reverse: bool) -> list[tuple[ApiKey, ApiKey]]:
    """Close open ranges of a batch at the start of the next one; they must follow one another.

    :raises RequestRefusedError: they do not.
    """
    closed = [
        (start, end or (ranges[at + 1][0] if at + 1 < len(ranges) else ApiKey(b"")))
        for at, (start, end) in enumerate(ranges)
    ]
    for start, end in closed:
        if end and ((end >= start) if reverse else (start >= end)):
            raise RequestRefusedError("Invalid KeyRanges", 'Other("Invalid KeyRanges")')
    return closed


@contextlib.contextmanager
def _answer(response: Any, pairs: str = "") -> Iterator[None]:
    """Turn a refusal inside the block into the fields of the response that tell it.

    :param response: what will be answered.
    :param pairs: name of its repeated pairs, if errors are told there and not in a field ``error``.
    """
    try:
        yield
    except RegionRefusedError as refused:
        response.Clear()
        response.region_error.CopyFrom(refused.error)
    except RequestRefusedError as refused:
        response.Clear()
        if pairs:
            getattr(response, pairs).add().error.abort = refused.abort
        else:
            response.error = refused.text
