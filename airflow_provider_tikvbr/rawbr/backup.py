"""Back up the raw pairs of a key range.

The stores write the files; this process tells them what to write, collects their answers until the range is covered
without a gap, and then writes backupmeta, which makes the heap of files a backup.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from airflow_provider_tikvbr.exceptions import (
    ChecksumMismatchError,
    TerminalError,
    TransientError,
    UnverifiedError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.checkpoint import Checkpoint
from airflow_provider_tikvbr.rawbr.checksum import live_checksum, warn_of_expiry
from airflow_provider_tikvbr.rawbr.coverage import Coverage
from airflow_provider_tikvbr.rawbr.events import Listener, Note, ignore
from airflow_provider_tikvbr.rawbr.finished import back_up_whole
from airflow_provider_tikvbr.rawbr.gates import (
    check_can_checksum,
    check_can_convert,
    check_can_encrypt,
)
from airflow_provider_tikvbr.rawbr.gates_storage import check_can_write
from airflow_provider_tikvbr.rawbr.gc_hold import GcHold
from airflow_provider_tikvbr.rawbr.leases import ClusterLease, SchedulerLease, hold, put_back
from airflow_provider_tikvbr.rawbr.lock import StorageLock
from airflow_provider_tikvbr.rawbr.meta import (
    META_NAME,
    backup_exists,
    build_meta,
    read_meta,
    withdraw_meta,
    write_meta,
)
from airflow_provider_tikvbr.rawbr.options import BackupOptions
from airflow_provider_tikvbr.rawbr.push import count_regions
from airflow_provider_tikvbr.rawbr.request import backup_request
from airflow_provider_tikvbr.rawbr.summary import BackupSummary, Checksum
from airflow_provider_tikvbr.rawbr.takeover import (
    DIRECTORY,
    backup_identity,
    clear_away,
    discarder,
    take_over,
)
from airflow_provider_tikvbr.rawbr.tasks import is_handover, settle
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyCodec
from airflow_provider_tikvbr.tikv.redaction import show_key

STEP = "Raw backup"
CHECKSUM_STEP = "Raw backup checksum"


async def backup(
    cluster: Cluster, storage: Storage, options: BackupOptions, listener: Listener = ignore
) -> BackupSummary:
    """Back up a key range into an empty place.

    :param cluster: the source.
    :param storage: where to; every store must reach it under the same URL.
    :param options: what to back up and how.
    :param listener: told what happens meanwhile.
    :raises ApiVersionError: there is no such conversion, or it needs a newer cluster.
    :raises UnsupportedError: the checksum, the cipher or the storage's credentials need a newer cluster.
    :raises BackupExistsError: the place holds a backup.
    :raises StorageLockedError: another job writes there, or has taken the place over meanwhile.
    :raises BudgetExceededError: a part could not be backed up for too long; it says which.
    :raises UnverifiedError: the backup is written, but the cluster could not be counted.
    :raises ChecksumMismatchError: the backup is written, but the cluster does not hold the same pairs (any more).
    """
    dst = destination(cluster, options)
    # In a thread: whoever gives out credentials may have to be asked for them.
    check_can_write(cluster, await asyncio.to_thread(storage.backend))
    await storage.prepare()
    # Once more: now it is known too what the place asks for, such as an object lock.
    check_can_write(cluster, await asyncio.to_thread(storage.backend))
    job = _Backup(cluster, storage, options, dst, listener)
    lock = StorageLock.acquire(storage, owner=options.owner, listener=listener, check=job.refuse_finished)
    async with lock as held:
        return await held.guard(job.run(held))


def destination(cluster: Cluster, options: BackupOptions) -> ApiVersion:
    """The API version of the backup, after checking that the cluster can make it as asked.

    :raises ApiVersionError: there is no such conversion, or it needs a newer cluster.
    :raises UnsupportedError: the checksum or the cipher needs a newer cluster.
    """
    dst = cluster.api_version if options.dst_api_version is None else options.dst_api_version
    check_can_convert(cluster, dst)
    if options.checksum:
        check_can_checksum(cluster)
    check_can_encrypt(cluster, options.cipher)
    return dst


def dst_codec(cluster: Cluster, dst: ApiVersion) -> KeyCodec:
    """Keys of a backup in another API version; TiKV converts into the default keyspace."""
    return cluster.codec if dst is cluster.api_version else KeyCodec(dst)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A backup that is complete.

    :param files: its files.
    :param regions: about how many regions its range has.
    :param unwanted: files that it does not need.
    :param look: whether to look for more of those.
    """

    files: Sequence[brpb_pb2.File]
    checksum: Checksum
    data_size: int
    regions: int
    unwanted: Sequence[str]
    look: bool


class _Backup:
    """One try of a backup."""

    def __init__(
        self, cluster: Cluster, storage: Storage, options: BackupOptions, dst: ApiVersion, listener: Listener
    ) -> None:
        self._started = time.monotonic()
        self._cluster = cluster
        self._storage = storage
        self._options = options
        self._dst = dst
        self._listener = listener
        self._identity = backup_identity(cluster, options, dst)
        self._keys = cluster.codec.api_range(options.keys)

    async def refuse_finished(self) -> None:
        """Make sure that the place holds no backup, or one whose last steps an earlier try of this one has left out.

        :raises BackupExistsError: it does.
        """
        if await self._storage.exists(META_NAME) and not (
            self._options.resume
            and await Checkpoint.matches(self._storage, directory=DIRECTORY, identity=self._identity)
        ):
            raise backup_exists(self._storage)

    async def run(self, lock: StorageLock) -> BackupSummary:
        """Do what is left to do."""
        gc = GcHold(self._cluster, self._options, lock=lock, keeps=self._storage.keeps, listener=self._listener)
        complete = await self._storage.exists(META_NAME)
        checkpoint = await Checkpoint.open(
            self._storage,
            directory=DIRECTORY,
            identity=self._identity,
            cipher=self._options.cipher,
            resume=self._options.resume,
            listener=self._listener,
            discard=discarder(self._storage),
        )
        try:
            # GC is held until the job is over, so that what is left of gcttl is left for whoever comes next.
            async with gc.held(checkpoint, complete=complete):
                written = await (self._found(checkpoint) if complete else self._write(lock, checkpoint, gc))
                await self._finish(written, checkpoint, gc)
        except TerminalError:
            if checkpoint.is_empty:
                await checkpoint.retire()
            raise
        return self._summary(written, gc.backup_ts)

    async def _write(self, lock: StorageLock, checkpoint: Checkpoint, gc: GcHold) -> _Written:
        """Let the stores write their files, and declare the backup complete."""
        cluster, storage, options = self._cluster, self._storage, self._options
        meta: brpb_pb2.BackupMeta | None = None
        try:
            async with hold(checkpoint, *_leases(cluster, options, self._listener)):
                with gc.let_go_if_stopped():
                    regions = await count_regions(cluster, self._keys, self._listener)
                    coverage = Coverage(
                        backup_request(cluster, options, self._dst),
                        codec=cluster.codec,
                        storage=storage,
                        step=STEP,
                        total=regions,
                        listener=self._listener,
                        budget_s=options.budget_s,
                        on_accepted=checkpoint.add,
                    )
                    if checkpoint.resumed:
                        await take_over(
                            storage,
                            checkpoint,
                            coverage,
                            total=regions,
                            budget_s=options.budget_s,
                            listener=self._listener,
                        )
                    files = await back_up_whole(
                        cluster, storage, coverage, budget_s=options.budget_s, listener=self._listener
                    )
                    meta = await asyncio.to_thread(self._meta, files, gc.backup_ts)
                    gc.check()
                    await write_meta(storage, meta, options.cipher, check=lock.confirm)
        except asyncio.CancelledError:
            # Whoever stops a backup can start it again in the same place; who goes on with it takes it for done.
            if meta is not None and not (is_handover() and options.resume):
                await settle(withdraw_meta(storage, meta, options.cipher, check=lock.confirm))
            raise
        return _Written(
            files=files,
            checksum=coverage.checksum,
            data_size=coverage.data_size,
            regions=regions or len(coverage.ranges),
            unwanted=coverage.replaced,
            look=coverage.disturbed or not checkpoint.is_first,
        )

    def _meta(self, files: Iterable[brpb_pb2.File], backup_ts: int | None) -> brpb_pb2.BackupMeta:
        return build_meta(
            cluster_id=self._cluster.cluster_id,
            cluster_version=self._cluster.cluster_version_text,
            api_version=self._dst,
            keys=dst_codec(self._cluster, self._dst).api_range(self._options.keys),
            files=files,
            backup_ts=backup_ts,
        )

    async def _found(self, checkpoint: Checkpoint) -> _Written:
        """What an earlier try has declared complete before it was broken off."""
        meta = await read_meta(self._storage, self._options.cipher)
        message = f"the backup was completed by a try that began at {checkpoint.started}: only its last steps are left"
        self._listener(Note(level="info", message=message))
        # That try may have been killed before it had put the cluster back.
        await put_back(*_leases(self._cluster, self._options, self._listener))
        unwanted = [file.name async for pieces in checkpoint.finished() for piece in pieces for file in piece.files]
        return _Written(
            files=meta.files,
            checksum=await asyncio.to_thread(_sum, meta.files),
            data_size=sum(file.size for file in meta.files),
            regions=await count_regions(self._cluster, self._keys, self._listener) or len(meta.files),
            unwanted=unwanted,
            look=True,
        )

    async def _finish(self, written: _Written, checkpoint: Checkpoint, gc: GcHold) -> None:
        """Everything that is done after the backup is complete."""
        await clear_away(
            self._storage,
            written.files,
            written.unwanted,
            since_ms=checkpoint.since_ms if written.look else None,
            listener=self._listener,
        )
        if not written.checksum.total_kvs:
            message = "there is no data in the range: the backup is complete and empty"
            self._listener(Note(level="warning", message=message))
        if self._options.checksum:
            await self._verify(written, checkpoint, gc)
        await gc.leave()
        await checkpoint.retire()

    async def _verify(self, written: _Written, checkpoint: Checkpoint, gc: GcHold) -> None:
        warn_of_expiry(self._cluster, self._listener)
        try:
            live = await live_checksum(
                self._cluster,
                self._options.keys,
                self._dst,
                concurrency=self._options.checksum_concurrency,
                budget_s=self._options.budget_s,
                listener=self._listener,
                step=CHECKSUM_STEP,
            )
        except TransientError as err:
            if not self._storage.keeps:
                raise
            done = f"the backup in {self._storage.display_url} is complete, but could not be compared with the cluster"
            if self._options.resume:
                # Another try does this step alone.
                err.message = f"{done}, which another try does: {err}"
                raise
            await gc.leave()
            await checkpoint.retire()
            # Not transient for the caller: another try would be refused, because the backup exists.
            raise UnverifiedError(f"{done}: {err}; do not back up again, but compare the two later") from err
        if live.checksum != written.checksum:
            # Another comparison would find no other backup.
            await checkpoint.retire()
            raise ChecksumMismatchError(
                "the backup is written, but the cluster does not hold the same pairs: the backup has"
                f" {written.checksum}, the cluster {live.checksum}; was there a write or an expiry meanwhile?",
                expected=written.checksum,
                actual=live.checksum,
            )

    def _summary(self, written: _Written, backup_ts: int | None) -> BackupSummary:
        options = self._options
        return BackupSummary(
            total_ranges=len(written.files),
            ranges_succeed=len(written.files),
            backup_total_regions=written.regions,
            total_take_s=time.monotonic() - self._started,
            backup_ts=backup_ts,
            total_kv=written.checksum.total_kvs,
            total_kv_size=written.checksum.total_bytes,
            backup_data_size=written.data_size,
            checksum=written.checksum,
            verified=options.checksum,
            api_version=self._cluster.api_version,
            dst_api_version=self._dst,
            storage=self._storage.display_url,
            cluster_id=self._cluster.cluster_id,
            cluster_version=self._cluster.cluster_version_text,
            start=show_key(options.keys.start),
            end=show_key(options.keys.end),
        )


def _leases(cluster: Cluster, options: BackupOptions, listener: Listener) -> Iterable[ClusterLease]:
    if options.remove_schedulers:
        yield SchedulerLease(cluster, listener=listener)


def _sum(files: Iterable[brpb_pb2.File]) -> Checksum:
    total = Checksum()
    for file in files:
        total += Checksum(file.crc64xor, file.total_kvs, file.total_bytes)
    return total
