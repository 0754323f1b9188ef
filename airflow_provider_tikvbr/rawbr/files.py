"""The files of a backup: that they are all there, and that they are what the stores wrote.

TiKV compares the size and the checksums inside a file when it downloads it (``components/sst_importer/src/sst_importer.rs``),
and never its digest: a damaged file would be met in the middle of a restore, and another backup's not at all. So they are
looked for before anything is changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from airflow_provider_tikvbr.exceptions import BackupFileError, StorageNotFoundError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.events import Listener, Note, Progress, ignore
from airflow_provider_tikvbr.rawbr.options import DEFAULT_BUDGET_S, VerifyFiles
from airflow_provider_tikvbr.rawbr.tasks import for_each
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange
from airflow_provider_tikvbr.tikv.retry import Backoff, retry

STEP = "Verify files"
PROGRESS_INTERVAL_S = 0.5

# Files that are read at a time, and what they may take of memory together. A file that is larger than that is read alone.
FILES_AT_ONCE = 8
BYTES_AT_ONCE = 128 << 20

# Damaged files that an error names; it counts the others.
NAMED = 3

RETRY_BASE_S = 0.5
RETRY_CAP_S = 10.0


@dataclass(frozen=True, slots=True)
class _Damage:
    """What is wrong with one file.

    :param file: its name.
    :param what: the rest of a sentence about it.
    """

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file} {self.what}"


NOT_WRITTEN = "is not the file that was written"
REMEDY = "; put back what is wrong from a copy of the backup, or use another backup"


def file_range(file: brpb_pb2.File) -> KeyRange[ApiKey]:
    """The range that a backup file holds, as API keys of the backup's API version."""
    return KeyRange(ApiKey(file.start_key), ApiKey(file.end_key))


async def verify_files(
    storage: Storage,
    files: Collection[brpb_pb2.File],
    depth: VerifyFiles,
    *,
    budget_s: float = DEFAULT_BUDGET_S,
    listener: Listener = ignore,
) -> None:
    """Look for damage among the files of a backup, and count all that is found.

    :param files: their entries in backupmeta.
    :param depth: ``off`` looks at the entries alone, ``size`` compares presence and size of the files with one listing,
        ``sha256`` also reads each file, as it is stored: the digest is that of the encrypted bytes.
    :param budget_s: seconds for which a storage may fail before this gives up.
    :param listener: told how far the reading has come, and of the first damaged files as they are found.
    :raises BackupFileError: files are missing, not those that were written, or hold the same keys; it names the first ones.
    :raises BudgetExceededError: the storage failed for too long.
    """
    await asyncio.to_thread(_check_entries, storage, files)
    if depth is VerifyFiles.OFF or not files:
        return
    await retry(lambda: check_files(storage, files), _backoff(budget_s))
    if depth is VerifyFiles.SHA256:
        await _Reading(storage, files, budget_s=budget_s, listener=listener).run()


async def check_files(storage: Storage, files: Collection[brpb_pb2.File]) -> None:
    """Compare presence and size of all files with one listing.

    :raises BackupFileError: some are missing or of another size; it names the first ones and counts them.
    """
    found = {info.name: info.size async for info in storage.list()}
    # Off the loop: there may be half a million.
    damages = await asyncio.to_thread(_wrong_sizes, files, found)
    if damages:
        raise _damaged(storage, damages, of=len(files))


def _wrong_sizes(files: Iterable[brpb_pb2.File], found: Mapping[str, int]) -> list[_Damage]:
    damages = []
    for file in files:
        size = found.get(file.name)
        if size is None:
            damages.append(_Damage(file.name, "is missing"))
        elif size != file.size:
            damages.append(_Damage(file.name, f"has {size} bytes instead of {file.size}"))
    return damages


async def read_file(storage: Storage, file: brpb_pb2.File, cipher: Cipher = PLAINTEXT) -> bytes:
    """Read one SST, compare it with what the backupmeta says, decrypt it.

    :raises BackupFileError: it is missing, or not the file that was written.
    """
    stored = await read_member(storage, file.name)

    def open_it() -> bytes:
        if not _is_written(file, stored):
            raise _damaged(storage, [_Damage(file.name, NOT_WRITTEN)], of=1)
        return cipher.decrypt(stored, file.cipher_iv)

    # Off the loop: hashing and decrypting a large file takes tenths of a second.
    return await asyncio.to_thread(open_it)


async def check_digest(storage: Storage, file: brpb_pb2.File, *, budget_s: float) -> None:
    """Read one SST and compare it with what its entry says.

    :param budget_s: seconds for which the storage may fail.
    :raises BackupFileError: it is missing, or not the file that was written.
    :raises BudgetExceededError: the storage failed for too long.
    """
    await retry(lambda: read_file(storage, file), _backoff(budget_s))


async def read_member(storage: Storage, name: str) -> bytes:
    """Read a file that belongs to the backup.

    :raises BackupFileError: it is missing.
    """
    try:
        return await storage.read(name)
    except StorageNotFoundError:
        raise _damaged(storage, [_Damage(name, "is missing")], of=1) from None


def _is_written(file: brpb_pb2.File, stored: bytes) -> bool:
    return len(stored) == file.size and (not file.sha256 or hashlib.sha256(stored).digest() == file.sha256)


def _damaged(storage: Storage, damages: Sequence[_Damage], *, of: int) -> BackupFileError:
    text = ", ".join(map(str, damages[:NAMED]))
    if len(damages) > NAMED:
        text += f" and {len(damages) - NAMED} more"
    if len(damages) > 1:
        text = f"{len(damages)} of {of} files are wrong: {text}"
    return BackupFileError(f"the backup in {storage.display_url} is damaged: {text}{REMEDY}", file=damages[0].file)


def _backoff(budget_s: float) -> Backoff:
    return Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=budget_s)


def _check_entries(storage: Storage, files: Iterable[brpb_pb2.File]) -> None:
    """Refuse files that hold the same keys: which of them counts would be left to chance.

    :raises BackupFileError: two of them do.
    """
    before: brpb_pb2.File | None = None
    damages, count = [], 0
    for file in sorted(files, key=lambda each: each.start_key):
        count += 1
        if before is not None and (not before.end_key or before.end_key > file.start_key):
            damages.append(_Damage(file.name, f"holds keys that {before.name} holds too"))
            # The one that reaches further is what the next ones are held against.
            if not before.end_key or (file.end_key and file.end_key <= before.end_key):
                continue
        before = file
    if damages:
        raise _damaged(storage, damages, of=count)


class _Room:
    """Lets so many bytes in at a time, in the order in which they come.

    :param limit: how many; what is larger comes in alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        # Whoever is next waits here, so that a large file is not passed by small ones for ever.
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Wait for room, and take it for the block."""
        async with self._turn:
            while self._held and self._held + size > self._limit:
                self._left.clear()
                await self._left.wait()
            self._held += size
        try:
            yield
        finally:
            self._held -= size
            self._left.set()


class _Reading:
    """Reads all files and compares their digests."""

    def __init__(
        self, storage: Storage, files: Collection[brpb_pb2.File], *, budget_s: float, listener: Listener
    ) -> None:
        self._storage = storage
        self._files = files
        self._budget_s = budget_s
        self._listener = listener
        self._room = _Room(BYTES_AT_ONCE)
        self._damages: list[_Damage] = []
        self._without_digest = 0
        self._done = self._bytes = 0
        self._started = time.monotonic()
        self._told = float("-inf")

    async def run(self) -> None:
        """Read each file once.

        :raises BackupFileError: some are not the files that were written.
        """
        self._tell()
        await for_each(self._files, self._one, concurrency=FILES_AT_ONCE)
        self._tell()
        if self._without_digest:
            message = (
                f"backupmeta has no sha256 of {self._without_digest} of {len(self._files)} files: of these presence and"
                " size were compared alone"
            )
            self._listener(Note(level="warning", message=message))
        if self._damages:
            raise _damaged(self._storage, self._damages, of=len(self._files))

    async def _one(self, file: brpb_pb2.File) -> None:
        if not file.sha256:
            self._without_digest += 1
        else:
            async with self._room.hold(file.size):
                await self._compare(file)
        self._done += 1
        self._bytes += file.size
        if time.monotonic() - self._told >= PROGRESS_INTERVAL_S:
            self._tell()

    async def _compare(self, file: brpb_pb2.File) -> None:
        try:
            stored = await retry(lambda: self._storage.read(file.name), _backoff(self._budget_s))
        except StorageNotFoundError:
            self._found(_Damage(file.name, "is missing"))
            return
        if not await asyncio.to_thread(_is_written, file, stored):
            self._found(_Damage(file.name, NOT_WRITTEN))

    def _found(self, damage: _Damage) -> None:
        self._damages.append(damage)
        if len(self._damages) <= NAMED:
            # All files are read before the restore is refused, which may take hours: nobody should have to wait to know.
            self._listener(Note(level="warning", message=f"the backup is damaged: {damage}"))

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._listener(
            Progress(
                step=STEP,
                done=self._done,
                total=len(self._files),
                kvs=0,
                bytes=self._bytes,
                elapsed_s=self._told - self._started,
            )
        )
