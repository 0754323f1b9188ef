"""What earlier tries of a backup have left behind: ranges that are finished, and files that no backup needs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable
from typing import Final

from airflow_provider_tikvbr.exceptions import BackupFileError, TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.checkpoint import Checkpoint, Discard
from airflow_provider_tikvbr.rawbr.checkpoint_format import JobIdentity
from airflow_provider_tikvbr.rawbr.coverage import Coverage
from airflow_provider_tikvbr.rawbr.events import Listener, Note
from airflow_provider_tikvbr.rawbr.files import check_digest
from airflow_provider_tikvbr.rawbr.options import BackupOptions
from airflow_provider_tikvbr.rawbr.ranges import FinishedRange
from airflow_provider_tikvbr.rawbr.tasks import for_each
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.tikv.retry import Backoff, retry

DIRECTORY: Final = "backup.checkpoint"

# TiKV names a file after store, region, epoch, first key and the time; the one of the first region of a V1 cluster after
# store, region and epoch alone (``components/backup/src/endpoint.rs``).
TIMED_NAME: Final = re.compile(r"\d+[/_]\d+_\d+_[0-9a-f]{64}_(\d+)_default\.sst")
TIMELESS_NAME: Final = re.compile(r"(\d+)[/_]\d+_\d+_default\.sst")

DELETIONS = 32
# Pieces that are taken in before other work has its turn.
PIECES_AT_ONCE = 500
RETRY_BASE_S = 0.2
RETRY_CAP_S = 5.0


def backup_identity(cluster: Cluster, options: BackupOptions, dst: ApiVersion) -> JobIdentity:
    """What must not differ between the tries of a backup.

    :param dst: API version of the backup.
    """
    return JobIdentity(
        kind="backup",
        owner=options.owner,
        options={
            "cluster": str(cluster.cluster_id),
            "keyspace": str(cluster.codec.keyspace_id),
            "start": options.keys.start.hex(),
            "end": options.keys.end.hex(),
            "dst_api_version": dst.name,
            "compression": options.compression.name,
            "compression_level": str(options.compression_level),
            "crypter_method": options.cipher.method.option,
            "crypter_key": options.cipher.key.hex(),
        },
    )


async def take_over(
    storage: Storage,
    checkpoint: Checkpoint,
    coverage: Coverage,
    *,
    total: int,
    budget_s: float,
    listener: Listener,
) -> None:
    """Let a backup go on from what earlier tries have finished, as far as its files are there.

    :param total: ranges there are, as far as known; 0 if nobody knows.
    :param budget_s: seconds for which the storage may fail.
    :raises BudgetExceededError: the storage failed for too long.
    """
    sizes = await _sizes(storage, budget_s)
    finished = 0
    missing: set[str] = set()
    async for pieces in checkpoint.finished():
        for piece in pieces:
            wrong = await _wrong_file(storage, piece, sizes, budget_s)
            if wrong is not None:
                missing.add(wrong)
                continue
            coverage.resume(piece)
            finished += 1
            if not finished % PIECES_AT_ONCE:
                await asyncio.sleep(0)
    known = f"about {total} ranges" if total else "the ranges"
    message = f"{len(coverage.ranges)} of {known} were finished by a try that began at {checkpoint.started}"
    listener(Note(level="info", message=message))
    if missing:
        message = (
            f"{len(missing)} files of that try are missing or not what was written, such as {min(missing)}: their ranges"
            " are backed up again"
        )
        listener(Note(level="warning", message=message))


async def _sizes(storage: Storage, budget_s: float) -> dict[str, int]:
    async def look() -> dict[str, int]:
        return {info.name: info.size async for info in storage.list()}

    return await retry(look, Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=budget_s))


async def _wrong_file(storage: Storage, piece: FinishedRange, sizes: dict[str, int], budget_s: float) -> str | None:
    """A file of a piece that is not what was written."""
    for file in piece.files:
        if sizes.get(file.name) != file.size:
            return file.name
        if TIMELESS_NAME.fullmatch(file.name):
            # Another try may have written over it.
            try:
                await check_digest(storage, file, budget_s=budget_s)
            except BackupFileError:
                return file.name
    return None


def discarder(storage: Storage) -> Discard:
    """What deletes the files of a try that nobody goes on with."""

    async def discard(pieces: list[FinishedRange]) -> None:
        await delete_files(storage, {file.name for piece in pieces for file in piece.files})

    return discard


async def delete_files(storage: Storage, names: Iterable[str]) -> None:
    """Delete files of a backup, many at a time.

    :raises TikvBrError: the storage does not let us.
    """
    # Other names were never TiKV's.
    ours = sorted(name for name in names if TIMED_NAME.fullmatch(name) or TIMELESS_NAME.fullmatch(name))
    await for_each(ours, storage.delete, concurrency=DELETIONS)


async def clear_away(
    storage: Storage,
    wanted: Collection[brpb_pb2.File],
    replaced: Iterable[str],
    *,
    since_ms: int | None,
    listener: Listener,
) -> None:
    """Delete what stores wrote twice, or wrote without anybody being told: it would only cost space.

    :param wanted: the files of the backup.
    :param replaced: names of others that are known.
    :param since_ms: look for files with a time since then in their names, in milliseconds since the epoch: the place was
        locked for this backup from then on, so they are of its tries. None = do not look.
    :param listener: told if something could not be deleted.
    """
    try:
        there = [] if since_ms is None else [info.name async for info in storage.list()]
        await delete_files(storage, await asyncio.to_thread(_unwanted, wanted, replaced, there, since_ms or 0))
    except TikvBrError as err:
        message = (
            f"there are files in {storage.display_url} that do not belong to the backup and could not be deleted: {err}"
        )
        listener(Note(level="info", message=message))


def _unwanted(
    wanted: Iterable[brpb_pb2.File], replaced: Iterable[str], there: Iterable[str], since_ms: int
) -> set[str]:
    names = {file.name for file in wanted}
    found = {name for name in there if (time := TIMED_NAME.fullmatch(name)) is not None and int(time[1]) >= since_ms}
    return found.union(replaced) - names
