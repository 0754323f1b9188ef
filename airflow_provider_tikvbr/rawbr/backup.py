"""Back up the raw pairs of a key range.

The stores write the files; this process tells them what to write, collects their answers until the range is covered
without a gap, and then writes backupmeta, which makes the heap of files a backup.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Iterable
from typing import Final

from airflow_provider_tikvbr.exceptions import (
    BackupFileError,
    BackupInvalidError,
    ChecksumMismatchError,
    ProtocolError,
    TikvBrError,
    TransientError,
    UnverifiedError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.checksum import live_checksum, warn_of_expiry
from airflow_provider_tikvbr.rawbr.coverage import Coverage
from airflow_provider_tikvbr.rawbr.events import Listener, Note, ignore
from airflow_provider_tikvbr.rawbr.files import check_files, read_file
from airflow_provider_tikvbr.rawbr.gates import (
    check_can_checksum,
    check_can_convert,
    check_can_encrypt,
    has_backup_ts,
)
from airflow_provider_tikvbr.rawbr.gates_storage import check_can_write
from airflow_provider_tikvbr.rawbr.leases import Lease, SchedulerLease, hold
from airflow_provider_tikvbr.rawbr.lock import BackupLock
from airflow_provider_tikvbr.rawbr.meta import build_meta, withdraw_meta, write_meta
from airflow_provider_tikvbr.rawbr.options import BackupOptions
from airflow_provider_tikvbr.rawbr.push import back_up_range, count_regions
from airflow_provider_tikvbr.rawbr.request import backup_request
from airflow_provider_tikvbr.rawbr.safepoint import SafepointLease
from airflow_provider_tikvbr.rawbr.summary import BackupSummary
from airflow_provider_tikvbr.rawbr.tasks import settle
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyCodec
from airflow_provider_tikvbr.tikv.redaction import show_key

STEP = "Raw backup"
CHECKSUM_STEP = "Raw backup checksum"

TIMELESS_NAME: Final = re.compile(r"(\d+)[/_]\d+_\d+_default\.sst")


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
    :raises StorageLockedError: another job writes there.
    :raises BudgetExceededError: a part could not be backed up for too long; it says which.
    :raises UnverifiedError: the backup is written, but the cluster could not be counted.
    :raises ChecksumMismatchError: the backup is written, but the cluster does not hold the same pairs (any more).
    """
    started = time.monotonic()
    dst = destination(cluster, options)
    # In a thread: whoever gives out credentials may have to be asked for them.
    check_can_write(cluster, await asyncio.to_thread(storage.backend))
    await storage.prepare()
    # Once more: now it is known too what the place asks for, such as an object lock.
    check_can_write(cluster, await asyncio.to_thread(storage.backend))
    # GC is held until the job is over, so that what is left of gcttl is left for whoever comes next.
    async with contextlib.AsyncExitStack() as until_the_end:
        async with BackupLock.acquire(storage, owner=options.owner) as lock:
            safepoint = _safepoint(cluster, options, listener)
            if safepoint is not None:
                await until_the_end.enter_async_context(safepoint)
            meta: brpb_pb2.BackupMeta | None = None
            try:
                async with hold(*_leases(cluster, options, listener)):
                    keys = cluster.codec.api_range(options.keys)
                    regions = await count_regions(cluster, keys, listener)
                    coverage = Coverage(
                        backup_request(cluster, options, dst),
                        codec=cluster.codec,
                        storage=storage,
                        step=STEP,
                        total=regions,
                        listener=listener,
                    )
                    await back_up_range(cluster, coverage, budget_s=options.budget_s, listener=listener)
                    files = await _finished_files(storage, coverage, options)
                    if safepoint is not None:
                        safepoint.check()
                    await lock.confirm()
                    meta = build_meta(
                        cluster_id=cluster.cluster_id,
                        cluster_version=cluster.cluster_version_text,
                        api_version=dst,
                        keys=dst_codec(cluster, dst).api_range(options.keys),
                        files=files,
                        backup_ts=safepoint.backup_ts if safepoint is not None else None,
                    )
                    await write_meta(storage, meta, options.cipher)
            except asyncio.CancelledError:
                # Whoever stops a backup can start it again in the same place.
                if meta is not None:
                    await settle(withdraw_meta(storage, meta, options.cipher))
                raise
        if lock.left_behind is not None:
            listener(Note(level="warning", message=lock.left_behind))
        await _remove_replaced(storage, coverage, files, listener)
        if not coverage.checksum.total_kvs:
            listener(Note(level="warning", message="there is no data in the range: the backup is complete and empty"))
        if options.checksum:
            await _verify(cluster, storage, options, dst, coverage, listener)
        if safepoint is not None:
            await safepoint.leave()
    return BackupSummary(
        total_ranges=len(files),
        ranges_succeed=len(files),
        backup_total_regions=regions or len(coverage.ranges),
        total_take_s=time.monotonic() - started,
        backup_ts=safepoint.backup_ts if safepoint is not None else None,
        total_kv=coverage.checksum.total_kvs,
        total_kv_size=coverage.checksum.total_bytes,
        backup_data_size=coverage.data_size,
        checksum=coverage.checksum,
        verified=options.checksum,
        api_version=cluster.api_version,
        dst_api_version=dst,
        storage=storage.display_url,
        cluster_id=cluster.cluster_id,
        cluster_version=cluster.cluster_version_text,
        start=show_key(options.keys.start),
        end=show_key(options.keys.end),
    )


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


def _safepoint(cluster: Cluster, options: BackupOptions, listener: Listener) -> SafepointLease | None:
    if not has_backup_ts(cluster):
        return None
    return SafepointLease(
        cluster,
        safe_interval_s=options.safe_interval_s,
        gc_ttl_s=options.gc_ttl_s,
        gcttl_from=options.gcttl_from,
        listener=listener,
    )


def _leases(cluster: Cluster, options: BackupOptions, listener: Listener) -> Iterable[Lease]:
    if options.remove_schedulers:
        yield SchedulerLease(cluster, listener=listener)


async def _finished_files(storage: Storage, coverage: Coverage, options: BackupOptions) -> list[brpb_pb2.File]:
    """The files of the backup, after checking that they are all there.

    :raises BackupInvalidError: they are not: the backup must not be declared complete.
    """
    if gaps := coverage.gaps():
        raise ProtocolError(f"{len(gaps)} ranges are not backed up")
    files = list(coverage.ranges.files())
    seen: set[str] = set()
    for file in files:
        if file.name in seen:
            raise BackupInvalidError(f"two stores wrote the file {file.name}: one has overwritten the other's")
        seen.add(file.name)
    if storage.keeps:
        try:
            await check_files(storage, files)
        except BackupFileError as err:
            raise BackupFileError(
                f"{err}; the stores wrote it, so check that {storage.display_url} is one place that they all share",
                file=err.file,
            ) from err
        for file in files:
            if _may_be_overwritten(file, coverage):
                await read_file(storage, file, options.cipher)
    return files


def _may_be_overwritten(file: brpb_pb2.File, coverage: Coverage) -> bool:
    """Whether a request that was given up may have written the file once more, after the one whose answer counts.

    The file of the first region of a V1 cluster is named after store, region and epoch alone; all others have the time
    in their names (TiKV, ``components/backup/src/endpoint.rs``).
    """
    found = TIMELESS_NAME.fullmatch(file.name)
    return found is not None and int(found[1]) in coverage.asked_again


async def _remove_replaced(
    storage: Storage, coverage: Coverage, files: Iterable[brpb_pb2.File], listener: Listener
) -> None:
    """Delete files that were written twice, under another name; they would only cost space."""
    wanted = {file.name for file in files}
    for name in sorted(set(coverage.replaced) - wanted):
        try:
            await storage.delete(name)
        except TikvBrError as err:
            listener(Note(level="info", message=f"{name} is not part of the backup and could not be deleted: {err}"))
            return


async def _verify(
    cluster: Cluster,
    storage: Storage,
    options: BackupOptions,
    dst: ApiVersion,
    coverage: Coverage,
    listener: Listener,
) -> None:
    warn_of_expiry(cluster, listener)
    try:
        live = await live_checksum(
            cluster,
            options.keys,
            dst,
            concurrency=options.checksum_concurrency,
            budget_s=options.budget_s,
            listener=listener,
            step=CHECKSUM_STEP,
        )
    except TransientError as err:
        if not storage.keeps:
            raise
        # Not transient for the caller: another try would be refused, because the backup exists.
        raise UnverifiedError(
            f"the backup in {storage.display_url} is complete, but could not be compared with the cluster: {err};"
            " do not back up again, but compare the two later"
        ) from err
    if live.checksum != coverage.checksum:
        raise ChecksumMismatchError(
            "the backup is written, but the cluster does not hold the same pairs: the backup has"
            f" {coverage.checksum}, the cluster {live.checksum}; was there a write or an expiry meanwhile?",
            expected=coverage.checksum,
            actual=live.checksum,
        )
