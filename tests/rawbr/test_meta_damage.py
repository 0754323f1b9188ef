"""No damage of a backupmeta is taken for a backup: what is not refused restores all, or the comparison tells."""

from __future__ import annotations

import random
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fastcrc import crc64

from airflow_provider_tikvbr.exceptions import BackupFileError, BackupInvalidError, TikvBrError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.expected import expected_checksum
from airflow_provider_tikvbr.rawbr.files import verify_files
from airflow_provider_tikvbr.rawbr.meta import META_NAME, read_meta, write_meta
from airflow_provider_tikvbr.rawbr.options import VerifyFiles, backup_options, restore_options
from airflow_provider_tikvbr.rawbr.plan import RestorePlan, make_plan
from airflow_provider_tikvbr.rawbr.summary import Checksum
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.storage.sst import SstReader
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiKey, ApiVersion, KeyCodec, UserKey
from tests.rawbr.jobs import cluster
from tests.support.golden import Golden

RANGE = Golden("v1", "range")
ENCRYPTED = Golden("v1", "aes256")


class Damaged(LocalStorage):
    """A golden backup whose backupmeta reads otherwise."""

    meta: bytes

    async def read(self, name: str) -> bytes:
        return self.meta if name == META_NAME else await super().read(name)


@cache
def pairs_of(path: Path) -> tuple[list[bytes], list[Checksum]]:
    """The keys of an SST in order, and what each pair counts."""
    pairs = list(SstReader(path.read_bytes()).pairs())
    return [key for key, _ in pairs], [Checksum(crc64.xz(k + v), 1, len(k) + len(v)) for k, v in pairs]


def restored(golden: Golden, plan: RestorePlan) -> tuple[set[bytes], Checksum]:
    """What the stores would make of a plan: the keys, and what they count."""
    found: set[bytes] = set()
    total = Checksum()
    for planned in plan.files:
        names, counts = pairs_of(golden.path / planned.file.name)
        first = bisect_left(names, planned.keys.start)
        last = bisect_left(names, planned.keys.end) if planned.keys.end else len(names)
        found.update(names[first:last])
        total = sum(counts[first:last], total)
    return found, total


async def plan_of(
    storage: Damaged, golden: Golden, cipher: Cipher = PLAINTEXT
) -> tuple[RestorePlan, brpb_pb2.BackupMeta]:
    meta = await read_meta(storage, cipher)
    plan = make_plan(meta, KeyCodec(golden.api_version), EVERYTHING)
    await verify_files(storage, [planned.file for planned in plan.files], VerifyFiles.SIZE)
    return plan, meta


def what(plan: RestorePlan) -> dict[str, tuple[ApiKey, ApiKey]]:
    return {planned.file.name: (planned.keys.start, planned.keys.end) for planned in plan.files}


def flips(data: bytes) -> Iterator[bytes]:
    """Every bit of it turned over, one at a time."""
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def cuts(data: bytes) -> Iterator[bytes]:
    for length in range(len(data)):
        yield data[:length]


@pytest.mark.parametrize("damage", [flips, cuts])
async def test_no_damage_leaves_out_data_unnoticed(damage: Callable[[bytes], Iterator[bytes]]) -> None:
    storage = Damaged(path=RANGE.path)
    storage.meta = whole = (RANGE.path / META_NAME).read_bytes()
    plan, meta = await plan_of(storage, RANGE)
    truth, counted = restored(RANGE, plan)
    assert await expected_checksum(storage, meta, plan.keys) == counted
    refused = harmless = 0
    said: set[str] = set()
    for storage.meta in damage(whole):
        try:
            found, meta = await plan_of(storage, RANGE)
        except TikvBrError as err:
            refused += 1
            said.add(str(err))
            continue
        if what(found) == what(plan):
            harmless += 1
            continue
        keys, actual = restored(RANGE, found)
        if await expected_checksum(storage, meta, found.keys) == actual:
            assert keys == truth, "it would look like a success"
    assert refused > len(whole) / 2
    # Such as the text of a version, or the digest of a file, which was not looked at here.
    assert harmless < 4 if damage is cuts else harmless > refused / 4
    assert not [text for text in said if "\n" in text]


async def test_an_encrypted_one_that_was_changed() -> None:
    """Counter mode turns over the same bit of what it hides; a bit of the IV changes all of it."""
    cipher = restore_options(**ENCRYPTED.crypter).cipher
    storage = Damaged(path=ENCRYPTED.path)
    storage.meta = whole = (ENCRYPTED.path / META_NAME).read_bytes()
    plan, _ = await plan_of(storage, ENCRYPTED, cipher)
    for bit in range(16 * 8):
        storage.meta = whole[: bit // 8] + bytes([whole[bit // 8] ^ (1 << bit % 8)]) + whole[bit // 8 + 1 :]
        with pytest.raises(BackupInvalidError, match=r"cannot be read with this key: .*; if they are, it is damaged"):
            await read_meta(storage, cipher)
    plain = cipher.decrypt(whole[16:], whole[:16])
    tag = 16 + plain.index(b"\x22")
    for flipped in (1 << 3, 1 << 4, 1 << 6):
        storage.meta = whole[:tag] + bytes([whole[tag] ^ flipped]) + whole[tag + 1 :]
        with pytest.raises(BackupInvalidError, match="nobody knows its field"):
            await read_meta(storage, cipher)
    rnd = random.Random(3)
    for _ in range(300):
        at = rnd.randrange(16, len(whole))
        storage.meta = whole[:at] + bytes([whole[at] ^ (1 << rnd.randrange(8))]) + whole[at + 1 :]
        try:
            found, _ = await plan_of(storage, ENCRYPTED, cipher)
        except TikvBrError:
            continue
        # A range that differs is the comparison's to find, as in the plain one.
        assert what(found).keys() == what(plan).keys()


def entry(name: str, start: bytes, end: bytes) -> brpb_pb2.File:
    return brpb_pb2.File(name=name, start_key=start, end_key=end, size=1, total_kvs=1, cf="default")


OVERLAPS = {
    "the same range": [(b"a", b"c"), (b"a", b"c")],
    "one in the other": [(b"a", b"z"), (b"c", b"d")],
    "one far behind the other's start": [(b"a", b"z"), (b"b", b"c"), (b"x", b"y")],
    "crossing": [(b"a", b"d"), (b"c", b"f")],
    "an open end": [(b"a", b""), (b"c", b"d")],
    "two open ends": [(b"a", b""), (b"c", b"")],
}


@pytest.mark.parametrize("depth", VerifyFiles)
@pytest.mark.parametrize("ranges", OVERLAPS.values(), ids=OVERLAPS)
async def test_files_that_hold_the_same_keys(
    ranges: list[tuple[bytes, bytes]], depth: VerifyFiles, tmp_path: Path
) -> None:
    storage = open_storage(str(tmp_path))
    files = [entry(f"1/{at}.sst", *keys) for at, keys in enumerate(ranges)]
    for file in files:
        await storage.write(file.name, b"1")
    with pytest.raises(BackupFileError, match=r"is damaged: .*1/1\.sst holds keys that 1/0\.sst holds too.*; put back"):
        await verify_files(storage, files, depth)
    neighbours = [entry("1/0.sst", b"a", b"c"), entry("1/1.sst", b"c", b"d"), entry("1/2.sst", b"e", b"")]
    await verify_files(storage, neighbours[: len(files)], depth)


async def test_an_end_that_is_missing(tmp_path: Path) -> None:
    """Cut between two fields a message is whole: it is not called a backup of another kind."""
    storage = open_storage(str(tmp_path))
    whole = (RANGE.path / META_NAME).read_bytes()
    meta = brpb_pb2.BackupMeta.FromString(whole)
    head = brpb_pb2.BackupMeta(cluster_id=meta.cluster_id, cluster_version=meta.cluster_version, files=meta.files[:3])
    cut = head.SerializeToString()
    assert whole.startswith(cut)
    await storage.write(META_NAME, cut)
    with pytest.raises(BackupInvalidError, match=r"backupmeta in .* cannot be used: its end is missing; put back"):
        await read_meta(storage)


@pytest.mark.parametrize("golden", [Golden("v2", "full"), Golden("v2", "range"), Golden("v1", "range_to_v2")], ids=str)
async def test_an_api_version_that_is_missing(golden: Golden, tmp_path: Path) -> None:
    """Cut right before it, it would be a backup of API V1, whose restore would make a mess of a V1 cluster."""
    storage = open_storage(str(tmp_path / "place"))
    shutil.copytree(golden.path, tmp_path / "place")
    whole = (golden.path / META_NAME).read_bytes()
    assert whole.endswith(b"\x90\x01\x02")
    await storage.write(META_NAME, whole[:-3])
    with pytest.raises(BackupInvalidError, match=r"backupmeta in .* cannot be used: its end is missing; put back"):
        await read_meta(storage)


@pytest.mark.parametrize("prefix", [b"r", b"r\0\0\0", b"r\0\0\x01"])
async def test_keys_of_v1_that_begin_like_those_of_v2(prefix: bytes, tmp_path: Path) -> None:
    """A backup of a range of them is as good as any other."""
    pairs = [(UserKey(prefix + b"%04d" % number), b"value-%d" % number + bytes(1)) for number in range(30)]
    keys: dict[str, Any] = {"start": prefix.hex(), "end": (prefix + b"9").hex(), "format": "hex"}
    async with cluster(tmp_path, pairs=pairs, split_keys=[pairs[10][0], pairs[20][0]]) as (_, client):
        place = tmp_path / "place"
        summary = await backup(client, open_storage(str(place)), backup_options(**keys))
        assert summary.total_kv == len(pairs)
        meta = await read_meta(open_storage(str(place)))
        assert (meta.api_version, meta.raw_ranges[0].start_key) == (0, prefix)
        # What is wrong with a file is for those to say who need it.
        for path in place.rglob("*.sst"):
            path.write_bytes(b"no SST")
        assert await read_meta(open_storage(str(place))) == meta


async def test_an_api_version_that_is_missing_of_an_encrypted_backup(tmp_path: Path) -> None:
    place = tmp_path / "place"
    aes: dict[str, Any] = {"crypter_method": "aes192-ctr", "crypter_key": "07" * 24}
    cipher = restore_options(**aes).cipher
    async with cluster(tmp_path, ApiVersion.V2, version="6.1.1") as (_, client):
        storage = open_storage(str(place))
        assert (await backup(client, storage, backup_options(**aes))).backup_ts is None
    whole = (place / META_NAME).read_bytes()
    assert cipher.decrypt(whole[16:], whole[:16]).endswith(b"\x90\x01\x02")
    await storage.write(META_NAME, whole[:-3])
    with pytest.raises(BackupInvalidError, match="its end is missing; put back"):
        await read_meta(storage, cipher)


async def test_an_api_version_that_is_missing_behind_a_backup_ts(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    meta = await read_meta(open_storage(RANGE.url))
    meta.end_version = 1 << 40
    await write_meta(storage, meta)
    with pytest.raises(BackupInvalidError, match="its end is missing; put back"):
        await read_meta(storage)


@pytest.mark.parametrize("index", ["file_index", "raw_range_index"])
async def test_an_index_that_lists_other_things(index: str, tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    meta = await read_meta(open_storage(RANGE.url))
    content = brpb_pb2.MetaFile(data_files=meta.files, raw_ranges=meta.raw_ranges)
    getattr(meta, index).CopyFrom(content)
    await write_meta(storage, meta)
    with pytest.raises(BackupInvalidError, match=r"cannot be used: its index of .* lists other things; put back"):
        await read_meta(storage)


async def test_an_index_with_an_entry_under_another_number(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    meta = await read_meta(open_storage(RANGE.url))
    meta.file_index.meta_files.add(name="backupmeta.datafile.000000001")
    data = meta.SerializeToString()
    at = data.index(b"\x0a\x1d" + b"backupmeta.datafile") - 2
    for tag, says in ((0x1A, "nobody knows its field 3"), (0x2A, "lists other things")):
        await storage.write(META_NAME, data[:at] + bytes([tag]) + data[at + 1 :])
        with pytest.raises(BackupInvalidError, match=says):
            await read_meta(storage)
