"""What a job has finished, kept in a storage so that the next try goes on from there.

A checkpoint is a directory of small files: ``head.json`` says which job it is of, and each ``<writer>-<number>`` beside
it holds pieces that were finished since the file before. Nothing is rewritten but the head, so that half a million
pieces cost no more per save than those of the last half minute. The files hold users' keys and are encrypted as the
backup is; the head holds digests of options only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import islice
from typing import Any, Final

from google.protobuf.message import DecodeError

from airflow_provider_tikvbr.exceptions import BackupInvalidError, InvalidOptionError, StorageNotFoundError, TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.events import CheckpointSaved, Listener, Note, ignore
from airflow_provider_tikvbr.rawbr.ranges import FinishedRange
from airflow_provider_tikvbr.rawbr.tasks import settle
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.cipher import IV_LENGTH, PLAINTEXT, Cipher, new_iv
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange

HEAD_NAME: Final = "head.json"
FORMAT: Final = 1
# What a crash may cost of a job's work, in seconds.
SAVE_INTERVAL_S = 30.0
# Pieces of one file: some megabytes, so that writing one takes far less than a second.
PIECES_PER_FILE = 16384
MAGIC: Final = b"TBC1"
DIGEST_BYTES: Final = 32
LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class JobIdentity:
    """Which job a checkpoint is of.

    :param kind: ``backup`` or ``restore``.
    :param owner: the run that works: an unfinished job of another run is not gone on with, for it may be of any age.
        Empty for jobs without a run, such as commands.
    :param options: what must not differ between tries, by the options' names. Only digests of the values are kept.
    """

    kind: str
    owner: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The contents of ``head.json``.

    :param writers: who wrote pieces, oldest first.
    :param state: what else the next try has to know.
    """

    kind: str
    owner: str
    started: str
    salt: str
    digests: dict[str, str]
    writers: tuple[str, ...]
    state: dict[str, int | str] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def parse(cls, data: bytes) -> _Head | None:
        """Read one; None if it is of another format or damaged."""
        try:
            found: Any = json.loads(data)
            if found["format"] != FORMAT:
                return None
            return cls(
                kind=str(found["kind"]),
                owner=str(found["owner"]),
                started=str(found["started"]),
                salt=str(found["salt"]),
                digests={str(k): str(v) for k, v in found["digests"].items()},
                writers=tuple(str(w) for w in found["writers"]),
                state=dict(found["state"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def dump(self) -> bytes:
        """Its text."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


class Checkpoint:
    """The checkpoint of a job that is under way; made by :meth:`open` alone, under the job's lock.

    :ivar resumed: whether it goes on with what an earlier try has finished.
    :ivar started: when the first try began, ISO 8601, UTC.
    """

    def __init__(
        self, *, storage: Storage, directory: str, head: _Head, cipher: Cipher, resumed: bool, listener: Listener
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._head = head
        self._cipher = cipher
        self._listener = listener
        self._pending: deque[FinishedRange] = deque()
        self._saving = asyncio.Lock()
        self._files = 0
        self._saved = 0
        self._told = False
        self.resumed = resumed

    @classmethod
    async def open(
        cls,
        storage: Storage,
        *,
        directory: str,
        identity: JobIdentity,
        cipher: Cipher = PLAINTEXT,
        resume: bool = True,
        listener: Listener = ignore,
    ) -> Checkpoint:
        """Begin a checkpoint, or go on with the one that is there.

        :param storage: where it is kept.
        :param directory: its directory there.
        :param identity: the job.
        :param cipher: how the backup is encrypted.
        :param resume: go on with an unfinished job; otherwise start over.
        :param listener: told what is gone on with, what is not, and what is saved.
        :raises InvalidOptionError: the unfinished job was begun with other options; it names one that differs.
        :raises TikvBrError: the storage does not let us.
        """
        found = await cls._read_head(storage, directory)
        writer = secrets.token_hex(6)
        if found is not None and resume and found.kind == identity.kind and found.owner == identity.owner:
            _refuse_other_options(found, identity, storage)
            head = replace(found, writers=(*found.writers, writer))
            checkpoint = cls(
                storage=storage, directory=directory, head=head, cipher=cipher, resumed=True, listener=listener
            )
        else:
            salt = secrets.token_hex(16)
            head = _Head(
                kind=identity.kind,
                owner=identity.owner,
                started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                salt=salt,
                digests={name: _digest(salt, name, value) for name, value in identity.options.items()},
                writers=(writer,),
            )
            checkpoint = cls(
                storage=storage, directory=directory, head=head, cipher=cipher, resumed=False, listener=listener
            )
            if found is not None:
                why = f"it is of {found.owner or 'another job'}" if resume else "resume is off"
                message = (
                    f"{storage.display_url} holds an unfinished {found.kind}, begun at {found.started}, which is not gone on"
                    f" with: {why}"
                )
                listener(Note(level="warning", message=message))
            await checkpoint.remove()
        await settle(checkpoint._write_head())
        return checkpoint

    @classmethod
    async def exists(cls, storage: Storage, *, directory: str) -> bool:
        """Whether a job has left a checkpoint, or keeps one."""
        return await storage.exists(f"{directory}/{HEAD_NAME}")

    @staticmethod
    async def _read_head(storage: Storage, directory: str) -> _Head | None:
        try:
            return _Head.parse(await storage.read(f"{directory}/{HEAD_NAME}"))
        except StorageNotFoundError:
            return None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self._storage.display_url.rstrip('/')}/{self._directory}"

    @property
    def started(self) -> str:
        """When the first try began, ISO 8601, UTC."""
        return self._head.started

    @property
    def state(self) -> Mapping[str, int | str]:
        """What earlier tries have remembered beside their pieces."""
        return self._head.state

    async def remember(self, **state: int | str) -> None:
        """Keep something for the next try.

        :raises TikvBrError: the storage does not let us.
        """
        self._head = replace(self._head, state={**self._head.state, **state})
        await settle(self._write_head())

    async def finished(self) -> AsyncIterator[list[FinishedRange]]:
        """What earlier tries have finished, oldest first; a file that is damaged is told of and left out."""
        prefix = f"{self._directory}/"
        own = self._head.writers[-1]
        order = {writer: at for at, writer in enumerate(self._head.writers)}
        names = [info.name.removeprefix(prefix) async for info in self._storage.list(prefix)]
        wanted = [(order[w], n) for n in names if (w := n.partition("-")[0]) in order and w != own]
        for _, name in sorted(wanted):
            try:
                data = await self._storage.read(prefix + name)
                yield await asyncio.to_thread(_unpack, data, self._cipher)
            except (BackupInvalidError, StorageNotFoundError):
                message = f"{self.place}/{name} is damaged: what it says was finished is done again"
                self._listener(Note(level="warning", message=message))

    def add(self, piece: FinishedRange) -> None:
        """Take in a finished piece, to be saved soon."""
        self._pending.append(piece)

    @contextlib.asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """Save every half minute while the block runs, and at its end."""
        beat = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            beat.cancel()
            await settle(self._end(beat))

    async def _end(self, beat: asyncio.Task[None]) -> None:
        await asyncio.gather(beat, return_exceptions=True)
        await self.save()

    async def _keep(self) -> None:
        saved_at = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, SAVE_INTERVAL_S))
            if time.monotonic() - saved_at >= SAVE_INTERVAL_S or len(self._pending) >= PIECES_PER_FILE:
                await settle(self.save())
                saved_at = time.monotonic()

    async def save(self) -> None:
        """Write what is not saved yet. A storage that does not take it now is told of; the next save tries again."""
        async with self._saving:
            while self._pending:
                pieces = list(islice(self._pending, PIECES_PER_FILE))
                data = await asyncio.to_thread(_pack, pieces, self._cipher)
                name = f"{self._directory}/{self._head.writers[-1]}-{self._files + 1:06}"
                try:
                    await self._storage.write(name, data)
                except TikvBrError as err:
                    if not self._told:
                        message = f"the checkpoint in {self.place} could not be written, which is tried again: {err}"
                        self._listener(Note(level="warning", message=message))
                    self._told = True
                    return
                self._told = False
                self._files += 1
                for _ in pieces:
                    self._pending.popleft()
                self._saved += len(pieces)
                self._listener(CheckpointSaved(place=self.place, pieces=self._saved))

    async def remove(self) -> None:
        """Delete it: the job is done, or starts over.

        :raises TikvBrError: the storage does not let us.
        """
        prefix = f"{self._directory}/"
        head = prefix + HEAD_NAME
        names = [info.name async for info in self._storage.list(prefix)]
        for name in names:
            if name != head:
                await self._storage.delete(name)
        # Last: what is left half-way can be found by it.
        if head in names:
            await self._storage.delete(head)

    async def _write_head(self) -> None:
        await self._storage.write(f"{self._directory}/{HEAD_NAME}", self._head.dump())


def _refuse_other_options(found: _Head, identity: JobIdentity, storage: Storage) -> None:
    names = sorted({*found.digests, *identity.options})
    for name in names:
        value = identity.options.get(name)
        if value is None or not hmac.compare_digest(found.digests.get(name, ""), _digest(found.salt, name, value)):
            raise InvalidOptionError(
                f"{storage.display_url} holds an unfinished {found.kind}, begun at {found.started} with another {name}:"
                f" give the same {name} to go on with it, or resume=False to start over",
                parameter=name,
            )


def _digest(salt: str, name: str, value: str) -> str:
    return hmac.new(
        bytes.fromhex(salt), f"{name}={value}".encode("utf-8", "surrogateescape"), hashlib.sha256
    ).hexdigest()


def _pack(pieces: list[FinishedRange], cipher: Cipher) -> bytes:
    """A file of pieces: magic, digest, then, encrypted as a whole, each with its length before it."""
    parts: list[bytes] = []
    for piece in pieces:
        record = brpb_pb2.BackupResponse(start_key=piece.keys.start, end_key=piece.keys.end, files=piece.files)
        data = record.SerializeToString()
        parts += (len(data).to_bytes(LENGTH_BYTES, "big"), data)
    body = b"".join(parts)
    if not cipher.is_plain:
        iv = new_iv()
        body = iv + cipher.encrypt(body, iv)
    return MAGIC + hashlib.sha256(body).digest() + body


def _unpack(data: bytes, cipher: Cipher) -> list[FinishedRange]:
    """Read a file of pieces.

    :raises BackupInvalidError: it is damaged.
    """
    start = len(MAGIC) + DIGEST_BYTES
    body = data[start:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != data[len(MAGIC) : start]:
        raise BackupInvalidError("it is not what was written")
    if not cipher.is_plain:
        body = cipher.decrypt(body[IV_LENGTH:], body[:IV_LENGTH])
    pieces: list[FinishedRange] = []
    at = 0
    try:
        while at < len(body):
            end = at + LENGTH_BYTES + int.from_bytes(body[at : at + LENGTH_BYTES], "big")
            record = brpb_pb2.BackupResponse.FromString(body[at + LENGTH_BYTES : end])
            pieces.append(
                FinishedRange(KeyRange(ApiKey(record.start_key), ApiKey(record.end_key)), tuple(record.files))
            )
            at = end
    except DecodeError as err:
        raise BackupInvalidError("it is not what was written") from err
    return pieces
