"""Faults of the backup storage as stores meet them, and what they tell of it."""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_rules import KINDS, Kind, Place, Rule
from airflow_provider_tikvbr.embedded.fault_storage import damaged, told
from airflow_provider_tikvbr.embedded.faults import Faults
from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    BackupFileError,
    DownloadFailedError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
)
from airflow_provider_tikvbr.proto import brpb_pb2, import_sstpb_pb2, methods
from airflow_provider_tikvbr.rawbr.responses import from_backup_error
from airflow_provider_tikvbr.tikv.errors import from_download_error
from airflow_provider_tikvbr.tikv.keys import UserKey
from airflow_provider_tikvbr.tikv.model import Store
from tests.embedded.stores import Stores
from tests.embedded.test_backup_service import backup_request
from tests.support.waiting import until

STORAGE = KINDS[Place.STORAGE]
SILENT = {Kind.STORAGE_TRUNCATED, Kind.STORAGE_CORRUPT, Kind.STORAGE_DELAY}
# What the engine makes of a store that cannot write: the error, and whether the backup is over.
WRITING: dict[Kind, tuple[type[Exception], bool]] = {
    Kind.STORAGE_SLOW_DOWN: (StorageUnavailableError, False),
    Kind.STORAGE_503: (StorageUnavailableError, False),
    Kind.STORAGE_UNREACHABLE: (StorageUnavailableError, False),
    Kind.STORAGE_ACCESS_DENIED: (AuthenticationError, True),
    Kind.STORAGE_NOT_FOUND: (StorageNotFoundError, True),
    Kind.STORAGE_DISK_FULL: (StorageError, True),
}


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    """One store, three regions, some pairs in each."""
    keys = [UserKey(b"1"), UserKey(b"2")]
    async with (
        EmbeddedCluster(data_dir=tmp_path / "data", stores=1, split_keys=keys) as cluster,
        Stores(cluster) as found,
    ):
        await cluster.put((UserKey(b"%d%02d" % (i, at)), b"value" * 10) for i in range(3) for at in range(50))
        yield found


@pytest.fixture
def faults(stores: Stores) -> Faults:
    return stores.cluster.faults


async def backup(stores: Stores, target: Path | None) -> list[brpb_pb2.BackupResponse]:
    found = [r async for r in stores.stream(methods.BACKUP, backup_request(stores, target), 1)]
    return sorted(found, key=lambda r: r.start_key)


async def download(stores: Stores, target: Path, file: brpb_pb2.File, key: bytes) -> str:
    """What the store says of a download; empty if all is well."""
    region = stores.region(key)
    sst = import_sstpb_pb2.SSTMeta(
        uuid=uuid.uuid4().bytes,
        cf_name="default",
        region_id=region.id,
        region_epoch=region.epoch(),
        length=file.size,
        cipher_iv=file.cipher_iv,
        end_key_exclusive=True,
    )
    backend = brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(target)))
    request = import_sstpb_pb2.DownloadRequest(sst=sst, name=file.name, storage_backend=backend, is_raw_kv=True)
    return (await stores.call(methods.IMPORT_DOWNLOAD, request, 1)).error.message


@pytest.mark.parametrize("kind", sorted(STORAGE - SILENT))
async def test_a_store_cannot_write(stores: Stores, faults: Faults, tmp_path: Path, kind: Kind) -> None:
    rule = faults.add(Rule(kind=kind, region_id=stores.region(b"1").id))
    answers = await backup(stores, tmp_path / "backup")
    assert [bool(r.error.msg) for r in answers] == [False, True, False]
    assert not answers[1].files
    assert (answers[1].start_key, rule.hits) == (b"1", 1)
    store = Store.of(stores.cluster.topology.stores[1].message())
    error, over = from_backup_error(answers[1].error, store=store, url="s3://bucket")
    assert (type(error), over) == WRITING[kind]


# What a restore makes of it; the rest may pass.
READING = {Kind.STORAGE_NOT_FOUND: BackupFileError, Kind.STORAGE_ACCESS_DENIED: AuthenticationError}


@pytest.mark.parametrize("kind", sorted(STORAGE - SILENT))
async def test_a_store_cannot_read(stores: Stores, faults: Faults, tmp_path: Path, kind: Kind) -> None:
    file = (await backup(stores, tmp_path / "backup"))[1].files[0]
    faults.add(Rule(kind=kind, method=methods.IMPORT_DOWNLOAD, times=1))
    said = await download(stores, tmp_path / "backup", file, b"1")
    assert said.startswith("Cannot read local://")
    error = from_download_error(said, file=file.name, store_id=1, address="")
    assert type(error) is READING.get(kind, DownloadFailedError)
    assert not await download(stores, tmp_path / "backup", file, b"1")


@pytest.mark.parametrize("kind", [Kind.STORAGE_TRUNCATED, Kind.STORAGE_CORRUPT])
async def test_a_store_writes_damage_without_a_word(stores: Stores, faults: Faults, tmp_path: Path, kind: Kind) -> None:
    faults.add(Rule(kind=kind, method=methods.BACKUP, file="*", after=1, times=1))
    answers = await backup(stores, tmp_path / "backup")
    assert not any(r.error.msg for r in answers)
    files = [file for r in answers for file in r.files]
    data = {file.name: (tmp_path / "backup" / file.name).read_bytes() for file in files}
    wrong = [file for file in files if hashlib.sha256(data[file.name]).digest() != file.sha256]
    assert len(wrong) == 1
    assert (len(data[wrong[0].name]) < wrong[0].size) == (kind is Kind.STORAGE_TRUNCATED)
    key = wrong[0].start_key or b"0"
    assert await download(stores, tmp_path / "backup", wrong[0], key)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Kind.STORAGE_TRUNCATED, "downloaded size"), (Kind.STORAGE_CORRUPT, "Corruption: ")],
)
async def test_a_store_reads_damage(stores: Stores, faults: Faults, tmp_path: Path, kind: Kind, said: str) -> None:
    file = (await backup(stores, tmp_path / "backup"))[1].files[0]
    faults.add(Rule(kind=kind, method="Download", times=5))
    for _ in range(5):
        assert said in await download(stores, tmp_path / "backup", file, b"1")
    assert not await download(stores, tmp_path / "backup", file, b"1")


async def test_a_storage_takes_its_time(stores: Stores, faults: Faults, tmp_path: Path) -> None:
    slow = faults.add(Rule(kind=Kind.STORAGE_DELAY, delay_s=0.4))
    job = asyncio.create_task(backup(stores, tmp_path / "backup"))
    await until(lambda: slow.hits == 2)  # a store backs up two regions at once
    assert not list((tmp_path / "backup").rglob("*.sst"))
    assert len(await job) == 3
    faults.clear()
    faults.add(Rule(kind=Kind.STORAGE_DELAY, delay_s=0.1))
    late = faults.add(Rule(kind=Kind.STORAGE_UNREACHABLE, delay_s=0.1))
    assert all("error during dispatch" in r.error.msg for r in await backup(stores, tmp_path / "backup"))
    assert late.hits == 3


async def test_files_by_their_names(stores: Stores, faults: Faults, tmp_path: Path) -> None:
    name = f"*/{stores.region(b'2').id}_*"
    rule = faults.add(Rule(kind=Kind.STORAGE_503, file=name))
    answers = await backup(stores, tmp_path / "backup")
    assert [bool(r.error.msg) for r in answers] == [False, False, True]
    assert (rule.hits, rule.seen) == (1, 1)


async def test_a_share_of_the_writes_fails_alike_for_a_seed(stores: Stores, faults: Faults, tmp_path: Path) -> None:
    async def run(seed: int) -> int:
        faults.clear()
        faults.seed(seed)
        rule = faults.add(Rule(kind=Kind.STORAGE_SLOW_DOWN, probability=0.5))
        for _ in range(4):
            await backup(stores, tmp_path / "backup")
        assert rule.seen == 12
        return rule.hits

    assert await run(5) == await run(5)
    assert len({await run(seed) for seed in range(4)}) > 1


async def test_a_backup_into_nothing_is_struck_too(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.STORAGE_503))
    assert all(r.error.msg for r in await backup(stores, None))


def test_what_is_told_is_not_told_twice_alike() -> None:
    for method in (methods.BACKUP.path, methods.IMPORT_DOWNLOAD.path):
        assert len({told(kind, method) for kind in STORAGE - SILENT}) == len(STORAGE - SILENT)


def test_damage() -> None:
    data = bytes(range(200))
    for seed in range(50):
        cut = damaged(data, Kind.STORAGE_TRUNCATED, random.Random(seed))
        assert data.startswith(cut)
        assert len(cut) < len(data)
        flipped = damaged(data, Kind.STORAGE_CORRUPT, random.Random(seed))
        wrong: list[Any] = [(a ^ b).bit_count() for a, b in zip(data, flipped, strict=True) if a != b]
        assert wrong == [1]
    assert damaged(b"", Kind.STORAGE_CORRUPT, random.Random(0)) == b""
