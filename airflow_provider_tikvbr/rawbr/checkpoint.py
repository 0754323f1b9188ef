"""What a job has finished, kept in a storage so that the next try goes on from there.

A checkpoint is a directory of small files: ``head.json`` says which job it is of, and each ``<writer>-<number>`` beside
it holds pieces that were finished since the file before. Nothing is rewritten but the head, so that half a million
pieces cost no more per save than those of the last half minute. The files hold users' keys and are encrypted as the
backup is; the head holds digests of options only.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, TypeGuard, TypeVar

from airflow_provider_tikvbr.exceptions import BackupInvalidError, InvalidOptionError, StorageNotFoundError, TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.checkpoint_format import (
    Head,
    JobIdentity,
    append,
    new_head,
    other_option,
    pack,
    unpack,
)
from airflow_provider_tikvbr.rawbr.events import CheckpointSaved, Listener, Note, ignore
from airflow_provider_tikvbr.rawbr.ranges import FinishedRange
from airflow_provider_tikvbr.rawbr.tasks import for_each, settle
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher
from airflow_provider_tikvbr.tikv.retry import Backoff, retry

T = TypeVar("T")
# Undoes pieces that nobody goes on with.
Discard = Callable[[list[FinishedRange]], Awaitable[None]]

HEAD_NAME: Final = "head.json"
# What a crash may cost of a job's work, in seconds.
SAVE_INTERVAL_S = 30.0
# Pieces of one file: some megabytes, so that writing one takes far less than a second.
PIECES_PER_FILE = 16384
# A job that is told to stop has about five seconds for everything.
SAVE_AT_STOP_S = 3.0
HEAD_AT_STOP_S = 1.0
# Before the job has begun, and after it has ended, a storage that stumbles is waited for so long, in seconds.
PATIENCE_S = 30.0
RETRY_BASE_S = 0.2
RETRY_CAP_S = 3.0
CALLS_AT_ONCE = 16
# Files of pieces that are read at a time: each takes some ten megabytes of memory.
FILES_AHEAD = 4


class Checkpoint:
    """The checkpoint of a job that is under way; made by :meth:`open` alone, under the job's lock.

    It begins and ends like a lease (:func:`~airflow_provider_tikvbr.rawbr.leases.hold`) and saves every half minute in
    between. In a storage that keeps nothing it does nothing.

    :ivar resumed: whether it goes on with what an earlier try has finished.
    :ivar is_first: whether no earlier try has left anything, as far as anybody knows.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        directory: str,
        identity: JobIdentity,
        cipher: Cipher,
        listener: Listener,
        discard: Discard | None,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._identity = identity
        self._cipher = cipher
        self._listener = listener
        self._discard = discard
        self._writer = secrets.token_hex(6)
        self._head = new_head(identity, self._writer)
        # What is to be saved: whole files, oldest first, with how many pieces each has, and the one that is filled.
        self._full: deque[tuple[int, bytearray]] = deque()
        self._open = bytearray()
        self._in_open = 0
        self._saving = asyncio.Lock()
        self._beat: asyncio.Task[None] | None = None
        self._last: asyncio.Task[None] | None = None
        self._files = 0
        self._saved = 0
        self._told = False
        self.resumed = False
        self.is_first = True

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
        discard: Discard | None = None,
    ) -> Checkpoint:
        """Begin a checkpoint, or go on with the one that is there.

        :param storage: where it is kept.
        :param directory: its directory there.
        :param identity: the job.
        :param cipher: how the backup is encrypted.
        :param resume: go on with an unfinished job; otherwise start over.
        :param listener: told what is gone on with, what is not, and what is saved.
        :param discard: undoes the pieces of a try that is not gone on with, before it is forgotten what they were.
        :raises InvalidOptionError: the unfinished job was begun with other options; it names one that differs.
        :raises TikvBrError: the storage does not let us.
        """
        made = cls(
            storage=storage,
            directory=directory,
            identity=identity,
            cipher=cipher,
            listener=listener,
            discard=discard,
        )
        found, damaged = await _patiently(lambda: _read_head(storage, directory))
        if resume and _is_of(found, identity):
            name = other_option(found, identity)
            if name is not None:
                raise InvalidOptionError(
                    f"{storage.display_url} holds an unfinished {found.kind}, begun at {found.started} with another"
                    f" {name}: give the same {name} to go on with it, or resume=False to start over",
                    parameter=name,
                )
            made._head = replace(found, writers=(*found.writers, made._writer))
            made.resumed, made.is_first = True, False
            await settle(made._write_head(), limit_s=HEAD_AT_STOP_S)
            return made
        made.is_first = found is None and not damaged
        if damaged:
            made._warn(f"{made.place}/{HEAD_NAME} cannot be read: what was finished before is done again")
        elif found is not None and not found.done:
            why = f"it is of {found.owner or 'another job'}" if resume else "resume is off"
            made._warn(
                f"{storage.display_url} holds an unfinished {found.kind}, begun at {found.started}, which is not gone on"
                f" with: {why}"
            )
        await made._begin_anew(found)
        return made

    @classmethod
    async def matches(cls, storage: Storage, *, directory: str, identity: JobIdentity) -> bool:
        """Whether there is a checkpoint of that very job, which the next try would go on with."""
        found, _ = await _patiently(lambda: _read_head(storage, directory))
        return _is_of(found, identity) and other_option(found, identity) is None

    @classmethod
    async def exists(cls, storage: Storage, *, directory: str) -> bool:
        """Whether a job has left a checkpoint, or keeps one."""
        return await storage.exists(f"{directory}/{HEAD_NAME}")

    @property
    def is_empty(self) -> bool:
        """Whether neither this try nor an earlier one has finished anything."""
        return not (self.resumed or self._saved or self._unsaved)

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"{self._storage.display_url.rstrip('/')}/{self._directory}"

    @property
    def started(self) -> str:
        """When the first try began, ISO 8601, UTC."""
        return self._head.started

    @property
    def since_ms(self) -> int:
        """When the first try began, or the first of those that were not gone on with: milliseconds since the epoch."""
        return self._head.since_ms

    @property
    def state(self) -> Mapping[str, int | str]:
        """What earlier tries have remembered beside their pieces."""
        return self._head.state

    async def remember(self, **state: int | str) -> None:
        """Keep something for the next try.

        :raises TikvBrError: the storage does not let us.
        """
        self._head = replace(self._head, state={**self._head.state, **state})
        await settle(self._write_head(), limit_s=HEAD_AT_STOP_S)

    async def start_over(self) -> None:
        """Let go of what earlier tries have finished.

        :raises TikvBrError: the storage does not let us.
        """
        self.resumed = False
        await self._begin_anew(self._head)

    async def finished(self) -> AsyncIterator[list[FinishedRange]]:
        """What earlier tries have finished, oldest first; a file that is damaged is told of and left out.

        :raises TikvBrError: the storage does not let us.
        """
        order = {writer: at for at, writer in enumerate(self._head.writers)}
        order.pop(self._writer, None)
        async for pieces in self._read(await self._names(), order):
            yield pieces

    def add(self, piece: brpb_pb2.BackupResponse) -> None:
        """Take in a finished piece, to be saved soon.

        :param piece: its keys, in the API version of the cluster, and its files, as a store tells them.
        """
        if self._storage.keeps:
            # At once, while it is at hand: half a million messages that live on for half a minute cost far more.
            append(self._open, piece.SerializeToString())
            self._in_open += 1
            if self._in_open >= PIECES_PER_FILE:
                self._close_file()

    async def begin(self) -> None:
        """Save every half minute from now on."""
        if self._storage.keeps:
            self._beat = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Save what is not saved yet, unless the storage takes longer than a job that is stopped has time for."""
        if self._beat is None:
            return
        self._beat.cancel()
        self._last = asyncio.create_task(self._end(self._beat))
        self._beat = None
        await settle(self._wait_for_the_last())

    @contextlib.asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """Save every half minute while the block runs, and at its end."""
        await self.begin()
        try:
            yield
        finally:
            await self.stop()

    async def save(self) -> None:
        """Write what is not saved yet. A storage that does not take it now is told of; the next save tries again."""
        self._close_file()
        await self._write_full()

    async def remove(self) -> None:
        """Delete it: the job is done.

        :raises TikvBrError: the storage does not let us.
        """
        head = f"{self._directory}/{HEAD_NAME}"
        # A write that is still under way would come after this.
        async with self._saving:
            names = await self._names()

            async def delete(name: str) -> None:
                await _patiently(lambda: self._storage.delete(name))

            await for_each([name for name in names if name != head], delete, concurrency=CALLS_AT_ONCE)
            # Last: what is left half-way can be found by it.
            if head in names:
                await delete(head)

    async def retire(self) -> None:
        """Delete it, or mark it where the storage does not let us, so that no job takes itself for done by it.

        What cannot be done is told.
        """
        try:
            await self.remove()
        except TikvBrError as err:
            what = f"{self.place} could not be deleted"
            self._head = replace(self._head, done=True)
            try:
                await self._write_head()
            except TikvBrError:
                self._warn(f"{what}, so delete it: the same job would take itself for done by it: {err}")
            else:
                self._warn(f"{what}, and does no harm where it is: {err}")

    # --- inside ---

    @property
    def _unsaved(self) -> int:
        return sum(count for count, _ in self._full) + self._in_open

    def _close_file(self) -> None:
        if self._in_open:
            self._full.append((self._in_open, self._open))
            self._open, self._in_open = bytearray(), 0

    async def _write_full(self) -> None:
        async with self._saving:
            # What comes in meanwhile waits for the next time: otherwise a save would not end.
            for _ in range(len(self._full)):
                count, pieces = self._full[0]
                data = await asyncio.to_thread(pack, pieces, self._cipher)
                name = f"{self._directory}/{self._writer}-{self._files + 1:06}"
                try:
                    await self._storage.write(name, data)
                except TikvBrError as err:
                    if not self._told:
                        self._warn(f"the checkpoint in {self.place} could not be written, which is tried again: {err}")
                    self._told = True
                    return
                self._told = False
                self._files += 1
                self._full.popleft()
                self._saved += count
                self._listener(CheckpointSaved(place=self.place, pieces=self._saved))

    async def _begin_anew(self, found: Head | None) -> None:
        """Forget everything that is there, and write a new head.

        :param found: the head that is there.
        """
        names = await self._names()
        if self._discard is not None:
            known = {name.rpartition("/")[2].partition("-")[0]: 0 for name in names if not name.endswith(HEAD_NAME)}
            async for pieces in self._read(names, known):
                await self._discard(pieces)
        await self.remove()
        self._head = new_head(self._identity, self._writer)
        if found is not None:
            self._head = replace(self._head, since_ms=found.since_ms)
        await settle(self._write_head(), limit_s=HEAD_AT_STOP_S)

    async def _names(self) -> list[str]:
        async def look() -> list[str]:
            return [info.name async for info in self._storage.list(f"{self._directory}/")]

        # The lock of the job may be there too.
        return [name for name in await _patiently(look) if not name.endswith(".lock")]

    async def _read(self, names: Iterable[str], order: Mapping[str, int]) -> AsyncIterator[list[FinishedRange]]:
        """Read files of pieces, some at a time.

        :param order: the writers whose files are wanted, and which of them comes first.
        """
        prefix = f"{self._directory}/"
        short = [name.removeprefix(prefix) for name in names]
        wanted = sorted((order[w], n) for n in short if (w := n.partition("-")[0]) in order)
        for at in range(0, len(wanted), FILES_AHEAD):
            for pieces in await asyncio.gather(*(self._unpacked(name) for _, name in wanted[at : at + FILES_AHEAD])):
                yield pieces

    async def _unpacked(self, name: str) -> list[FinishedRange]:
        try:
            data = await _patiently(lambda: self._storage.read(f"{self._directory}/{name}"))
            return await asyncio.to_thread(unpack, data, self._cipher)
        except (BackupInvalidError, StorageNotFoundError):
            self._warn(f"{self.place}/{name} is damaged: what it says was finished is done again")
            return []

    async def _keep(self) -> None:
        saved_at = time.monotonic()
        while True:
            await asyncio.sleep(min(1.0, SAVE_INTERVAL_S))
            if time.monotonic() - saved_at >= SAVE_INTERVAL_S:
                saved_at = time.monotonic()
                await settle(self.save())
            elif self._full:
                await settle(self._write_full())

    async def _end(self, beat: asyncio.Task[None]) -> None:
        await asyncio.gather(beat, return_exceptions=True)
        await self.save()

    async def _wait_for_the_last(self) -> None:
        if self._last is None:
            return
        await asyncio.wait((self._last,), timeout=SAVE_AT_STOP_S)
        if not self._last.done():
            self._warn(
                f"{self.place} did not take what was finished last within {SAVE_AT_STOP_S:g} s: another try may do"
                f" {self._unsaved} pieces again"
            )
            return
        error = self._last.exception()
        if error is not None:
            raise error

    async def _write_head(self) -> None:
        await _patiently(lambda: self._storage.write(f"{self._directory}/{HEAD_NAME}", self._head.dump()))

    def _warn(self, message: str) -> None:
        self._listener(Note(level="warning", message=message))


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Ask a storage that may stumble."""
    return await retry(call, Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, budget_s=PATIENCE_S))


def _is_of(found: Head | None, identity: JobIdentity) -> TypeGuard[Head]:
    """Whether a checkpoint is of an unfinished job of the same kind and run."""
    return found is not None and not found.done and (found.kind, found.owner) == (identity.kind, identity.owner)


async def _read_head(storage: Storage, directory: str) -> tuple[Head | None, bool]:
    """The head, and whether there is one that cannot be read."""
    try:
        found = Head.parse(await storage.read(f"{directory}/{HEAD_NAME}"))
    except StorageNotFoundError:
        return None, False
    return found, found is None
