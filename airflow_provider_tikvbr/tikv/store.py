"""One TiKV store: the calls of its Backup, ImportSST and Tikv services that a job makes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from airflow_provider_tikvbr.exceptions import ProtocolError
from airflow_provider_tikvbr.proto import (
    brpb_pb2,
    errorpb_pb2,
    import_sstpb_pb2,
    kvrpcpb_pb2,
    methods,
)
from airflow_provider_tikvbr.tikv import errors
from airflow_provider_tikvbr.tikv.addresses import NO_ADDRESS_MAP, AddressMap
from airflow_provider_tikvbr.tikv.certificates import Certificates
from airflow_provider_tikvbr.tikv.channel import Connection
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyRange
from airflow_provider_tikvbr.tikv.model import Peer, Region, Store
from airflow_provider_tikvbr.tikv.options import GrpcOptions, TlsOptions

CALL_TIMEOUT_S = 30.0
DOWNLOAD_TIMEOUT_S = 600.0


class StoreClient:
    """Calls to one store. Create it inside the running loop and close it; many calls may run at once.

    Backup and import calls go to the store's peer address if it has one, the others to its address.

    :param store: the store, as PD describes it.
    :param tls: certificates, or what keeps them up to date; None means plain connections.
    :param options: settings of the connections.
    :param address_map: where to reach the store's addresses.
    """

    def __init__(
        self,
        store: Store,
        *,
        tls: Certificates | TlsOptions | None,
        options: GrpcOptions,
        address_map: AddressMap = NO_ADDRESS_MAP,
    ) -> None:
        self.store = store
        certificates = Certificates.of(tls)

        def connection(address: str) -> Connection:
            return Connection(address_map.target(address), tls=certificates, options=options, store_id=store.id)

        self._kv = connection(store.address)
        self._data = self._kv if store.data_address == store.address else connection(store.data_address)

    async def close(self) -> None:
        """End every call and close the connections."""
        await self._kv.close()
        await self._data.close()

    # --- Backup ---

    def backup(
        self, request: brpb_pb2.BackupRequest, *, idle_timeout_s: float | None = None
    ) -> AsyncGenerator[brpb_pb2.BackupResponse, None]:
        """Back up the part of the request's range that this store leads. Closing the iterator cancels the job there.

        Errors inside a response are left to the caller, for the stream goes on after them.

        :param idle_timeout_s: how long the store may be silent, in seconds; None means for ever.
        :raises StoreUnavailableError: the stream broke, or was silent for too long.
        """
        return self._data.stream(methods.BACKUP, request, idle_timeout_s=idle_timeout_s)

    # --- ImportSST ---

    async def download(
        self, request: import_sstpb_pb2.DownloadRequest, *, timeout_s: float = DOWNLOAD_TIMEOUT_S
    ) -> import_sstpb_pb2.DownloadResponse:
        """Let the store fetch a backup file and cut it to a region.

        :return: the answer; ``is_empty`` means that no pair of the file lies in the range.
        :raises DownloadFailedError: the store could not fetch the file for now.
        :raises BackupFileError: the file is missing or damaged, or the cipher is wrong.
        """
        response = await self._data.call(methods.IMPORT_DOWNLOAD, request, timeout_s=timeout_s)
        if response.HasField("error"):
            error = response.error
            if error.HasField("store_error"):
                raise self._region_error(error.store_error, request.sst.region_id, self._data)
            raise errors.from_download_error(
                error.message,
                file=request.name,
                store_id=self.store.id,
                address=self._data.address,
                secrets=errors.secrets_of(request.storage_backend),
            )
        return response

    async def multi_ingest(
        self,
        context: kvrpcpb_pb2.Context,
        ssts: Sequence[import_sstpb_pb2.SSTMeta],
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        """Take downloaded files into a region that this store leads.

        :raises RegionError: the region has changed, moved or is not ready.
        :raises ApiVersionError: the files are of another API version than the store.
        """
        request = import_sstpb_pb2.MultiIngestRequest(context=context, ssts=ssts)
        response = await self._data.call(methods.IMPORT_MULTI_INGEST, request, timeout_s=timeout_s)
        self._check_ingest(response, context)

    async def ingest(
        self, context: kvrpcpb_pb2.Context, sst: import_sstpb_pb2.SSTMeta, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        """Take one downloaded file into a region; for stores without :meth:`multi_ingest`.

        :raises RegionError: the region has changed, moved or is not ready.
        """
        request = import_sstpb_pb2.IngestRequest(context=context, sst=sst)
        response = await self._data.call(methods.IMPORT_INGEST, request, timeout_s=timeout_s)
        self._check_ingest(response, context)

    async def switch_mode(self, *, import_mode: bool, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Switch to import mode, which the store leaves by itself after ten minutes, or back to normal."""
        mode = import_sstpb_pb2.Import if import_mode else import_sstpb_pb2.Normal
        await self._kv.call(
            methods.IMPORT_SWITCH_MODE, import_sstpb_pb2.SwitchModeRequest(mode=mode), timeout_s=timeout_s
        )

    async def set_download_speed_limit(self, bytes_per_s: int, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Limit how fast the store fetches backup files.

        :param bytes_per_s: the limit; 0 means none.
        """
        request = import_sstpb_pb2.SetDownloadSpeedLimitRequest(speed_limit=bytes_per_s)
        await self._data.call(methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT, request, timeout_s=timeout_s)

    # --- Tikv ---

    async def split_region(
        self, region: Region, keys: Sequence[ApiKey], *, timeout_s: float = CALL_TIMEOUT_S
    ) -> list[Region]:
        """Split a region that this store leads.

        :param region: the region; its leader must be on this store.
        :param keys: API keys strictly inside it; the store encodes them as region keys by itself.
        :return: all pieces in key order, each with the leader that this store has for it.
        :raises RegionError: the region has changed, moved or is not ready.
        :raises RegionRefusedError: none of the keys lies inside the region, or one lies outside.
        """
        peer = self._own_peer(region)
        request = kvrpcpb_pb2.SplitRegionRequest(context=region.context(peer), split_keys=keys, is_raw_kv=True)
        response = await self._kv.call(methods.KV_SPLIT_REGION, request, timeout_s=timeout_s)
        if response.HasField("region_error"):
            raise self._region_error(response.region_error, region.id, self._kv)
        # A split keeps the leader's store: every piece is led by its peer here.
        pieces = [Region.of(piece) for piece in response.regions]
        return [_led_by(piece, self.store.id) for piece in pieces]

    async def raw_checksum(
        self,
        region: Region,
        peer: Peer,
        keys: KeyRange[ApiKey],
        api_version: ApiVersion,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> kvrpcpb_pb2.RawChecksumResponse:
        """Checksum of a region's live pairs.

        :param peer: the region's leader, on this store.
        :param keys: the start must lie inside the region; of what reaches beyond its end nothing is read.
        :raises RegionError: the region has changed, moved or is not ready.
        """
        request = kvrpcpb_pb2.RawChecksumRequest(
            context=region.context(peer, api_version),
            algorithm=kvrpcpb_pb2.Crc64_Xor,
            ranges=[kvrpcpb_pb2.KeyRange(start_key=keys.start, end_key=keys.end)],
        )
        response = await self._kv.call(methods.KV_RAW_CHECKSUM, request, timeout_s=timeout_s)
        if response.HasField("region_error"):
            raise self._region_error(response.region_error, region.id, self._kv)
        if response.error:
            raise self._kv_error(response.error, methods.KV_RAW_CHECKSUM.path, region.id)
        return response

    async def raw_scan(
        self,
        region: Region,
        peer: Peer,
        keys: KeyRange[ApiKey],
        *,
        limit: int,
        api_version: ApiVersion,
        key_only: bool = False,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> list[tuple[ApiKey, bytes]]:
        """One page of a region's live pairs, in key order.

        :param peer: the region's leader, on this store.
        :param keys: where to read; the store stops at the region's end. V2 wants an end.
        :param limit: most pairs to return; the store allows 10240.
        :raises RegionError: the region has changed, moved or is not ready.
        """
        request = kvrpcpb_pb2.RawScanRequest(
            context=region.context(peer, api_version),
            start_key=keys.start,
            end_key=keys.end,
            limit=limit,
            key_only=key_only,
        )
        response = await self._kv.call(methods.KV_RAW_SCAN, request, timeout_s=timeout_s)
        if response.HasField("region_error"):
            raise self._region_error(response.region_error, region.id, self._kv)
        for pair in response.kvs:
            if pair.HasField("error"):
                raise self._kv_error(pair.error.abort or str(pair.error), methods.KV_RAW_SCAN.path, region.id)
        return [(ApiKey(pair.key), pair.value) for pair in response.kvs]

    # --- helpers ---

    def _own_peer(self, region: Region) -> Peer:
        for peer in region.peers:
            if peer.store_id == self.store.id:
                return peer
        raise ProtocolError(
            f"region {region.id} has no peer on store {self.store.id}", region_id=region.id, store_id=self.store.id
        )

    def _check_ingest(self, response: import_sstpb_pb2.IngestResponse, context: kvrpcpb_pb2.Context) -> None:
        if response.HasField("error"):
            raise self._region_error(response.error, context.region_id, self._data)

    def _region_error(self, error: errorpb_pb2.Error, region_id: int, connection: Connection) -> Exception:
        return errors.from_region_error(error, region_id=region_id, store_id=self.store.id, address=connection.address)

    def _kv_error(self, text: str, method: str, region_id: int) -> Exception:
        return errors.from_kv_error(
            text, method=method, region_id=region_id, store_id=self.store.id, address=self._kv.address
        )


def _led_by(region: Region, store_id: int) -> Region:
    leader = next((peer for peer in region.peers if peer.store_id == store_id), None)
    return replace(region, leader=leader)
