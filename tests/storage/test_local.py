from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import StorageError, StorageNotFoundError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage import local
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage


def everything(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*"))


def test_what_a_store_is_told(tmp_path: Path) -> None:
    backend = open_storage(f"local://{tmp_path}").backend()
    assert backend == brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(tmp_path)))


async def test_prepare_makes_the_directory_and_nothing_else(tmp_path: Path) -> None:
    await LocalStorage(path=tmp_path / "a" / "b").prepare()
    assert everything(tmp_path) == ["a", "a/b"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
async def test_stores_of_another_user_can_write_where_prepare_made_a_place(umask: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o750)
    before = os.umask(umask)
    try:
        await LocalStorage(path=tmp_path / "a" / "b" / "c").prepare()
        await LocalStorage(path=tmp_path / "a").prepare()
    finally:
        os.umask(before)
    modes = {p: oct(stat.S_IMODE((tmp_path / p).stat().st_mode)) for p in ("a", "a/b", "a/b/c")}
    assert modes == {"a": "0o750", "a/b": "0o755", "a/b/c": "0o777"}


async def test_prepare_says_where_and_why_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, why in ((tmp_path / "file", "it is a file"), (tmp_path / "file" / "below", "Not a directory")):
        with pytest.raises(
            StorageError, match=f"directory {path}: {why}: give one that this user and every TiKV store"
        ):
            await LocalStorage(path=path).prepare()
    assert everything(tmp_path) == ["file"]


async def test_prepare_takes_back_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(local, "_write_synced", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        await LocalStorage(path=tmp_path / "a" / "b").prepare()
    assert everything(tmp_path) == []


async def test_the_directory_has_to_exist_for_writing_and_listing(tmp_path: Path) -> None:
    storage = LocalStorage(path=tmp_path / "missing")
    with pytest.raises(StorageNotFoundError, match=f"directory {tmp_path}/missing does not exist: make it"):
        await storage.write("a.sst", b"a")
    with pytest.raises(StorageNotFoundError, match=f"directory {tmp_path}/missing does not exist: make it"):
        [info async for info in storage.list()]
    assert not await storage.exists("a.sst")
    assert everything(tmp_path) == []


async def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(path=tmp_path)
    await storage.write("backupmeta", b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/backupmeta: No space left on device: free some"):
        await storage.write("backupmeta", b"new")
    assert everything(tmp_path) == ["backupmeta"]
    assert await storage.read("backupmeta") == b"old"


async def test_unfinished_files_are_not_listed_and_look_like_nothing(tmp_path: Path) -> None:
    name = local._temp_name()
    (tmp_path / name).write_bytes(b"half")
    assert not name.endswith(".sst")
    assert [info async for info in LocalStorage(path=tmp_path).list()] == []


async def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    await LocalStorage(path=tmp_path).write("backupmeta", b"x")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "backupmeta").stat().st_mode) == 0o666 & ~umask


async def test_create_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(target: Path, source: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", unknown)
    storage = LocalStorage(path=tmp_path)
    assert await storage.create("backup.lock", b"first")
    assert not await storage.create("backup.lock", b"second")
    assert (tmp_path / "backup.lock").read_bytes() == b"first"
    assert everything(tmp_path) == ["backup.lock"]


async def test_delete_takes_empty_directories_with_it(tmp_path: Path) -> None:
    storage = LocalStorage(path=tmp_path)
    await storage.write("1/x/a.sst", b"a")
    await storage.write("1/b.sst", b"b")
    await storage.delete("1/x/a.sst")
    assert everything(tmp_path) == ["1", "1/b.sst"]
    await storage.delete("1/b.sst")
    assert everything(tmp_path) == []
    await storage.write("the directory itself stays", b"")


async def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    storage = LocalStorage(path=tmp_path)
    assert not await storage.exists("1")
    with pytest.raises(StorageError, match=f"cannot read {tmp_path}/1: Is a directory"):
        await storage.read("1")
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/1: Is a directory"):
        await storage.write("1", b"x")


# Kernels number processes up to 2^22.
GONE = 1 << 22


async def test_unfinished_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    storage = LocalStorage(path=tmp_path)
    abandoned = storage.path / local._temp_name().replace(f"-{os.getpid()}.", f"-{GONE}.")
    deeper = storage.path / "1" / abandoned.name
    ours = storage.path / local._temp_name()
    elsewhere = storage.path / f".{'0' * 32}.{'f' * 16}-{GONE}{local.TEMP_SUFFIX}"
    older = storage.path / f".{'0' * 32}{local.TEMP_SUFFIX}"
    deeper.parent.mkdir()
    for path in (abandoned, deeper, ours, elsewhere, older):
        path.write_bytes(b"half")
    await storage.prepare()
    assert not abandoned.exists()
    assert [info async for info in storage.list()] == []
    assert not deeper.exists()
    assert all(path.exists() for path in (ours, elsewhere, older))
