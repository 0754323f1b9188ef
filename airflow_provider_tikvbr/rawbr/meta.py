"""The backupmeta: the one file that makes a heap of SSTs a backup.

tikv-br writes and restores the v1 layout (every file listed inline), so that is what is written here. The v2 layout (an
index of further meta files) is understood when reading. Source: tikv-br, ``pkg/metautil/metafile.go`` and
``pkg/task/backup_raw.go``.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from google.protobuf.message import DecodeError, Message

from airflow_provider_tikvbr import __version__
from airflow_provider_tikvbr.exceptions import (
    BackupExistsError,
    BackupFileError,
    BackupInvalidError,
    BackupNotFoundError,
    StorageError,
    StorageNotFoundError,
    TikvBrError,
    TransientError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.files import REMEDY, read_file, read_member
from airflow_provider_tikvbr.rawbr.meta_bytes import FILES_AT_ONCE, dump_meta, foreign_field, parse_meta
from airflow_provider_tikvbr.rawbr.tasks import settle
from airflow_provider_tikvbr.storage.base import Storage, check_name
from airflow_provider_tikvbr.storage.cipher import IV_LENGTH, PLAINTEXT, Cipher, new_iv
from airflow_provider_tikvbr.storage.sst import SstReader
from airflow_provider_tikvbr.tikv.keys import RAW_MODE, ApiKey, ApiVersion, KeyCodec, KeyRange
from airflow_provider_tikvbr.tikv.retry import Backoff, retry
from airflow_provider_tikvbr.tikv.values import decode_value
from airflow_provider_tikvbr.timelimit import within

Check = Callable[[], Awaitable[None]]

META_NAME = "backupmeta"
RAW_CF = "default"

# How long a storage that stumbles is asked to take backupmeta, in seconds: a whole backup depends on it.
PATIENCE_S = 120.0
RETRY_BASE_S = 0.2
RETRY_CAP_S = 5.0
# A job that is told to stop has about five seconds; most of them go to the cluster.
WRITE_AT_STOP_S = 1.0
WITHDRAW_S = 1.0

# Deeper than any writer goes: one level holds a hundred million files.
MAX_INDEX_DEPTH = 8

# tikv-br's own text, line for line, with what this program knows of itself.
BR_VERSION = (
    f"BR\nRelease Version: airflow_provider_tikvbr {__version__}\nGit Commit Hash: None\nGit Branch: None\n"
    f"Go Version: None\nUTC Build Time: None\nRace Enabled: false"
)


async def _unchecked() -> None:
    """Of a place that nobody else can have."""


def build_meta(
    *,
    cluster_id: int,
    cluster_version: str,
    api_version: ApiVersion,
    keys: KeyRange[ApiKey],
    files: Iterable[brpb_pb2.File],
    backup_ts: int | None = None,
) -> brpb_pb2.BackupMeta:
    """Describe a finished backup as tikv-br does.

    The backup-ts stands where backups of other kinds of data have theirs; tikv-br shows it, but does not heed it.

    :param cluster_version: as PD tells it, without a leading ``v``.
    :param api_version: of the files, which is the destination's if they were converted.
    :param keys: the range that was asked for, as API keys of ``api_version``.
    :param files: what the stores reported.
    :param backup_ts: from when on change capture may go on; None for a backup that does not know.
    """
    ordered: list[brpb_pb2.File] = sorted(files, key=lambda file: (file.start_key, file.name))
    meta = brpb_pb2.BackupMeta(
        cluster_id=cluster_id,
        cluster_version=cluster_version,
        end_version=backup_ts or 0,
        is_raw_kv=True,
        raw_ranges=[brpb_pb2.RawRange(start_key=keys.start, end_key=keys.end, cf=RAW_CF)],
        ddls=b"[]",
        br_version=BR_VERSION,
        api_version=int(api_version),  # type: ignore[arg-type]
    )
    for at in range(0, len(ordered), FILES_AT_ONCE):
        meta.files.extend(ordered[at : at + FILES_AT_ONCE])
    return meta


def backup_ts_in(meta: brpb_pb2.BackupMeta) -> int | None:
    """The timestamp from which change capture may go on; None if the backup has none, such as those of tikv-br."""
    return meta.end_version or None


def backup_range(meta: brpb_pb2.BackupMeta) -> KeyRange[ApiKey]:
    """The range that a backup covers, as API keys of the backup's API version."""
    covered = meta.raw_ranges[0]
    return KeyRange(ApiKey(covered.start_key), ApiKey(covered.end_key))


async def write_meta(
    storage: Storage, meta: brpb_pb2.BackupMeta, cipher: Cipher = PLAINTEXT, *, check: Check = _unchecked
) -> None:
    """Make the backup complete: one atomic write, never over another backup.

    :param check: run right before each try and once after the last: what it raises is why this is not our place any more.
        It may be somebody else's by now, who deletes what an earlier try has left there.
    :raises BackupExistsError: the place holds a backupmeta already.
    """
    # First, as it takes seconds for half a million files.
    data = await asyncio.to_thread(_encrypted, meta, cipher)

    async def create() -> None:
        await check()
        await _create(storage, data)

    await retry(create, Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=PATIENCE_S))
    await check()


async def _create(storage: Storage, data: bytes) -> None:
    try:
        # Not left half-way when cancelled: it could appear after somebody looked for it.
        created = await settle(storage.create(META_NAME, data), limit_s=WRITE_AT_STOP_S)
    except TransientError:
        # The answer may be lost, not the file.
        if not await storage.exists(META_NAME):
            raise
        created = False
    # A refusal may be the echo of a first try whose answer was lost: then it is our own file that is in the way.
    if not created and await storage.read(META_NAME) != data:
        raise backup_exists(storage)


async def withdraw_meta(
    storage: Storage, meta: brpb_pb2.BackupMeta, cipher: Cipher = PLAINTEXT, *, check: Check = _unchecked
) -> None:
    """Undo :func:`write_meta`, as far as the storage lets us and soon; another backup stays.

    :param check: run before: what it raises is why this is not our place any more, where another try may have told already
        that the backup is complete.
    """

    async def withdraw() -> None:
        await check()
        data = await storage.read(META_NAME)
        if await asyncio.to_thread(lambda: _decrypted(data, cipher) == meta):
            await storage.delete(META_NAME)

    # What is not withdrawn is no harm: another try takes it for done, and does what is left to do.
    with suppress(TikvBrError, asyncio.TimeoutError):
        await within(WITHDRAW_S, withdraw())


def backup_exists(storage: Storage) -> BackupExistsError:
    """The refusal to write into a place that holds a backup."""
    return BackupExistsError(
        f"{storage.display_url} holds a backup already: give an empty place, or delete that backup first",
        url=storage.display_url,
    )


async def read_meta(storage: Storage, cipher: Cipher = PLAINTEXT) -> brpb_pb2.BackupMeta:
    """Read and check what a backup says of itself; a v2 index is resolved, so that ``files`` lists every file.

    :raises BackupNotFoundError: there is no backupmeta.
    :raises BackupInvalidError: it is damaged, or encrypted otherwise than ``cipher`` says;
        or it is not about raw data.
    """
    try:
        data = await storage.read(META_NAME)
    except StorageNotFoundError:
        raise BackupNotFoundError(
            f"there is no backup in {storage.display_url}: it has no {META_NAME}; check the storage URL"
        ) from None
    meta = await asyncio.to_thread(_decrypted, data, cipher)
    if meta is None:
        raise BackupInvalidError(_unreadable(storage, data, cipher))
    if not meta.is_raw_kv and meta.br_version:
        raise BackupInvalidError(
            f"the backup in {storage.display_url} holds transactional data, not raw data: restore it with TiDB's br"
        )
    if not meta.is_raw_kv:
        # The fields come in order, and every writer ends with its version.
        raise _unusable(storage, "its end is missing")
    if meta.HasField("file_index"):
        found = await _resolve(storage, cipher, meta.file_index)
        if found.raw_ranges or found.ddls:
            raise _unusable(storage, "its index of files lists other things")
        meta.files.extend(found.data_files)
        meta.ClearField("file_index")
    if meta.HasField("raw_range_index"):
        found = await _resolve(storage, cipher, meta.raw_range_index)
        if found.data_files or found.ddls:
            raise _unusable(storage, "its index of key ranges lists other things")
        meta.raw_ranges.extend(found.raw_ranges)
        meta.ClearField("raw_range_index")
    meta.version = 0
    await asyncio.to_thread(_check, storage, meta)
    # The API version is what every writer ends with, and none at all stands for V1.
    if int(meta.api_version) == ApiVersion.V1 and await _is_of_v2(storage, meta, cipher):
        raise _unusable(storage, "its end is missing")
    return meta


async def _is_of_v2(storage: Storage, meta: brpb_pb2.BackupMeta, cipher: Cipher) -> bool:
    """Whether a backup holds data of API V2 for certain, whatever it says."""
    if backup_ts_in(meta) is not None:
        return True
    # All its keys begin so, but those of a user of V1 may too: only the data tell one from the other.
    if not backup_range(meta).start.startswith(RAW_MODE):
        return False
    file = min((file for file in meta.files if file.total_kvs), key=lambda file: file.size, default=None)
    if file is None:
        return False
    try:
        data = await read_file(storage, file, cipher)
        return await asyncio.to_thread(_holds_v2, data, file.name)
    except BackupFileError:
        # Whoever needs the file will say so.
        return False


def _holds_v2(data: bytes, name: str) -> bool:
    codec = KeyCodec(ApiVersion.V2)
    try:
        for engine_key, stored in SstReader(data, name=name):
            key, _ = codec.split_engine_key(engine_key)
            decode_value(ApiVersion.V2, stored)
            if not key.startswith(RAW_MODE):
                return False
    except ValueError:
        return False
    return True


def _encrypted(meta: brpb_pb2.BackupMeta, cipher: Cipher) -> bytes:
    data = dump_meta(meta)
    if cipher.is_plain:
        return data
    iv = new_iv()
    return iv + cipher.encrypt(data, iv)


def _decrypted(data: bytes, cipher: Cipher) -> brpb_pb2.BackupMeta | None:
    """The message, or None if the bytes make none that a backup tool wrote."""
    if not cipher.is_plain:
        data = cipher.decrypt(data[IV_LENGTH:], data[:IV_LENGTH]) if len(data) > IV_LENGTH else b""
    try:
        meta = parse_meta(data)
    except DecodeError:
        return None
    # Bytes that are no message at all may still parse as one that is empty or holds unknown fields only.
    return meta if meta.is_raw_kv or meta.cluster_version or meta.br_version else None


def _unreadable(storage: Storage, data: bytes, cipher: Cipher) -> str:
    where = f"the {META_NAME} in {storage.display_url}"
    if cipher.is_plain:
        return (
            f"{where} cannot be read: it is damaged, or encrypted; give the cipher and key of the backup if it has any,"
            " or else put it back from a copy of the backup"
        )
    if _decrypted(data, PLAINTEXT) is not None:
        return f"{where} is not encrypted: leave the cipher and key out"
    return (
        f"{where} cannot be read with this key: check that cipher and key are those of the backup; if they are, it is"
        " damaged"
    )


async def _resolve(storage: Storage, cipher: Cipher, index: brpb_pb2.MetaFile, depth: int = 0) -> brpb_pb2.MetaFile:
    """One meta file that holds what the index and all files below it list."""
    if depth > MAX_INDEX_DEPTH:
        raise _unusable(storage, "its file index has no end")
    _check_fields(storage, [index, *index.meta_files])
    found = brpb_pb2.MetaFile(data_files=index.data_files, raw_ranges=index.raw_ranges, ddls=index.ddls)
    for file in index.meta_files:
        # Unlike an SST's, this digest is that of the decrypted bytes.
        plain = cipher.decrypt(await read_member(storage, file.name), file.cipher_iv)
        try:
            if hashlib.sha256(plain).digest() != file.sha256:
                raise DecodeError
            below = brpb_pb2.MetaFile.FromString(plain)
        except DecodeError:
            raise BackupFileError(
                f"{file.name} of the backup in {storage.display_url} is damaged, or was encrypted with another key{REMEDY}",
                file=file.name,
            ) from None
        found.MergeFrom(await _resolve(storage, cipher, below, depth + 1))
    return found


def _unusable(storage: Storage, why: str, *, file: str | None = None) -> BackupInvalidError:
    message = f"the {META_NAME} in {storage.display_url} cannot be used: {why}{REMEDY}"
    return BackupInvalidError(message) if file is None else BackupFileError(message, file=file)


def _check_fields(storage: Storage, messages: Iterable[Message]) -> None:
    if (number := foreign_field(messages)) is not None:
        raise _unusable(storage, f"it is damaged, or newer than this program: nobody knows its field {number}")


def _check(storage: Storage, meta: brpb_pb2.BackupMeta) -> None:
    """What restore and checksum rely on."""
    if int(meta.api_version) not in set(map(int, ApiVersion)):
        raise _unusable(storage, f"API version {meta.api_version} is not known")
    if len(meta.raw_ranges) != 1:
        raise _unusable(storage, f"it has {len(meta.raw_ranges)} key ranges instead of one")
    _check_fields(storage, [meta, *meta.raw_ranges, *meta.files])
    seen: set[str] = set()
    for file in meta.files:
        try:
            check_name(file.name)
        except StorageError as error:
            raise _unusable(storage, str(error), file=file.name) from None
        if file.name in seen:
            raise _unusable(storage, f"it lists {file.name} twice", file=file.name)
        seen.add(file.name)
