"""Count what a backup holds: by backupmeta, and by the files themselves where a range cuts through them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from fastcrc import crc64

from airflow_provider_tikvbr.exceptions import BackupFileError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.files import file_range, read_file
from airflow_provider_tikvbr.rawbr.summary import Checksum
from airflow_provider_tikvbr.rawbr.tasks import for_each
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher
from airflow_provider_tikvbr.storage.sst import SstReader
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, EngineKey, KeyCodec, KeyRange
from airflow_provider_tikvbr.tikv.values import decode_value

# Backup files that are read at a time, each wholly in memory.
FILES_AT_ONCE = 2


async def expected_checksum(
    storage: Storage, meta: brpb_pb2.BackupMeta, keys: KeyRange[ApiKey], cipher: Cipher = PLAINTEXT
) -> Checksum:
    """What a backup holds of a range.

    Files that lie wholly in it count as backupmeta says; of those that it cuts the pairs inside are counted.

    :param keys: the range, as API keys of the backup.
    :raises BackupFileError: a file that has to be read is missing or damaged.
    """
    # In a thread: there may be half a million.
    total, cut = await asyncio.to_thread(_by_entries, meta.files, keys)
    counted = await _count_files(storage, ApiVersion(meta.api_version), cut, keys, cipher)
    return sum(counted, total)


def _by_entries(files: Iterable[brpb_pb2.File], keys: KeyRange[ApiKey]) -> tuple[Checksum, Sequence[brpb_pb2.File]]:
    """What the entries of files tell of a range, and the files that it cuts."""
    total, cut = Checksum(), []
    for file in files:
        held = file_range(file)
        if keys.covers(held):
            total += Checksum(file.crc64xor, file.total_kvs, file.total_bytes)
        elif keys.intersect(held) is not None:
            cut.append(file)
    return total, cut


async def _count_files(
    storage: Storage, version: ApiVersion, files: Iterable[brpb_pb2.File], keys: KeyRange[ApiKey], cipher: Cipher
) -> list[Checksum]:
    counted: list[Checksum] = []

    async def count(file: brpb_pb2.File) -> None:
        data = await read_file(storage, file, cipher)
        # Minutes for a large file, so off the loop.
        counted.append(await asyncio.to_thread(count_pairs, data, version, keys, name=file.name))

    await for_each(files, count, concurrency=FILES_AT_ONCE)
    return counted


def count_pairs(data: bytes, version: ApiVersion, keys: KeyRange[ApiKey], *, name: str = "the SST file") -> Checksum:
    """Count the pairs of a backup file in a range.

    :param data: the file, decrypted.
    :param version: API version of the backup.
    :param keys: the range, as API keys of the backup.
    :raises BackupFileError: the file is damaged.
    """
    codec = KeyCodec(version)
    bounds = codec.region_range(keys)
    # Without a timestamp behind it, an encoded key sorts before every version of the same key.
    wanted = KeyRange(EngineKey(bounds.start), EngineKey(bounds.end))
    crc = kvs = size = 0
    try:
        for engine_key, stored in SstReader(data, name=name).pairs(wanted):
            pair = codec.split_engine_key(engine_key)[0] + decode_value(version, stored).value
            crc ^= crc64.xz(pair)
            kvs += 1
            size += len(pair)
    except ValueError as err:
        raise BackupFileError(f"{name} is not a backup file of API version {version.name}: {err}", file=name) from err
    return Checksum(crc, kvs, size)
