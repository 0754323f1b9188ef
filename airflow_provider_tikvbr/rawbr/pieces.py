"""Restore files piece by piece: each the part of one file that lies in one region, many pieces at a time.

A piece that fails is tried again alone, against the region as it is by then. One that cannot go on now, because a store is
dead or a region has no leader, is put aside and takes nobody's place meanwhile. The job gives up when none of its pieces
has made progress for as long as its budget says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from airflow_provider_tikvbr.exceptions import (
    BackupFileError,
    DownloadFailedError,
    NotLeaderError,
    PDUnavailableError,
    RegionNotReadyError,
    ServerIsBusyError,
    StoreUnavailableError,
    TikvBrError,
    TransientError,
)
from airflow_provider_tikvbr.rawbr.download import Downloader, Fetch
from airflow_provider_tikvbr.rawbr.files import REMEDY
from airflow_provider_tikvbr.rawbr.ingest import Ingester
from airflow_provider_tikvbr.rawbr.leftover import gave_up
from airflow_provider_tikvbr.rawbr.parking import PD, Cause, Outage, Parked, Parking, region_cause, store_cause
from airflow_provider_tikvbr.rawbr.plan import PlannedFile
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.errors import MESSAGE_ONLY
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange, RegionKey
from airflow_provider_tikvbr.tikv.model import Region
from airflow_provider_tikvbr.tikv.regions import PAGE
from airflow_provider_tikvbr.timelimit import within

# How long a region may refuse files for a reason that we do not know, before they are downloaded afresh. A store that is
# only busy is never sent them again for it.
UNKNOWN_BUDGET_S = 20.0
# Pieces that may wait, each for itself, before no new ones are begun: a storage that throttles is not pressed further.
LEAST_PATIENCE = 64
# How often to look at the clock while nothing happens, in seconds.
TICK_S = 0.5
RESTORING = "restoring file"

RegionKeys = KeyRange[RegionKey]


@dataclass(eq=False, slots=True, kw_only=True)
class FileWork:
    """What there is to do of one file.

    :param planned: the file.
    :param todo: the parts of it that are left, as API keys.
    :param resumed: whether an earlier try has restored some of it.
    :param left: pieces that are not finished.
    :param found: whether it has shown a pair.
    """

    planned: PlannedFile
    todo: tuple[KeyRange[ApiKey], ...]
    resumed: bool = False
    left: int = 0
    found: bool = False


@dataclass(eq=False, slots=True, kw_only=True)
class Piece(Parked):
    """A part of one file.

    :param work: the file.
    :param fetch: how far its download has come.
    :param region_id: the region that it was last tried in.
    """

    work: FileWork
    fetch: Fetch | None = None
    region_id: int | None = None


@dataclass(eq=False, slots=True)
class _Watch:
    """Tells a download which stores need not be asked, and takes down which answer."""

    parking: Parking[Piece]
    piece: Piece

    def check(self, store_id: int) -> None:
        """Leave a store alone that is known not to answer, unless it is just being looked after."""
        outage = self.parking.outage(store_cause(store_id))
        if outage is not None and self.piece.probes is None and isinstance(outage.error, StoreUnavailableError):
            raise outage.error

    def store_failed(self, store_id: int, error: StoreUnavailableError) -> None:
        """A store did not answer."""
        self.parking.notice(store_cause(store_id), error)

    def store_answered(self, store_id: int) -> None:
        """A store did what it was asked for."""
        self.parking.well(store_cause(store_id))


class Restorer:
    """Restores files, each into all its regions.

    :param cluster: the target.
    :param downloader: brings files to stores.
    :param budget_s: seconds for which the whole job may make no progress.
    """

    def __init__(self, cluster: Cluster, *, downloader: Downloader, budget_s: float) -> None:
        self._cluster = cluster
        self._downloader = downloader
        self._ingester = Ingester(cluster)
        self._budget_s = budget_s
        self._parking: Parking[Piece] = Parking()
        self._running: dict[asyncio.Task[None], Piece] = {}
        self._visits: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None
        self._on_part: Callable[[PlannedFile, RegionKeys], None] = lambda planned, keys: None
        self._on_done: Callable[[PlannedFile], None] = lambda planned: None

    async def run(
        self,
        works: Iterable[FileWork],
        *,
        concurrency: int,
        on_done: Callable[[PlannedFile], None],
        on_part: Callable[[PlannedFile, RegionKeys], None] = lambda planned, keys: None,
    ) -> None:
        """Restore files, so many pieces at a time.

        :param on_done: told each file that is done.
        :param on_part: told each part of a file that is done, as region keys.
        :raises BudgetExceededError: nothing made progress for too long; it says what is left, and what that waits for.
        :raises TikvBrError: some piece can never succeed, the message says which and where; the others are given up.
        """
        self._on_part, self._on_done = on_part, on_done
        source = self._pieces(works)
        patience = max(concurrency, LEAST_PATIENCE)
        try:
            while True:
                self._parking.changed.clear()
                for outage in self._parking.wake():
                    self._start(self._visit(outage), self._visits.add, self._visits.discard)
                while len(self._running) < max(1, concurrency):
                    piece = self._next(source, patience)
                    if piece is None:
                        break
                    self._begin(piece)
                if self._failed is not None:
                    raise self._failed
                if not self._running and not self._visits and self._parking.is_empty:
                    return
                self._give_up_in_time(source)
                await self._wait()
        finally:
            tasks = [*self._running, *self._visits]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._ingester.close()

    def _pieces(self, works: Iterable[FileWork]) -> Iterator[Piece]:
        for work in works:
            work.left = len(work.todo)
            for keys in work.todo:
                yield Piece(work=work, keys=self._cluster.codec.region_range(keys))

    def _next(self, source: Iterator[Piece], patience: int) -> Piece | None:
        if self._parking.ready:
            return self._parking.ready.popleft()
        return next(source, None) if self._parking.timed < patience else None

    def _begin(self, piece: Piece) -> None:
        def keep(task: asyncio.Task[None]) -> None:
            self._running[task] = piece

        self._start(self._try(piece), keep, lambda task: self._running.pop(task, None))

    def _start(
        self,
        work: Coroutine[Any, Any, None],
        keep: Callable[[asyncio.Task[None]], object],
        drop: Callable[[asyncio.Task[None]], object],
    ) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        keep(task)

        def ended(task: asyncio.Task[None]) -> None:
            drop(task)
            self._parking.changed.set()
            if not task.cancelled() and task.exception() is not None:
                self._failed = self._failed or task.exception()

        task.add_done_callback(ended)

    async def _wait(self) -> None:
        pause = self._parking.pause_s()
        timeout = TICK_S if pause is None else min(TICK_S, max(pause, 0.001))
        if self._parking.changed.is_set():
            await asyncio.sleep(0)
            return
        try:
            await within(timeout, self._parking.changed.wait())
        except asyncio.TimeoutError:
            return

    def _give_up_in_time(self, source: Iterator[Piece]) -> None:
        if self._visits or self._parking.left_s(self._budget_s) > 0:
            return
        running = list(self._running.values())
        if self._parking.has_tried_enough(running):
            left = [*running, *self._parking.all_waiting(), *source]
            raise gave_up(left, budget_s=self._budget_s)

    # --- one piece ---

    async def _try(self, piece: Piece) -> None:
        """Try a piece once: it ends finished, or put aside."""
        try:
            region = await self._look(piece)
            if region is not None:
                await self._restore(piece, region)
        except TikvBrError as err:
            raise _at(err, piece) from err.__cause__

    async def _look(self, piece: Piece) -> Region | None:
        """The region of a piece, which is cut down to it; None if that is not known now."""
        regions = self._cluster.regions
        try:
            region = await regions.look(piece.keys.start)
        except TransientError as err:
            if isinstance(err, PDUnavailableError):
                self._parking.park(piece, err, PD)
                return None
            known = regions.cached(piece.keys.start)
            if known is not None:
                self._cut(piece, known)
            self._parking.park(piece, err, region_cause(known.id) if known is not None else None)
            return None
        self._parking.well(PD)
        self._cut(piece, region)
        return region

    def _cut(self, piece: Piece, region: Region) -> None:
        """Leave what lies behind a region to another piece."""
        end = piece.keys.end
        if region.end and (not end or region.end < end):
            piece.work.left += 1
            self._parking.put(Piece(work=piece.work, keys=KeyRange(region.end, end)))
            piece.keys = KeyRange(piece.keys.start, region.end)
        piece.region_id = region.id

    async def _restore(self, piece: Piece, region: Region) -> None:
        blocking = self._parking.blocking(region) if piece.probes is None else None
        if blocking is not None:
            self._parking.hold(piece, blocking)
            return
        if piece.fetch is None or not piece.fetch.fits(region):
            piece.fetch = self._downloader.begin(piece.work.planned.file, region)
        ingesting = False
        try:
            sst = None
            if piece.fetch is not None:
                sst = await self._downloader.go_on(piece.fetch, _Watch(self._parking, piece))
            if sst is not None:
                ingesting = True
                await self._ingester.ingest(region, sst)
        except TransientError as err:
            # PD tells at the next try what the region is by then, and where its peers are.
            self._cluster.regions.invalidate(region.id)
            if not self._may_go_on(piece, err, ingesting):
                piece.fetch = None
            self._parking.park(piece, err, _cause(err, region, ingesting))
            return
        if ingesting:
            self._parking.well(region_cause(region.id))
        self._finish(piece, found=sst is not None)

    def _may_go_on(self, piece: Piece, error: TransientError, ingesting: bool) -> bool:
        """Whether what stores have downloaded is of use for the next try."""
        if not ingesting:
            return isinstance(error, (StoreUnavailableError, PDUnavailableError)) or (
                # Stores that found different keys have to look again.
                isinstance(error, DownloadFailedError) and error.store_id is not None
            )
        if isinstance(error, RegionNotReadyError) and error.kind == MESSAGE_ONLY and piece.fetch is not None:
            now = asyncio.get_running_loop().time()
            if piece.fetch.refused_at is None:
                piece.fetch.refused_at = now
            return now - piece.fetch.refused_at < UNKNOWN_BUDGET_S
        # Otherwise nobody knows whether the region has taken the file, or it is another region by now.
        return isinstance(error, (NotLeaderError, ServerIsBusyError, RegionNotReadyError, PDUnavailableError))

    def _finish(self, piece: Piece, *, found: bool) -> None:
        work = piece.work
        work.left -= 1
        work.found = work.found or found
        self._parking.done(piece)
        file = work.planned.file
        if not work.left and not work.found and not work.resumed and work.planned.whole and file.total_kvs:
            raise BackupFileError(
                f"file {file.name} holds {file.total_kvs} pairs, but none of them in the key range that the backup "
                f"gives for it: the backup is damaged{REMEDY}",
                file=file.name,
            )
        self._on_part(work.planned, piece.keys)
        if not work.left:
            self._on_done(work.planned)

    # --- what pieces wait for ---

    async def _visit(self, outage: Outage[Piece]) -> None:
        """See what PD says by now of what pieces wait for, and send one of them ahead."""
        clock = asyncio.get_running_loop().time
        started = clock()
        looked_at = self._parking.take_for_a_look(outage)
        try:
            if outage.cause != PD:
                # A store may be back at another address, and PD may have replaced its peers.
                await self._cluster.data_stores()
                await self._look_at_regions(looked_at)
        except TransientError:
            # The one that is sent ahead will meet the same.
            pass
        outage.look_s = clock() - started
        self._parking.send_probe(outage, lambda piece: self._depends(piece, outage.cause))

    async def _look_at_regions(self, pieces: Iterable[Piece]) -> None:
        at: RegionKey | None = None
        for piece in sorted(pieces, key=lambda p: p.keys.start):
            if at is not None and (not at or piece.keys.start < at):
                continue
            page = await self._cluster.pd.scan_regions(KeyRange(piece.keys.start, RegionKey(b"")), PAGE)
            self._cluster.regions.update(page)
            at = page[-1].end if page else None

    def _depends(self, piece: Piece, cause: Cause) -> bool:
        """Whether a piece has to wait for something, as far as PD knows."""
        region = self._cluster.regions.cached(piece.keys.start)
        if cause == PD:
            return True
        if region is None:
            return False
        return cause == region_cause(region.id) or any(cause == store_cause(p.store_id) for p in region.peers)


def _cause(error: TransientError, region: Region, ingesting: bool) -> Cause | None:
    """What a piece that failed shares its pause with; None for nothing."""
    if isinstance(error, PDUnavailableError):
        return PD
    if isinstance(error, StoreUnavailableError):
        return store_cause(error.store_id) if error.store_id is not None else None
    if ingesting and isinstance(error, (NotLeaderError, ServerIsBusyError, RegionNotReadyError)):
        return region_cause(region.id)
    return None


def _at(error: TikvBrError, piece: Piece) -> TikvBrError:
    """Let an error say which file and region it is about; files that were ingested together share their error."""
    if not error.message.startswith(RESTORING):
        where = f" into region {piece.region_id}" if piece.region_id is not None else ""
        error.message = f"{RESTORING} {piece.work.planned.file.name}{where}: {error.message}"
        error.region_id = error.region_id or piece.region_id
    return error
