from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import BackupFileError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.files import check_files, read_file
from airflow_provider_tikvbr.rawbr.meta import read_meta
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from tests.support import golden

FULL = golden.Golden("v1", "full")


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


async def test_missing_and_wrong_files_are_named(storage: Storage) -> None:
    await storage.write("1/a.sst", b"1")
    await storage.write("2/b.sst", b"22")
    files = [brpb_pb2.File(name="1/a.sst", size=1), brpb_pb2.File(name="2/b.sst", size=2)]
    await check_files(storage, files)
    await storage.write("2/b.sst", b"333")
    with pytest.raises(
        BackupFileError, match=r"damaged: 2/b\.sst has 3 bytes instead of 2; put back what is wrong"
    ) as caught:
        await check_files(storage, files)
    assert caught.value.file == "2/b.sst"
    await storage.delete("1/a.sst")
    says = r"damaged: 2 of 2 files are wrong: 1/a.sst is missing, 2/b.sst has 3 bytes instead of 2; put back what"
    with pytest.raises(BackupFileError, match=says) as caught:
        await check_files(storage, files)
    assert caught.value.file == "1/a.sst"


async def test_a_changed_file_is_not_read(tmp_path: Path) -> None:
    shutil.copytree(FULL.path, tmp_path / "copy")
    storage = open_storage(str(tmp_path / "copy"))
    file = (await read_meta(storage)).files[0]
    data = bytearray(await storage.read(file.name))
    data[100] ^= 1
    for changed in (bytes(data), bytes(data[:-1])):
        await storage.write(file.name, changed)
        with pytest.raises(BackupFileError, match=f"{file.name} is not the file that was written") as caught:
            await read_file(storage, file)
        assert caught.value.file == file.name
    await storage.delete(file.name)
    with pytest.raises(BackupFileError, match=f"{file.name} is missing"):
        await read_file(storage, file)
