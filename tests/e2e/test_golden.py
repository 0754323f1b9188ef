"""Every golden backup, restored on another topology than its source's, is bit for bit what the source held."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.checksum import cluster_checksum
from airflow_provider_tikvbr.rawbr.meta import read_meta
from airflow_provider_tikvbr.rawbr.options import backup_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.rawbr.summary import Checksum
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import UserKey
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from tests.support.golden import Golden, backups, digest

# One store; three stores with three replicas and borders that cut through files; two stores split at one key.
TOPOLOGIES = {
    "one-store": {"stores": 1, "replicas": 1, "split_keys": ()},
    "three-replicas": {"stores": 3, "replicas": 3, "split_keys": (UserKey(b"idx\x0014"), UserKey(b"user:00000500"))},
    "two-stores": {"stores": 2, "replicas": 1, "split_keys": (UserKey(b"user:"),)},
}

WRITTEN_AT = 1_795_383_520  # when the golden clusters were filled, seconds since the epoch


def cases() -> list[tuple[Golden, str]]:
    """Every backup once, on topologies in turn; the full ones on all."""
    names = list(TOPOLOGIES)
    found = []
    for i, golden in enumerate(backups()):
        wanted = names if golden.name == "full" else [names[i % len(names)]]
        found += [(golden, name) for name in wanted]
    return found


@pytest.mark.parametrize(("golden", "topology"), cases(), ids=lambda v: str(v))
async def test_restores_bit_for_bit(golden: Golden, topology: str, tmp_path: Path) -> None:
    embedded = EmbeddedCluster(data_dir=tmp_path / "data", api_version=golden.api_version, **TOPOLOGIES[topology])  # type: ignore[arg-type]
    async with embedded, await Cluster.connect(ClusterOptions(pd=(embedded.pd_address,))) as cluster:
        storage = open_storage(golden.url)
        options = restore_options(checksum=True, **golden.crypter)
        summary = await restore(cluster, storage, options)

        meta = await read_meta(storage, options.cipher)
        expected = sum((Checksum(f.crc64xor, f.total_kvs, f.total_bytes) for f in meta.files), Checksum())
        assert summary.restore_files == len(meta.files)
        assert (summary.total_kv, summary.total_kv_size) == (expected.total_kvs, expected.total_bytes)
        assert summary.verified

        held = await embedded.pairs()
        assert [(p.key, p.value) for p in held] == [(p.key, p.value) for p in golden.pairs]
        for here, there in zip(held, golden.pairs, strict=True):
            # The truth tells how long a pair was to live when it was written, minutes before the backup was taken.
            written = here.expire - there.ttl
            assert abs(written - WRITTEN_AT) < 3600 if there.ttl else here.expire == 0
        if "range" in golden.info:
            assert list(digest((p.key, p.value) for p in held)) == golden.info["range"]["digest"]

        everything = cluster.codec.api_range(golden.keys)
        assert await cluster_checksum(cluster, everything, concurrency=4) == expected

        again = open_storage(f"local://{tmp_path / 'again'}")
        second = await backup(cluster, again, backup_options(checksum=True, compression="lz4"))
        assert second.checksum == expected
        assert second.verified
