"""Bring one backup file, cut to one region, to every peer of that region.

A peer that applies an ingest without having the file panics and takes its TiKV down, again at every restart (TiKV,
``raftstore/src/store/fsm/apply.rs``, ``handle_ingest_sst``). So all peers that PD reports come first: learners and
peers on stores that are down too.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol

from airflow_provider_tikvbr.exceptions import (
    DownloadFailedError,
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

# Downloads that one store does for us at a time. More would only wait there, and run into their time limit.
PER_STORE = 64
# A store that answers pings but never finishes is given up after this, and the time that its queue may take: files can be
# as large as regions, and a backup storage slow.
TIMEOUT_S = 600.0
SLOW_BYTES_PER_S = 16 << 20
# Stores keep a downloaded file as long as the region does not change, but nobody promises for how long.
KEPT_S = 600.0


def timeout_s(length: int, rate_limit: int) -> float:
    """How long one download may take, in seconds.

    :param length: bytes of the file; those before it in the store's queue are taken to be as long.
    :param rate_limit: bytes per second that the store may download; 0 means no limit.
    """
    pace = min(rate_limit or SLOW_BYTES_PER_S, SLOW_BYTES_PER_S)
    return TIMEOUT_S + 2 * PER_STORE * length / pace


class StoreWatch(Protocol):
    """Who knows which stores answer."""

    def check(self, store_id: int) -> None:
        """Nothing, if a store may be asked.

        :raises StoreUnavailableError: it does not answer for now, so it need not be asked.
        """

    def store_failed(self, store_id: int, error: StoreUnavailableError) -> None:
        """A store did not answer."""

    def store_answered(self, store_id: int) -> None:
        """A store did what it was asked for."""


@dataclass(eq=False, slots=True, kw_only=True)
class Fetch:
    """A file on its way to the peers of a region, as far as it has come.

    :param region: the region as it was at the beginning.
    :param missing: stores that do not have the file yet.
    :param answers: what the others have found in it.
    :param begun_at: when it was begun, on the event loop's clock.
    :param refused_at: when the region first refused it for a reason that we do not know.
    """

    region: Region
    request: import_sstpb_pb2.DownloadRequest
    missing: set[int]
    answers: dict[int, import_sstpb_pb2.DownloadResponse] = field(default_factory=dict)
    begun_at: float
    refused_at: float | None = None

    def fits(self, region: Region) -> bool:
        """Whether it may be gone on with: the region is the same, with the same peers, and stores still keep the file."""
        known = self.region
        same = (known.id, known.conf_ver, known.version) == (region.id, region.conf_ver, region.version)
        return same and _now() - self.begun_at < KEPT_S


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

    def begin(self, file: brpb_pb2.File, region: Region) -> Fetch | None:
        """Prepare to bring a file to every peer of a region.

        :param file: its entry in backupmeta.
        :param region: as PD knows it.
        :return: None if nothing that is wanted lies in the region.
        """
        keys = self._keys.intersect(region.keys)
        if keys is None:
            return None
        missing = {peer.store_id for peer in region.peers}
        return Fetch(region=region, request=self._request(file, region, keys), missing=missing, begun_at=_now())

    async def go_on(self, fetch: Fetch, watch: StoreWatch) -> import_sstpb_pb2.SSTMeta | None:
        """Ask each store once that does not have the file yet.

        :param watch: knows which stores need not be asked, and is told of each that answers or does not.
        :return: what to ingest, now that every peer has it; None if the file has no pair in the region.
        :raises StoreUnavailableError: a store does not answer.
        :raises DownloadFailedError: a store did not manage.
        :raises BackupFileError: the file is missing or damaged.
        """
        if fetch.missing:
            # Afresh for each try: the credentials may be temporary ones.
            fetch.request.storage_backend.CopyFrom(await asyncio.to_thread(self._storage.backend))
            error = await self._try(fetch, watch)
            if error is not None:
                raise error
        return self._sst(fetch.request, fetch.answers)

    async def _try(self, fetch: Fetch, watch: StoreWatch) -> TransientError | None:
        """Ask stores for one download each; keep their answers, and return one error of those that failed."""

        async def ask(store_id: int) -> TransientError | None:
            try:
                async with self._slots[store_id]:
                    watch.check(store_id)
                    client = await self._cluster.client(store_id)
                    fetch.answers[store_id] = await client.download(
                        fetch.request, timeout_s=timeout_s(fetch.request.sst.length, self._rate_limit)
                    )
            except StoreUnavailableError as err:
                watch.store_failed(store_id, err)
                return err
            except TransientError as err:
                return err
            fetch.missing.discard(store_id)
            watch.store_answered(store_id)
            return None

        errors = [e for e in await all_or_cancel(ask(store_id) for store_id in sorted(fetch.missing)) if e is not None]
        # What others wait for too comes first.
        errors.sort(key=lambda error: not isinstance(error, StoreUnavailableError))
        return errors[0] if errors else None

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


def _now() -> float:
    return asyncio.get_running_loop().time()
