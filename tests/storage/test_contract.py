"""What every kind of storage has to do alike."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_tikvbr.exceptions import StorageError, StorageNotFoundError
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage
from airflow_provider_tikvbr.storage.factory import storage_of_backend


async def names(storage: Storage, prefix: str = "") -> list[str]:
    return [info.name async for info in storage.list(prefix)]


async def test_what_is_written_is_read_again(storage: Storage) -> None:
    data = bytes(range(256)) * 40
    await storage.write("1/7_4_default.sst", data)
    assert await storage.read("1/7_4_default.sst") == data
    assert await storage.exists("1/7_4_default.sst")
    assert not await storage.exists("1/7_4_default")


async def test_writing_replaces(storage: Storage) -> None:
    await storage.write("backupmeta", b"older and longer")
    await storage.write("backupmeta", b"newer")
    assert await storage.read("backupmeta") == b"newer"


async def test_create_keeps_what_is_there(storage: Storage) -> None:
    assert await storage.create("backup.lock", b"first")
    assert not await storage.create("backup.lock", b"second")
    assert await storage.read("backup.lock") == b"first"


async def test_of_many_creators_one_wins(storage: Storage) -> None:
    won = await asyncio.gather(*(storage.create("backup.lock", b"%d" % n) for n in range(8)))
    assert won.count(True) == 1
    assert await storage.read("backup.lock") == b"%d" % won.index(True)


async def test_list_is_sorted_and_filtered(storage: Storage) -> None:
    for name in ("2/b.sst", "1/a.sst", "10/c.sst", "backupmeta"):
        await storage.write(name, name.encode())
    assert [info async for info in storage.list()] == [
        ObjectInfo("1/a.sst", 7),
        ObjectInfo("10/c.sst", 8),
        ObjectInfo("2/b.sst", 7),
        ObjectInfo("backupmeta", 10),
    ]
    assert await names(storage, "1/") == ["1/a.sst"]
    assert await names(storage, "1") == ["1/a.sst", "10/c.sst"]
    assert await names(storage, "9/") == []


async def test_delete(storage: Storage) -> None:
    await storage.write("1/a.sst", b"a")
    await storage.delete("1/a.sst")
    await storage.delete("1/a.sst")
    assert await names(storage) == []


async def test_missing_files(storage: Storage) -> None:
    with pytest.raises(StorageNotFoundError, match=r"gone.sst does not exist"):
        await storage.read("1/gone.sst")
    assert not await storage.exists("1/gone.sst")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../outside", "1/../../outside", "1//a", "./a", "a\0b"])
async def test_names_cannot_lead_outside(storage: Storage, name: str) -> None:
    for call in (storage.read, storage.exists, storage.delete):
        with pytest.raises(StorageError, match="is not the name of a file inside a backup"):
            await call(name)
    for put in (storage.write, storage.create):
        with pytest.raises(StorageError, match="is not the name of a file inside a backup"):
            await put(name, b"x")


async def test_prepare_leaves_nothing(storage: Storage) -> None:
    await storage.prepare()
    await storage.prepare()
    assert await names(storage) == []


async def test_a_store_finds_the_same_place(storage: Storage) -> None:
    await storage.write("1/a.sst", b"there")
    async with storage_of_backend(storage.backend()) as at_store:
        assert await at_store.read("1/a.sst") == b"there"
        assert at_store.display_url == storage.display_url


async def test_close_twice_and_use_again(storage: Storage) -> None:
    await storage.write("a", b"a")
    await storage.close()
    await storage.close()
    assert await storage.read("a") == b"a"
