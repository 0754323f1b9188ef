"""Back up a range and make sure that its files are there, and are those that the stores told of."""

from __future__ import annotations

import asyncio
from typing import Final

from airflow_provider_tikvbr.exceptions import BackupFileError, BackupInvalidError, ProtocolError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.coverage import Coverage
from airflow_provider_tikvbr.rawbr.events import Listener, Note, ignore
from airflow_provider_tikvbr.rawbr.files import REMEDY, check_digest, verify_files
from airflow_provider_tikvbr.rawbr.options import VerifyFiles
from airflow_provider_tikvbr.rawbr.push import back_up_range
from airflow_provider_tikvbr.rawbr.takeover import TIMELESS_NAME
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.tikv.cluster import Cluster

# Each request of the past writes over a file once.
TRIES: Final = 3


async def back_up_whole(
    cluster: Cluster, storage: Storage, coverage: Coverage, *, budget_s: float, listener: Listener
) -> list[brpb_pb2.File]:
    """Back up the whole range of a request, and see that it is so.

    The first file of a V1 cluster is read: its name is the same in every try, so that a store which is still at work for
    a request of the past may write over it, whose answer nobody takes in. Then its range is backed up again.

    :param coverage: holds the request, and collects the answers.
    :param budget_s: seconds without progress after which to give up.
    :return: the files, in key order.
    :raises BackupInvalidError: they are not all there: the backup must not be declared complete.
    :raises BudgetExceededError: some of it could not be backed up for that long; it says what.
    :raises TerminalError: it can never succeed.
    """
    for left in reversed(range(TRIES)):
        await back_up_range(cluster, coverage, budget_s=budget_s, listener=listener)
        # In a thread: there may be half a million. Nothing comes in any more.
        files = await asyncio.to_thread(_all_files, coverage)
        if not storage.keeps:
            break
        try:
            if files and TIMELESS_NAME.fullmatch(files[0].name):
                await check_digest(storage, files[0], budget_s=budget_s)
            break
        except BackupFileError as err:
            if not left:
                raise _not_there(storage, err) from err
            message = (
                f"{files[0].name} is not what the last answer told: a request of the past may have written over it; its"
                " range is backed up again"
            )
            listener(Note(level="warning", message=message))
            coverage.give_up(files[0])
    if storage.keeps:
        try:
            await verify_files(storage, files, VerifyFiles.SIZE, budget_s=budget_s, listener=ignore)
        except BackupFileError as err:
            raise _not_there(storage, err) from err
    return files


def _all_files(coverage: Coverage) -> list[brpb_pb2.File]:
    if gaps := coverage.gaps():
        raise ProtocolError(f"{len(gaps)} ranges are not backed up")
    files = list(coverage.ranges.files())
    seen: set[str] = set()
    for file in files:
        if file.name in seen:
            raise BackupInvalidError(f"two stores wrote the file {file.name}: one has overwritten the other's")
        seen.add(file.name)
    return files


def _not_there(storage: Storage, error: BackupFileError) -> BackupFileError:
    what, place = error.message.removesuffix(REMEDY), storage.display_url
    message = f"{what}; the stores wrote it, so check that {place} is one place that they all share"
    return BackupFileError(message, file=error.file)
