"""Bring one backup file, cut to one region, to every peer of that region.

A peer that applies an ingest without having the file panics and takes its TiKV down, again at every restart (TiKV,
``raftstore/src/store/fsm/apply.rs``, ``handle_ingest_sst``). So all peers that PD reports come first: learners and
peers on stores that are down too.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict

from airflow_provider_tikvbr.exceptions import (
    DownloadFailedError,
    EpochNotMatchError,
    StoreUnavailableError,
    TransientError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, import_sstpb_pb2
from airflow_provider_tikvbr.rawbr.meta import RAW_CF
from airflow_provider_tikvbr.rawbr.tasks import all_or_cancel
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey
from airflow_provider_tikvbr.tikv.model import Region
from airflow_provider_tikvbr.tikv.retry import Backoff

# Downloads that one store does for us at a time. More would only wait there, and run into their time limit.
PER_STORE = 64
# A store that answers pings but never finishes is given up after this, and the time that its queue may take: files can be
# as large as regions, and a backup storage slow.
TIMEOUT_S = 600.0
SLOW_BYTES_PER_S = 16 << 20


def timeout_s(length: int, rate_limit: int) -> float:
    """How long one download may take, in seconds.

    :param length: bytes of the file; those before it in the store's queue are taken to be as long.
    :param rate_limit: bytes per second that the store may download; 0 means no limit.
    """
    pace = min(rate_limit or SLOW_BYTES_PER_S, SLOW_BYTES_PER_S)
    return TIMEOUT_S + 2 * PER_STORE * length / pace


class Downloader:
    """Has stores download the files of one backup.

    :param cluster: the target.
    :param storage: where the backup is.
    :param cipher: how the files are encrypted.
    :param keys: the wanted range; nothing outside it is restored.
    :param rate_limit: bytes per second that each store may download; 0 means no limit.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        storage: Storage,
        cipher: brpb_pb2.CipherInfo,
        keys: KeyRange[RegionKey],
        rate_limit: int = 0,
    ) -> None:
        self._cluster = cluster
        self._storage = storage
        self._cipher = cipher
        self._keys = keys
        self._rate_limit = rate_limit
        self._slots: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(PER_STORE))

    async def fetch(self, file: brpb_pb2.File, region: Region, backoff: Backoff) -> import_sstpb_pb2.SSTMeta | None:
        """Bring a file to every peer of a region; stores that cannot be reached are waited for.

        :param file: its entry in backupmeta.
        :param region: as the cache knows it.
        :param backoff: pauses between tries, and when to give up.
        :return: what to ingest; None if the file has no pair in the region.
        :raises EpochNotMatchError: the region has changed meanwhile.
        :raises BudgetExceededError: some store did not manage for too long.
        :raises BackupFileError: the file is missing or damaged.
        """
        keys = self._keys.intersect(region.keys)
        if keys is None:
            return None
        request = self._request(file, region, keys)
        missing = {peer.store_id for peer in region.peers}
        answers: dict[int, import_sstpb_pb2.DownloadResponse] = {}
        while True:
            # Afresh for each try: the credentials may be temporary ones.
            request.storage_backend.CopyFrom(await asyncio.to_thread(self._storage.backend))
            error = await self._try(request, missing, answers)
            missing -= answers.keys()
            if error is None:
                break
            await backoff.sleep(error)
            # PD may have replaced the peer that fails; the file must then be on the new one.
            now = await self._cluster.pd.region_by_id(region.id)
            if now is None or (now.conf_ver, now.version) != (region.conf_ver, region.version):
                raise EpochNotMatchError(
                    f"region {region.id} has changed while {file.name} was downloaded to it",
                    kind="epoch_not_match",
                    region_id=region.id,
                    current_regions=(now,) if now else (),
                )
        return self._sst(request, answers)

    async def _try(
        self,
        request: import_sstpb_pb2.DownloadRequest,
        store_ids: set[int],
        answers: dict[int, import_sstpb_pb2.DownloadResponse],
    ) -> TransientError | None:
        """Ask stores for one download each; keep their answers, and return one error of those that failed."""

        async def ask(store_id: int) -> TransientError | None:
            try:
                async with self._slots[store_id]:
                    client = await self._cluster.client(store_id)
                    answers[store_id] = await client.download(
                        request, timeout_s=timeout_s(request.sst.length, self._rate_limit)
                    )
            except TransientError as err:
                return err
            return None

        errors = await all_or_cancel(ask(store_id) for store_id in sorted(store_ids))
        return next((error for error in errors if error is not None), None)

    def _request(
        self, file: brpb_pb2.File, region: Region, keys: KeyRange[RegionKey]
    ) -> import_sstpb_pb2.DownloadRequest:
        # An empty end reaches to the end of the region, whatever keys there are; tikv-br sends ten 0xFF bytes there and
        # loses the keys behind them.
        sst = import_sstpb_pb2.SSTMeta(
            uuid=uuid.uuid4().bytes,
            range=import_sstpb_pb2.Range(start=keys.start, end=keys.end),
            length=file.size,
            cf_name=RAW_CF,
            region_id=region.id,
            region_epoch=region.epoch,
            end_key_exclusive=True,
            api_version=int(self._cluster.api_version),  # type: ignore[arg-type]
            cipher_iv=file.cipher_iv,
        )
        return import_sstpb_pb2.DownloadRequest(
            sst=sst,
            name=file.name,
            rewrite_rule=import_sstpb_pb2.RewriteRule(),
            is_raw_kv=True,
            cipher_info=self._cipher,
        )

    def _sst(
        self, request: import_sstpb_pb2.DownloadRequest, answers: dict[int, import_sstpb_pb2.DownloadResponse]
    ) -> import_sstpb_pb2.SSTMeta | None:
        """What to ingest: the request's file with the range that it really has."""
        found = list(answers.values())
        if any((a.is_empty, a.range) != (found[0].is_empty, found[0].range) for a in found):
            raise DownloadFailedError(
                f"the stores {sorted(answers)} found different keys in {request.name} for region "
                f"{request.sst.region_id}: do all of them see the same storage?",
                file=request.name,
                region_id=request.sst.region_id,
            )
        if not found:
            raise StoreUnavailableError(
                f"PD knows of no peer of region {request.sst.region_id}", region_id=request.sst.region_id
            )
        if found[0].is_empty:
            return None
        sst = import_sstpb_pb2.SSTMeta()
        sst.CopyFrom(request.sst)
        sst.range.CopyFrom(found[0].range)
        return sst
