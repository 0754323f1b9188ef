from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.exceptions import (
    BudgetExceededError,
    InvalidOptionError,
    StorageError,
    StorageUnavailableError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr import checkpoint as module
from airflow_provider_tikvbr.rawbr.checkpoint import HEAD_NAME, Checkpoint
from airflow_provider_tikvbr.rawbr.checkpoint_format import JobIdentity
from airflow_provider_tikvbr.rawbr.events import CheckpointSaved
from airflow_provider_tikvbr.rawbr.ranges import FinishedRange
from airflow_provider_tikvbr.storage.base import ObjectInfo
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.storage.noop import NoopStorage
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange
from tests.rawbr.jobs import Events, names
from tests.support.waiting import until

AES = Cipher.parse("aes256-ctr", key_hex="07" * 32)
DIRECTORY = "backup.checkpoint"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_BASE_S", 0.001)
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    monkeypatch.setattr(module, "SAVE_AT_STOP_S", 0.2)


class Stumbling(LocalStorage):
    """A directory whose calls fail as often as they are told to, or hang."""

    fails = 0
    hangs = False
    calls = 0
    most_at_once = 0
    _at_once = 0

    async def _stumble(self) -> None:
        self.calls += 1
        if self.hangs:
            await asyncio.sleep(60)
        if self.fails:
            self.fails -= 1
            raise StorageUnavailableError("SlowDown")

    async def read(self, name: str) -> bytes:
        await self._stumble()
        return await super().read(name)

    async def write(self, name: str, data: bytes) -> None:
        await self._stumble()
        await super().write(name, data)

    async def delete(self, name: str) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await self._stumble()
        await super().delete(name)
        self._at_once -= 1

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        await self._stumble()
        async for info in super().list(prefix):
            yield info


@pytest.fixture
def storage(tmp_path: Path) -> Stumbling:
    return Stumbling(path=tmp_path)


def identity(*, owner: str = "run", **options: str) -> JobIdentity:
    return JobIdentity(kind="backup", owner=owner, options={"start": "6b", "crypter_key": "", **options})


def piece(number: int, *, size: int = 7) -> FinishedRange:
    """One of many pieces, with a file."""
    keys = KeyRange(ApiKey(b"%06d" % number), ApiKey(b"%06d" % (number + 1)))
    return FinishedRange(keys, (brpb_pb2.File(name=f"1/{number}.sst", sha256=bytes(32), size=size),))


def answer(number: int, *, size: int = 7) -> brpb_pb2.BackupResponse:
    """The same, as a store tells it."""
    made = piece(number, size=size)
    return brpb_pb2.BackupResponse(start_key=made.keys.start, end_key=made.keys.end, files=made.files)


async def opened(storage: LocalStorage, **settings: Any) -> Checkpoint:
    settings.setdefault("identity", identity())
    return await Checkpoint.open(storage, directory=DIRECTORY, **settings)


async def all_of(checkpoint: Checkpoint) -> list[FinishedRange]:
    return [piece async for pieces in checkpoint.finished() for piece in pieces]


async def leave(storage: LocalStorage, *numbers: int, **settings: Any) -> None:
    """A try that finishes some pieces and is broken off."""
    checkpoint = await opened(storage, **settings)
    async with checkpoint.keeping():
        for number in numbers:
            checkpoint.add(answer(number))


@pytest.mark.parametrize("cipher", [PLAINTEXT, AES])
async def test_what_was_finished_is_known_to_the_next_try(cipher: Cipher, storage: Stumbling) -> None:
    events = Events()
    await leave(storage, 1, 2, cipher=cipher, listener=events)
    assert [event for event in events.seen if isinstance(event, CheckpointSaved)] == [
        CheckpointSaved(place=f"{storage.display_url}/{DIRECTORY}", pieces=2)
    ]
    first = await opened(storage, cipher=cipher)
    assert first.resumed
    first.add(answer(3))
    await first.save()
    # Its own pieces are not news to it.
    assert await all_of(first) == [piece(1), piece(2)]
    second = await opened(storage, cipher=cipher)
    assert second.started == first.started
    assert await all_of(second) == [piece(1), piece(2), piece(3)]
    assert not events.notes
    await second.remove()
    assert not names(storage.path)
    assert not (await opened(storage)).resumed


async def test_keys_are_not_stored_in_the_clear(storage: Stumbling) -> None:
    key = "07" * 32
    await leave(storage, 123, cipher=AES, identity=identity(start=b"123".hex(), crypter_key=key))
    stored = b"".join(path.read_bytes() for path in (storage.path / DIRECTORY).iterdir())
    for secret in (b"000123", b"123".hex().encode(), key.encode(), bytes.fromhex(key)):
        assert secret not in stored


async def test_many_pieces_are_spread_over_files(storage: Stumbling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECES_PER_FILE", 10)
    events = Events()
    await leave(storage, *range(95), listener=events)
    assert len(names(storage.path)) == 1 + 10
    saved = [event.pieces for event in events.seen if isinstance(event, CheckpointSaved)]
    assert saved == [*range(10, 100, 10), 95]
    checkpoint = await opened(storage)
    assert await all_of(checkpoint) == [piece(number) for number in range(95)]
    await checkpoint.remove()
    assert not names(storage.path)
    assert storage.most_at_once > 1


async def test_it_is_saved_while_the_job_runs(storage: Stumbling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAVE_INTERVAL_S", 0.02)
    checkpoint = await opened(storage)
    async with checkpoint.keeping():
        for number in (1, 2):
            checkpoint.add(answer(number))
            await until(lambda number=number: len(names(storage.path)) == 1 + number)  # type: ignore[misc]
    assert await all_of(await opened(storage)) == [piece(1), piece(2)]


async def test_a_save_does_not_follow_a_fast_job(storage: Stumbling) -> None:
    """What comes in while a file is written waits for the next one: no storm of tiny files."""
    checkpoint = await opened(storage)
    write, written = storage.write, 0

    async def busy(name: str, data: bytes) -> None:
        nonlocal written
        written += 1
        assert written < 10
        checkpoint.add(answer(100 + written))
        await write(name, data)

    storage.write = busy  # type: ignore[method-assign]
    checkpoint.add(answer(1))
    await checkpoint.save()
    assert written == 1
    await checkpoint.save()
    assert await all_of(await opened(storage)) == [piece(1), piece(101)]


async def test_a_full_file_is_written_at_once(storage: Stumbling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECES_PER_FILE", 3)
    checkpoint = await opened(storage)
    async with checkpoint.keeping():
        for number in range(4):
            checkpoint.add(answer(number))
        await until(lambda: len(names(storage.path)) == 2)
        assert await all_of(await opened(storage)) == [piece(0), piece(1), piece(2)]


# --- another job ---


@pytest.mark.parametrize(
    ("options", "name"),
    [({"start": "6c"}, "start"), ({"crypter_key": "07"}, "crypter_key"), ({"new": "1"}, "new")],
)
async def test_another_option_is_refused_by_its_name(options: dict[str, str], name: str, storage: Stumbling) -> None:
    await leave(storage, 1)
    before = names(storage.path)
    with pytest.raises(InvalidOptionError, match=f"begun at .* with another {name}: give the same {name}") as caught:
        await opened(storage, identity=identity(**options))
    assert caught.value.parameter == name
    assert not any(value and f" {value}" in str(caught.value) for value in options.values())
    assert names(storage.path) == before
    assert not await Checkpoint.matches(storage, directory=DIRECTORY, identity=identity(**options))
    assert await Checkpoint.matches(storage, directory=DIRECTORY, identity=identity())


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"identity": identity(owner="other")}, "it is of run"), ({"resume": False}, "resume is off")],
)
async def test_starting_over_undoes_what_was_finished(settings: dict[str, Any], why: str, storage: Stumbling) -> None:
    await leave(storage, 1, 2)
    await leave(storage, 3)
    since_ms = (await opened(storage)).since_ms
    discarded, events = [], Events()

    async def discard(pieces: list[FinishedRange]) -> None:
        discarded.extend(pieces)

    checkpoint = await opened(storage, listener=events, discard=discard, **settings)
    assert not checkpoint.resumed
    assert sorted(discarded, key=lambda piece: piece.keys.start) == [piece(1), piece(2), piece(3)]
    assert await all_of(checkpoint) == []
    assert names(storage.path) == {f"{DIRECTORY}/{HEAD_NAME}"}
    assert checkpoint.since_ms == since_ms
    (note,) = events.notes
    assert f"which is not gone on with: {why}" in note


async def test_a_job_of_another_kind_is_not_gone_on_with(storage: Stumbling) -> None:
    await leave(storage, 1)
    checkpoint = await opened(storage, identity=JobIdentity(kind="restore", owner="run", options=identity().options))
    assert not checkpoint.resumed


async def test_a_job_lets_go_of_what_is_of_no_use(storage: Stumbling) -> None:
    await leave(storage, 1)
    checkpoint = await opened(storage)
    await checkpoint.remember(backup_ts=5)
    await checkpoint.start_over()
    assert (checkpoint.resumed, checkpoint.state, await all_of(checkpoint)) == (False, {}, [])
    checkpoint.add(answer(2))
    await checkpoint.save()
    assert await all_of(await opened(storage)) == [piece(2)]


async def test_what_is_remembered(storage: Stumbling) -> None:
    first = await opened(storage)
    await first.remember(service_id="br-1", backup_ts=1 << 60)
    await first.remember(other="x")
    second = await opened(storage)
    assert second.state == {"service_id": "br-1", "backup_ts": 1 << 60, "other": "x"}


async def test_a_job_that_has_finished_nothing_is_empty(storage: Stumbling) -> None:
    checkpoint = await opened(storage)
    states = [checkpoint.is_empty]
    checkpoint.add(answer(1))
    states.append(checkpoint.is_empty)
    await checkpoint.save()
    states += [checkpoint.is_empty, (await opened(storage)).is_empty]
    assert states == [True, False, False, False]


# --- damage ---


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        json.dumps({"format": 2}).encode(),
        json.dumps({"format": 1, "kind": "backup"}).encode(),
    ],
)
async def test_a_damaged_head_starts_over(damage: bytes, storage: Stumbling) -> None:
    await leave(storage, 1)
    (storage.path / DIRECTORY / HEAD_NAME).write_bytes(damage)
    discarded, events = [], Events()

    async def discard(pieces: list[FinishedRange]) -> None:
        discarded.extend(pieces)

    checkpoint = await opened(storage, listener=events, discard=discard)
    assert not checkpoint.resumed
    assert discarded == [piece(1)]
    assert any("head.json cannot be read" in note for note in events.notes)
    assert names(storage.path) == {f"{DIRECTORY}/{HEAD_NAME}"}


async def test_a_salt_that_is_none_is_damage_too(storage: Stumbling) -> None:
    await leave(storage, 1)
    path = storage.path / DIRECTORY / HEAD_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "salt": "x"}))
    assert not (await opened(storage)).resumed


@pytest.mark.parametrize("cipher", [PLAINTEXT, AES])
@pytest.mark.parametrize("change", ["cut", "flipped", "gone", "empty"])
async def test_a_damaged_file_of_pieces_is_left_out(change: str, cipher: Cipher, storage: Stumbling) -> None:
    await leave(storage, 1, cipher=cipher)
    (first,) = (path for path in (storage.path / DIRECTORY).iterdir() if path.name != HEAD_NAME)
    await leave(storage, 2, cipher=cipher)
    data = first.read_bytes()
    new = {"cut": data[:-1], "flipped": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "empty": b""}
    events = Events()
    checkpoint = await opened(storage, cipher=cipher, listener=events)
    if change == "gone":
        first.unlink()
    else:
        first.write_bytes(new[change])
    assert await all_of(checkpoint) == [piece(2)]
    assert [first.name in note for note in events.notes] == ([] if change == "gone" else [True])


async def test_another_key_reads_nothing(storage: Stumbling) -> None:
    """The key is part of a job's identity, so this is met only where pieces are undone."""
    await leave(storage, 1, cipher=AES)
    discarded: list[FinishedRange] = []

    async def discard(pieces: list[FinishedRange]) -> None:
        discarded.extend(pieces)

    for cipher in (PLAINTEXT, Cipher.parse("aes256-ctr", key_hex="08" * 32)):
        events = Events()
        await opened(storage, resume=False, cipher=cipher, discard=discard, listener=events)
        assert not discarded
        assert "is damaged" in events.notes[-1]
        await leave(storage, 1, cipher=AES)


async def test_another_writer_does_no_harm(storage: Stumbling) -> None:
    """A try that was given up, but is still alive, saves once more."""
    zombie = await opened(storage)
    async with zombie.keeping():
        resumed = await opened(storage)
        zombie.add(answer(1))
    resumed.add(answer(2))
    await resumed.save()
    assert await all_of(await opened(storage)) == [piece(1), piece(2)]
    # A try that nobody goes on with is not believed.
    over = await opened(storage, resume=False)
    zombie.add(answer(3))
    await zombie.save()
    over.add(answer(4))
    await over.save()
    last = await opened(storage)
    assert await all_of(last) == [piece(4)]
    await last.remove()
    assert not names(storage.path)


# --- its end ---


class Immovable(LocalStorage):
    """A directory in which nothing may be deleted, and perhaps nothing be changed any more."""

    writable = True

    async def write(self, name: str, data: bytes) -> None:
        if not self.writable:
            raise StorageError("AccessDenied: PutObject")
        await super().write(name, data)

    async def delete(self, name: str) -> None:
        raise StorageError("AccessDenied: DeleteObject")


async def test_what_cannot_be_deleted_is_marked(tmp_path: Path) -> None:
    storage, events, later = Immovable(path=tmp_path), Events(), Events()
    checkpoint = await opened(storage, listener=events)
    checkpoint.add(answer(1))
    await checkpoint.save()
    assert await Checkpoint.matches(storage, directory=DIRECTORY, identity=identity())
    await checkpoint.retire()
    (note,) = events.notes
    assert re.fullmatch(
        r".*backup\.checkpoint could not be deleted, and does no harm .*: AccessDenied: DeleteObject", note
    )
    assert not await Checkpoint.matches(storage, directory=DIRECTORY, identity=identity())
    # Where it can be deleted by then, the next job begins as if it were not there.
    again = await opened(LocalStorage(path=tmp_path), listener=later)
    assert not again.resumed
    assert await all_of(again) == []
    assert later.notes == []


async def test_what_can_neither_be_deleted_nor_marked_is_told(tmp_path: Path) -> None:
    storage, events = Immovable(path=tmp_path), Events()
    checkpoint = await opened(storage, listener=events)
    storage.writable = False
    await checkpoint.retire()
    (note,) = events.notes
    assert re.fullmatch(
        r".* could not be deleted, so delete it: .* itself for done by it: AccessDenied: DeleteObject", note
    )


async def test_a_job_that_is_over_leaves_nothing(storage: Stumbling) -> None:
    await leave(storage, 1)
    await (await opened(storage)).retire()
    assert not names(storage.path)


# --- a storage that stumbles ---


async def test_a_storage_that_stumbles_is_asked_again(storage: Stumbling) -> None:
    storage.fails = 2
    await leave(storage, 1)
    storage.fails = 2
    checkpoint = await opened(storage)
    storage.fails = 2
    assert await all_of(checkpoint) == [piece(1)]
    storage.fails = 2
    await checkpoint.remove()
    assert not names(storage.path)


async def test_a_storage_that_fails_at_the_beginning_is_told(storage: Stumbling) -> None:
    storage.fails = 10**9
    with pytest.raises(BudgetExceededError, match="SlowDown"):
        await opened(storage)


async def test_a_job_outlives_a_checkpoint_that_cannot_be_written(
    storage: Stumbling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_INTERVAL_S", 0.01)
    events = Events()
    checkpoint = await opened(storage, listener=events)
    storage.fails = 10**9
    async with checkpoint.keeping():
        checkpoint.add(answer(1))
        calls = storage.calls
        await until(lambda: storage.calls > calls + 3)
        assert len(events.notes) == 1
        storage.fails = 0
        await until(lambda: len(names(storage.path)) == 2)
        storage.fails = 10**9
        checkpoint.add(answer(2))
        await until(lambda: len(events.notes) == 2)
    assert all("could not be written, which is tried again: SlowDown" in note for note in events.notes)
    storage.fails = 0
    assert await all_of(await opened(storage)) == [piece(1)]


async def test_a_storage_that_hangs_does_not_keep_a_stopped_job(storage: Stumbling) -> None:
    events = Events()
    checkpoint = await opened(storage, listener=events)
    async with checkpoint.keeping():
        checkpoint.add(answer(1))
        storage.hangs = True
    assert any("within 0.2 s: another try may do 1 pieces again" in note for note in events.notes)


async def test_it_is_saved_when_the_job_is_stopped(storage: Stumbling) -> None:
    begun = asyncio.Event()

    async def job() -> None:
        checkpoint = await opened(storage)
        async with checkpoint.keeping():
            checkpoint.add(answer(1))
            begun.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(job())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await all_of(await opened(storage)) == [piece(1)]


async def test_a_storage_that_keeps_nothing() -> None:
    events = Events()
    nowhere = NoopStorage()
    checkpoint = await Checkpoint.open(nowhere, directory=DIRECTORY, identity=identity(), listener=events)
    async with checkpoint.keeping():
        checkpoint.add(answer(1))
    await checkpoint.remember(a=1)
    assert [piece async for piece in checkpoint.finished()] == []
    assert not await Checkpoint.exists(nowhere, directory=DIRECTORY)
    await checkpoint.remove()
    assert not events.seen
