"""Golden backups whose backupmeta is laid out as an index of further files (v2) instead of one list (v1)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import BackupFileError
from airflow_provider_tikvbr.proto import brpb_pb2, methods
from airflow_provider_tikvbr.rawbr.checksum import verify_backup
from airflow_provider_tikvbr.rawbr.meta import META_NAME, read_meta, write_meta
from airflow_provider_tikvbr.rawbr.options import VerifyFiles, checksum_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.cipher import Cipher, new_iv
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from tests.support.golden import Golden, source_checksum

GOLDEN = [Golden("v1", "full"), Golden("v1", "aes256"), Golden("v2", "aes256"), Golden("v1ttl", "to_v2")]
FILES_IN_A_LEAF = 3


class Layout:
    """Writes the files of an index as TiDB's BR does: encrypted as they lie there, their digest that of the plain bytes.

    :param storage: where to.
    :param cipher: of the backup.
    """

    def __init__(self, storage: Storage, cipher: Cipher) -> None:
        self._storage = storage
        self._cipher = cipher
        self.names: list[str] = []

    async def put(self, content: brpb_pb2.MetaFile, kind: str) -> brpb_pb2.File:
        """Write one file of the index; what names it in the one above."""
        name, plain, iv = f"backupmeta.{kind}.{len(self.names) + 1:09}", content.SerializeToString(), new_iv()
        self.names.append(name)
        await self._storage.write(name, self._cipher.encrypt(plain, iv))
        return brpb_pb2.File(name=name, sha256=hashlib.sha256(plain).digest(), size=len(plain), cipher_iv=iv)

    async def tree(self, files: Sequence[brpb_pb2.File], levels: int) -> brpb_pb2.MetaFile:
        """An index of that many levels, with a few files to a leaf."""
        if not levels:
            return brpb_pb2.MetaFile(data_files=files)
        step = FILES_IN_A_LEAF ** max(1, levels)
        parts = [files[at : at + step] for at in range(0, len(files), step)]
        below = [await self.put(await self.tree(part, levels - 1), "datafile") for part in parts]
        return brpb_pb2.MetaFile(meta_files=below)


async def as_index(golden: Golden, place: Path, levels: int) -> list[str]:
    """Copy a backup, and lay its backupmeta out as an index; the names of the index's files."""
    shutil.copytree(golden.path, place)
    cipher = restore_options(**golden.crypter).cipher
    async with open_storage(f"local://{place}") as storage:
        meta = await read_meta(storage, cipher)
        layout = Layout(storage, cipher)
        meta.file_index.CopyFrom(await layout.tree(list(meta.files), levels))
        ranges = await layout.put(brpb_pb2.MetaFile(raw_ranges=meta.raw_ranges), "rawrange")
        meta.raw_range_index.meta_files.append(ranges)
        del meta.files[:], meta.raw_ranges[:]
        meta.version = 1
        await storage.delete(META_NAME)
        await write_meta(storage, meta, cipher)
    return layout.names


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("golden", GOLDEN, ids=str)
async def test_it_restores_and_compares_like_the_list(golden: Golden, levels: int, tmp_path: Path) -> None:
    place = tmp_path / "place"
    names = await as_index(golden, place, levels)
    assert len(names) > 2
    assert (place / META_NAME).stat().st_size < (golden.path / META_NAME).stat().st_size
    async with EmbeddedCluster(data_dir=tmp_path / "data", api_version=golden.api_version, stores=2) as embedded:
        async with (
            open_storage(f"local://{place}") as storage,
            await Cluster.connect(ClusterOptions(pd=embedded.pd_addresses)) as cluster,
        ):
            summary = await restore(cluster, storage, restore_options(checksum=True, **golden.crypter))
            compared = await verify_backup(cluster, storage, checksum_options(**golden.crypter))
        held = await embedded.pairs()
    assert [(p.key, p.value) for p in held] == [(p.key, p.value) for p in golden.pairs]
    assert summary.verified
    assert summary.total_kv == len(golden.pairs)
    assert compared.expected == compared.actual == summary.checksum
    if golden.api_version is golden.source:
        assert summary.checksum == source_checksum(golden)


def gone(place: Path, names: list[str], at: int) -> None:
    (place / names[at]).unlink()


def cut(place: Path, names: list[str], at: int) -> None:
    path = place / names[at]
    path.write_bytes(path.read_bytes()[:-1])


def emptied(place: Path, names: list[str], at: int) -> None:
    (place / names[at]).write_bytes(b"")


def flipped(place: Path, names: list[str], at: int) -> None:
    path = place / names[at]
    data = bytearray(path.read_bytes())
    data[0] ^= 1 << 3
    path.write_bytes(data)


def swapped(place: Path, names: list[str], at: int) -> None:
    one, other = place / names[at], place / names[at - 1]
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


# Of an index of three levels: a leaf, the top of the files' index, the file of the range.
LEAF, TOP, RANGE = 0, -2, -1
CHANGES = (
    methods.KV_SPLIT_REGION,
    methods.IMPORT_SWITCH_MODE,
    methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT,
    methods.IMPORT_DOWNLOAD,
    methods.IMPORT_MULTI_INGEST,
)


@pytest.mark.parametrize("at", [LEAF, TOP, RANGE], ids=["leaf", "top", "range"])
@pytest.mark.parametrize("damage", [gone, cut, emptied, flipped, swapped])
@pytest.mark.parametrize("golden", GOLDEN[:2], ids=str)
async def test_a_damaged_index_is_found_before_anything_changes(
    golden: Golden, damage: Callable[[Path, list[str], int], None], at: int, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    names = await as_index(golden, place, 3)
    damage(place, names, at)
    if damage is swapped:
        # What is read first of the two.
        at = {LEAF: LEAF, TOP: TOP, RANGE: TOP}[at]
    what = (
        "is missing" if damage is gone else "of the backup in local:///.* is damaged, or was encrypted with another key"
    )
    async with EmbeddedCluster(data_dir=tmp_path / "data", stores=1) as embedded:
        changes = [embedded.faults.fail(method, times=None) for method in CHANGES]
        async with (
            open_storage(f"local://{place}") as storage,
            await Cluster.connect(ClusterOptions(pd=embedded.pd_addresses)) as cluster,
        ):
            for depth in VerifyFiles:
                with pytest.raises(BackupFileError, match=rf"{names[at]} {what}.*; put back what is wrong") as caught:
                    await restore(cluster, storage, restore_options(verify_files=depth, **golden.crypter))
                assert caught.value.file == names[at]
            with pytest.raises(BackupFileError, match=f"{names[at]} {what}"):
                await verify_backup(cluster, storage, checksum_options(**golden.crypter))
        assert not any(rule.hits for rule in changes)
        assert not await embedded.pairs()
        assert len(embedded.topology.regions) == 1
