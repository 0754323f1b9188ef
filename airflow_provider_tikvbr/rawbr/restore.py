"""Restore the raw pairs of a backup, or of a part of its range, into a cluster.

The stores read the files; this process makes room for them, tells every peer what to download and every leader what to
ingest, and takes back whatever it changed on the cluster meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence

from airflow_provider_tikvbr.exceptions import (
    BudgetExceededError,
    ChecksumMismatchError,
    TerminalError,
    TikvBrError,
    TransientError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.checksum import cluster_checksum, warn_of_expiry
from airflow_provider_tikvbr.rawbr.download import Downloader
from airflow_provider_tikvbr.rawbr.events import Listener, Note, Progress, ignore
from airflow_provider_tikvbr.rawbr.expected import expected_checksum
from airflow_provider_tikvbr.rawbr.files import verify_files
from airflow_provider_tikvbr.rawbr.gates import (
    MIN_SPLIT,
    can_split,
    check_can_checksum,
    check_can_encrypt,
)
from airflow_provider_tikvbr.rawbr.gates_storage import check_can_read
from airflow_provider_tikvbr.rawbr.leases import (
    ClusterLease,
    ImportModeLease,
    SchedulerLease,
    SpeedLimitLease,
    hold,
    put_back,
)
from airflow_provider_tikvbr.rawbr.limits import region_limits
from airflow_provider_tikvbr.rawbr.meta import backup_ts_in, read_meta
from airflow_provider_tikvbr.rawbr.options import RestoreOptions
from airflow_provider_tikvbr.rawbr.pieces import FileWork, Restorer
from airflow_provider_tikvbr.rawbr.plan import PlannedFile, RestorePlan, borders_of, make_plan, plan_splits
from airflow_provider_tikvbr.rawbr.probe import holds_data, was_dropped
from airflow_provider_tikvbr.rawbr.resume import RestoreCheckpoint
from airflow_provider_tikvbr.rawbr.split import split_and_scatter
from airflow_provider_tikvbr.rawbr.summary import Checksum, RestoreSummary
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyRange
from airflow_provider_tikvbr.tikv.redaction import show_key

STEP = "Raw restore"
CHECKSUM_STEP = "Raw restore checksum"

# How long to insist on splitting regions, in seconds without progress: the data fits into larger ones too.
SPLIT_PATIENCE_S = 60.0
# Looking for data in the target stops after this many regions: a cluster in use has some in the first ones.


async def restore(
    cluster: Cluster,
    storage: Storage,
    options: RestoreOptions,
    listener: Listener = ignore,
    *,
    checkpoint_storage: Storage | None = None,
) -> RestoreSummary:
    """Restore a backup, or what an earlier try has left of it.

    Everything that can be wrong with the backup or the options is found before the cluster is changed.

    :param cluster: the target.
    :param storage: where the backup is; every store must reach it under the same URL.
    :param options: what to restore and how.
    :param listener: told what happens meanwhile.
    :param checkpoint_storage: where to keep what is finished, for another try; by default beside the backup.
    :raises InvalidOptionError: an unfinished restore was begun with other options; it names one that differs.
    :raises StorageLockedError: the same backup is being restored there by another job, or is since.
    :raises BackupInvalidError: there is no backup, or it is damaged, or encrypted with another key.
    :raises ApiVersionError: the cluster has another API version than the backup.
    :raises KeyRangeError: the range is not inside the one that was backed up.
    :raises UnsupportedError: the checksum, the cipher or the storage's credentials need a newer cluster.
    :raises BudgetExceededError: nothing made progress for too long; it says what is left, and what that waits for.
    :raises ChecksumMismatchError: all files are restored, but the range of the cluster holds other pairs (too).
    """
    started = time.monotonic()
    if options.checksum:
        check_can_checksum(cluster)
    check_can_encrypt(cluster, options.cipher)
    # In a thread: whoever gives out credentials may have to be asked for them.
    check_can_read(cluster, await asyncio.to_thread(storage.backend))
    meta = await read_meta(storage, options.cipher)
    # In a thread: there may be half a million files.
    plan = await asyncio.to_thread(make_plan, meta, cluster.codec, options.keys)
    await verify_files(
        storage,
        [planned.file for planned in plan.files],
        options.verify_files,
        budget_s=options.budget_s,
        listener=listener,
    )
    expected = await expected_checksum(storage, meta, plan.keys, options.cipher)
    if not expected.total_kvs:
        listener(Note(level="warning", message="the backup holds no data in the range: nothing is restored"))
    async with RestoreCheckpoint.held(
        cluster, meta, plan, options, beside=storage, given=checkpoint_storage, listener=listener
    ) as checkpoint:
        await checkpoint.guard(_restore(cluster, storage, plan, checkpoint, options, expected, listener))
    keys = cluster.codec.user_range(plan.keys)
    return RestoreSummary(
        total_ranges=len(plan.files),
        ranges_succeed=len(plan.files),
        restore_files=len(plan.files),
        total_take_s=time.monotonic() - started,
        restore_data_size=plan.data_size,
        total_kv=expected.total_kvs,
        total_kv_size=expected.total_bytes,
        checksum=expected,
        verified=options.checksum,
        backup_ts=backup_ts_in(meta),
        api_version=cluster.api_version,
        storage=storage.display_url,
        cluster_id=cluster.cluster_id,
        cluster_version=cluster.cluster_version_text,
        start=show_key(keys.start),
        end=show_key(keys.end),
    )


async def _restore(
    cluster: Cluster,
    storage: Storage,
    plan: RestorePlan,
    checkpoint: RestoreCheckpoint,
    options: RestoreOptions,
    expected: Checksum,
    listener: Listener,
) -> None:
    try:
        if checkpoint.resumed and await was_dropped(cluster, checkpoint.works):
            message = (
                "the target no longer holds what an earlier try has restored, as if the range was emptied meanwhile: all of"
                " it is restored again"
            )
            listener(Note(level="warning", message=message))
            await checkpoint.start_over()
        if not checkpoint.resumed:
            await _tell_of_data(cluster, plan.keys, listener)
        if checkpoint.left:
            await _split(cluster, plan, checkpoint.left, options, listener)
            await _import(cluster, storage, plan, checkpoint, options, listener)
        elif checkpoint.resumed:
            # The try that did the last of it may have been killed before it had put the cluster back.
            await put_back(*_leases(cluster, options, listener))
        if options.checksum:
            try:
                await _verify(cluster, plan.keys, expected, options, listener)
            except ChecksumMismatchError:
                # Whatever is wrong, going on from here would not make it right.
                await checkpoint.remove()
                raise
        # As the very last thing: a try that dies before has only the comparison left.
        await checkpoint.remove()
    except TerminalError:
        # There is nothing to go on with, and other options may be what helps.
        if checkpoint.is_empty:
            await checkpoint.remove()
        raise


async def _tell_of_data(cluster: Cluster, keys: KeyRange[ApiKey], listener: Listener) -> None:
    """Warn if the range of the target is in use; that is allowed, but rarely meant."""
    try:
        found = await holds_data(cluster, keys)
    except TikvBrError:
        # The restore itself will meet the trouble and has the time to wait for its end.
        return
    if found:
        rule = (
            "of two versions of a key the one with the newer timestamp counts"
            if cluster.api_version is ApiVersion.V2
            else "pairs whose keys are in the backup are overwritten"
        )
        message = f"the range holds data already: {rule}, the others stay, and a checksum will tell the difference"
        listener(Note(level="warning", message=message))


async def _split(
    cluster: Cluster, plan: RestorePlan, left: Sequence[FileWork], options: RestoreOptions, listener: Listener
) -> None:
    if not can_split(cluster):
        message = f"the cluster is older than {MIN_SPLIT}, so its regions are not split beforehand"
        listener(Note(level="info", message=message))
        return
    limits = await region_limits(cluster)
    # Of all files, so that another try finds the same borders.
    keys = plan_splits(
        plan.files,
        max_bytes=options.merge_region_size or limits.size,
        max_keys=options.merge_region_keys or limits.keys,
    )
    try:
        await split_and_scatter(
            cluster,
            borders_of(keys, [work.planned for work in left]),
            max_keys=options.split_region_max_keys,
            budget_s=min(options.budget_s, SPLIT_PATIENCE_S),
            listener=listener,
        )
    except BudgetExceededError as err:
        message = f"not all regions could be split beforehand, so some will hold more than others: {err}"
        listener(Note(level="warning", message=message))


async def _import(
    cluster: Cluster,
    storage: Storage,
    plan: RestorePlan,
    checkpoint: RestoreCheckpoint,
    options: RestoreOptions,
    listener: Listener,
) -> None:
    wanted = cluster.codec.region_range(plan.keys)
    # The checkpoint ends with the leases: a job that is told to stop has time for one of them only.
    async with hold(checkpoint, *_leases(cluster, options, listener)):
        with contextlib.suppress(TransientError):
            # One look at all regions instead of one per file; what is missing is looked up when it is needed.
            await cluster.regions.survey(wanted)
        downloader = Downloader(
            cluster,
            storage=storage,
            cipher=options.cipher.message(),
            keys=wanted,
            rate_limit=options.rate_limit,
        )
        restorer = Restorer(cluster, downloader=downloader, budget_s=options.budget_s)
        progress = _FilesDone(checkpoint.works, listener)
        await restorer.run(
            checkpoint.left, concurrency=options.concurrency, on_done=progress.add, on_part=checkpoint.add
        )


def _leases(cluster: Cluster, options: RestoreOptions, listener: Listener) -> Iterable[ClusterLease]:
    yield SpeedLimitLease(cluster, bytes_per_s=options.rate_limit, listener=listener)
    if not options.online:
        yield ImportModeLease(cluster, interval_s=options.switch_mode_interval_s, listener=listener)
        yield SchedulerLease(cluster, listener=listener)


class _FilesDone:
    """Counts files and tells the listener; a file that was cut counts in full here."""

    def __init__(self, works: Sequence[FileWork], listener: Listener) -> None:
        self._total = len(works)
        self._listener = listener
        self._started = time.monotonic()
        finished = [work.planned.file for work in works if not work.todo]
        self._done = len(finished)
        self._kvs = sum(file.total_kvs for file in finished)
        self._bytes = sum(file.total_bytes for file in finished)
        self._before = (self._done, self._bytes)
        self._tell()

    def add(self, planned: PlannedFile) -> None:
        """One more file is restored."""
        file: brpb_pb2.File = planned.file
        self._done += 1
        self._kvs += file.total_kvs
        self._bytes += file.total_bytes
        self._tell()

    def _tell(self) -> None:
        self._listener(
            Progress(
                step=STEP,
                done=self._done,
                total=self._total,
                kvs=self._kvs,
                bytes=self._bytes,
                elapsed_s=time.monotonic() - self._started,
                done_before=self._before[0],
                bytes_before=self._before[1],
            )
        )


async def _verify(
    cluster: Cluster, keys: KeyRange[ApiKey], expected: Checksum, options: RestoreOptions, listener: Listener
) -> None:
    warn_of_expiry(cluster, listener)
    actual = await cluster_checksum(
        cluster,
        keys,
        concurrency=options.checksum_concurrency,
        budget_s=options.budget_s,
        listener=listener,
        step=CHECKSUM_STEP,
    )
    if actual != expected:
        raise ChecksumMismatchError(
            f"all files are restored, but the range does not hold the backup's pairs alone: the backup has {expected},"
            f" the cluster {actual}; did it hold data before, or was there a write or an expiry meanwhile?",
            expected=expected,
            actual=actual,
        )
