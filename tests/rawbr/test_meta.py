from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.exceptions import (
    BackupExistsError,
    BackupFileError,
    BackupInvalidError,
    BudgetExceededError,
    StorageLockedError,
    StorageUnavailableError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr import meta as meta_module
from airflow_provider_tikvbr.rawbr.files import check_files, read_file
from airflow_provider_tikvbr.rawbr.meta import (
    META_NAME,
    backup_range,
    backup_ts_in,
    build_meta,
    read_meta,
    withdraw_meta,
    write_meta,
)
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, KeyRange
from tests.support import golden

AES = Cipher.parse("aes256-ctr", key_hex=golden.AES256_KEY)
OTHER = Cipher.parse("aes256-ctr", key_hex="11" * 32)
FULL = golden.Golden("v1", "full")
ENCRYPTED = golden.Golden("v1", "aes256")


def cipher_of(backup: golden.Golden) -> Cipher:
    return AES if backup.crypter else PLAINTEXT


def small_meta() -> brpb_pb2.BackupMeta:
    return build_meta(
        cluster_id=7,
        cluster_version="8.5.0",
        api_version=ApiVersion.V2,
        keys=KeyRange(ApiKey(b"r\0\0\0"), ApiKey(b"r\0\0\1")),
        files=[
            brpb_pb2.File(name="2/b.sst", start_key=b"r\0\0\0m", end_key=b"r\0\0\1", size=2),
            brpb_pb2.File(name="1/a.sst", start_key=b"r\0\0\0", end_key=b"r\0\0\0m", size=1),
        ],
    )


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


# --- what tikv-br wrote ---


@pytest.mark.parametrize("backup", golden.backups(), ids=str)
async def test_golden_backups_are_read(backup: golden.Golden) -> None:
    storage, cipher = open_storage(backup.url), cipher_of(backup)
    meta = await read_meta(storage, cipher)
    assert meta.api_version == int(backup.api_version)
    assert KeyCodec(backup.api_version).user_range(backup_range(meta)) == backup.keys
    assert sum(file.total_kvs for file in meta.files) == len(backup.pairs)
    await check_files(storage, meta.files)
    for file in meta.files:
        assert len(await read_file(storage, file, cipher)) == file.size


@pytest.mark.parametrize("backup", golden.backups(), ids=str)
async def test_golden_backups_round_trip(backup: golden.Golden, storage: Storage) -> None:
    cipher = cipher_of(backup)
    meta = await read_meta(open_storage(backup.url), cipher)
    await write_meta(storage, meta, cipher)
    assert await read_meta(storage, cipher) == meta
    theirs, ours = (backup.path / META_NAME).read_bytes(), await storage.read(META_NAME)
    # With a cipher each writing has its own IV.
    assert len(ours) == len(theirs)
    assert (ours == theirs) is cipher.is_plain


@pytest.mark.parametrize("backup", golden.backups(), ids=str)
async def test_what_is_built_equals_what_tikv_br_built(backup: golden.Golden) -> None:
    theirs = await read_meta(open_storage(backup.url), cipher_of(backup))
    ours = build_meta(
        cluster_id=theirs.cluster_id,
        cluster_version=theirs.cluster_version,
        api_version=backup.api_version,
        keys=KeyCodec(backup.api_version).api_range(backup.keys),
        files=reversed(theirs.files),
    )
    assert ours.br_version.startswith("BR\nRelease Version: airflow_provider_tikvbr ")
    assert ours.br_version.count("\n") == theirs.br_version.count("\n")
    ours.br_version = theirs.br_version
    assert ours == theirs


# --- writing ---


async def test_files_are_listed_by_start_key() -> None:
    assert [file.name for file in small_meta().files] == ["1/a.sst", "2/b.sst"]


async def test_a_backup_is_never_written_over(storage: Storage) -> None:
    await write_meta(storage, small_meta())
    other = small_meta()
    other.cluster_id = 8
    with pytest.raises(BackupExistsError, match="holds a backup already: give an empty place") as caught:
        await write_meta(storage, other)
    assert caught.value.url == storage.display_url
    assert (await read_meta(storage)).cluster_id == 7


async def test_a_lost_answer_is_no_other_backup(storage: Storage) -> None:
    await write_meta(storage, small_meta())
    await write_meta(storage, small_meta())


async def test_a_place_that_is_somebody_elses_by_now_gets_none(storage: Storage) -> None:
    looks: list[bool] = []

    async def check() -> None:
        looks.append(await storage.exists(META_NAME))
        if len(looks) in (1, 4):
            raise StorageLockedError("it was lost")

    with pytest.raises(StorageLockedError):
        await write_meta(storage, small_meta(), check=check)
    await write_meta(storage, small_meta(), check=check)
    # Once before it is written and once after it.
    assert looks == [False, False, True]
    await withdraw_meta(storage, small_meta(), check=check)
    assert await storage.exists(META_NAME)
    await withdraw_meta(storage, small_meta(), check=check)
    assert not await storage.exists(META_NAME)


class Faltering(LocalStorage):
    """A directory that fails after it has made a file, or before."""

    before = False

    async def create(self, name: str, data: bytes) -> bool:
        if not self.before:
            await super().create(name, data)
        raise StorageUnavailableError("the answer is lost")


async def test_a_file_whose_answer_is_lost_counts(tmp_path: Path) -> None:
    storage = Faltering(path=tmp_path)
    await write_meta(storage, small_meta(), AES)
    assert await read_meta(storage, AES) == small_meta()
    # An earlier backup is no answer that was lost.
    with pytest.raises(BackupExistsError):
        await write_meta(storage, small_meta(), AES)


async def test_a_file_that_was_not_made_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_module, "PATIENCE_S", 0.2)
    storage = Faltering(path=tmp_path)
    storage.before = True
    with pytest.raises(BudgetExceededError, match="the answer is lost"):
        await write_meta(storage, small_meta())


async def test_a_storage_that_stumbles_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_module, "RETRY_BASE_S", 0.01)
    tries = 0

    class Stumbling(LocalStorage):
        async def create(self, name: str, data: bytes) -> bool:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise StorageUnavailableError("SlowDown")
            return await super().create(name, data)

    storage = Stumbling(path=tmp_path)
    await write_meta(storage, small_meta(), AES)
    assert await read_meta(storage, AES) == small_meta()


@pytest.mark.parametrize("cipher", [PLAINTEXT, AES], ids=["plain", "aes"])
async def test_only_the_own_backup_is_withdrawn(storage: Storage, cipher: Cipher) -> None:
    other = small_meta()
    other.cluster_id = 8
    await withdraw_meta(storage, other, cipher)
    await write_meta(storage, small_meta(), cipher)
    await withdraw_meta(storage, other, cipher)
    assert await read_meta(storage, cipher) == small_meta()
    await withdraw_meta(storage, small_meta(), cipher)
    assert not await storage.exists(META_NAME)


async def test_encrypted_metas_begin_with_a_fresh_iv(tmp_path: Path) -> None:
    written = []
    for name in ("a", "b"):
        storage = open_storage(str(tmp_path / name))
        await storage.prepare()
        await write_meta(storage, small_meta(), AES)
        written.append(await storage.read(META_NAME))
        assert await read_meta(storage, AES) == small_meta()
    assert written[0][:16] != written[1][:16]
    assert b"8.5.0" not in written[0]


# --- refusals ---


async def test_no_backup(storage: Storage) -> None:
    with pytest.raises(BackupInvalidError, match=r"there is no backup in local:///.*: it has no backupmeta; check"):
        await read_meta(storage)


@pytest.mark.parametrize(
    ("backup", "cipher", "says"),
    [
        (ENCRYPTED, OTHER, "cannot be read with this key: check that cipher and key"),
        (ENCRYPTED, Cipher.parse("aes128-ctr", key_hex=golden.AES256_KEY[:32]), "cannot be read with this key"),
        (ENCRYPTED, PLAINTEXT, "is damaged, or encrypted; give the cipher and key"),
        (FULL, AES, "is not encrypted: leave the cipher and key out"),
    ],
)
async def test_a_wrong_key(backup: golden.Golden, cipher: Cipher, says: str) -> None:
    with pytest.raises(BackupInvalidError, match=says) as caught:
        await read_meta(open_storage(backup.url), cipher)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cipher", [PLAINTEXT, AES], ids=["plain", "aes"])
async def test_no_damage_is_taken_for_a_backup(storage: Storage, cipher: Cipher) -> None:
    whole = (FULL.path / META_NAME).read_bytes()
    for data in (b"", b"\0", b"x" * 16, b"x" * 17, b"not a backup at all", whole[: len(whole) // 2], whole[5:]):
        await storage.write(META_NAME, data)
        with pytest.raises(BackupInvalidError, match=r"cannot be (read|used)"):
            await read_meta(storage, cipher)


async def test_other_backups(storage: Storage) -> None:
    meta = small_meta()
    meta.is_raw_kv = False
    await write_meta(storage, meta)
    with pytest.raises(BackupInvalidError, match="holds transactional data, not raw data: restore it with TiDB's br"):
        await read_meta(storage)


async def test_metas_that_cannot_be_used(storage: Storage) -> None:
    def version(meta: brpb_pb2.BackupMeta) -> None:
        meta.api_version = 9  # type: ignore[assignment]

    def ranges(meta: brpb_pb2.BackupMeta) -> None:
        meta.raw_ranges.add()

    def no_range(meta: brpb_pb2.BackupMeta) -> None:
        del meta.raw_ranges[:]

    def twice(meta: brpb_pb2.BackupMeta) -> None:
        meta.files.append(meta.files[0])

    def outside(meta: brpb_pb2.BackupMeta) -> None:
        meta.files[0].name = "../../etc/passwd"

    for change, says in (
        (version, "API version 9 is not known"),
        (ranges, "it has 2 key ranges instead of one"),
        (no_range, "it has 0 key ranges instead of one"),
        (twice, "it lists 1/a.sst twice"),
        (outside, "'../../etc/passwd' is not the name of a file inside a backup"),
    ):
        meta = small_meta()
        change(meta)
        await storage.write(META_NAME, meta.SerializeToString())
        with pytest.raises(BackupInvalidError, match=f"backupmeta in local:///.* cannot be used: {says}"):
            await read_meta(storage)


# --- the v2 layout ---


async def write_index(storage: Storage, name: str, index: brpb_pb2.MetaFile, cipher: Cipher) -> brpb_pb2.File:
    plain, iv = index.SerializeToString(), hashlib.md5(name.encode()).digest()
    await storage.write(name, cipher.encrypt(plain, iv))
    return brpb_pb2.File(name=name, sha256=hashlib.sha256(plain).digest(), size=len(plain), cipher_iv=iv)


async def write_v2(storage: Storage, cipher: Cipher) -> brpb_pb2.BackupMeta:
    """The v1/full backup, its files spread over an index of two levels, its range in an index too."""
    meta = await read_meta(open_storage(FULL.url))
    v1 = brpb_pb2.BackupMeta()
    v1.CopyFrom(meta)
    files = list(meta.files)
    low = brpb_pb2.MetaFile(data_files=files[:5])
    high = brpb_pb2.MetaFile(
        meta_files=[await write_index(storage, "backupmeta.datafile.000000001", low, cipher)], data_files=files[5:9]
    )
    del meta.files[:]
    meta.version = 1
    meta.file_index.meta_files.append(await write_index(storage, "backupmeta.datafile.000000002", high, cipher))
    meta.file_index.data_files.extend(files[9:])
    ranges = brpb_pb2.MetaFile(raw_ranges=meta.raw_ranges)
    del meta.raw_ranges[:]
    meta.raw_range_index.meta_files.append(await write_index(storage, "backupmeta.raw.000000001", ranges, cipher))
    await write_meta(storage, meta, cipher)
    return v1


@pytest.mark.parametrize("cipher", [PLAINTEXT, AES], ids=["plain", "aes"])
async def test_v2_indexes_are_resolved(storage: Storage, cipher: Cipher) -> None:
    v1 = await write_v2(storage, cipher)
    found = await read_meta(storage, cipher)
    assert sorted(file.name for file in found.files) == sorted(file.name for file in v1.files)
    assert backup_range(found) == backup_range(v1)
    assert found.version == 0
    assert not found.HasField("file_index")


async def test_damaged_indexes(storage: Storage) -> None:
    await write_v2(storage, PLAINTEXT)
    name = "backupmeta.datafile.000000001"
    data = await storage.read(name)
    await storage.write(name, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(
        BackupFileError, match=f"{name} of the backup in local:///.* is damaged, or was encrypted"
    ) as hit:
        await read_meta(storage)
    assert hit.value.file == name
    await storage.delete(name)
    with pytest.raises(BackupFileError, match=f"{name} is missing"):
        await read_meta(storage)


async def test_an_index_without_end(storage: Storage) -> None:
    meta, index = small_meta(), brpb_pb2.MetaFile()
    for level in range(12):
        below = await write_index(storage, f"backupmeta.datafile.{level:09}", index, PLAINTEXT)
        index = brpb_pb2.MetaFile(meta_files=[below])
    meta.file_index.CopyFrom(index)
    await write_meta(storage, meta)
    with pytest.raises(BackupInvalidError, match="its file index has no end"):
        await read_meta(storage)


def test_backup_ts_stands_where_tikv_br_does_not_look() -> None:
    fields: dict[str, Any] = {"cluster_id": 7, "cluster_version": "8.5.0", "api_version": ApiVersion.V2, "files": []}
    keys = KeyRange(ApiKey(b"r\0\0\0"), ApiKey(b"r\0\0\1"))
    meta = build_meta(keys=keys, backup_ts=470671859487080449, **fields)
    assert (meta.start_version, meta.end_version) == (0, 470671859487080449)
    assert backup_ts_in(meta) == 470671859487080449
    without = build_meta(keys=keys, **fields)
    assert backup_ts_in(without) is None
    meta.ClearField("end_version")
    assert meta == without
