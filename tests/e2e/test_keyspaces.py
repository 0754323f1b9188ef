"""Keyspaces of one V2 cluster, backed up and restored one at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.checksum import verify_backup
from airflow_provider_tikvbr.rawbr.options import backup_options, checksum_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import MAX_KEYSPACE_ID, ApiVersion, KeyCodec, UserKey
from airflow_provider_tikvbr.tikv.options import ClusterOptions, parse_keyspace

OTHERS = (0, 6, 8)


async def fill(embedded: EmbeddedCluster, keyspace: int, value: bytes) -> None:
    """Twenty pairs, in regions of five."""
    embedded.topology.codec = KeyCodec(ApiVersion.V2, keyspace)
    embedded.split([UserKey(b"%02d" % i) for i in range(5, 20, 5)])
    await embedded.put((UserKey(b"%02d" % i), value) for i in range(20))


async def held(embedded: EmbeddedCluster, keyspace: int) -> set[bytes]:
    embedded.topology.codec = KeyCodec(ApiVersion.V2, keyspace)
    pairs = await embedded.pairs()
    assert len(pairs) in (0, 20)
    return {pair.value for pair in pairs}


@pytest.mark.parametrize(("keyspace", "given"), [(5, "orders"), (7, 7), (MAX_KEYSPACE_ID, "last")])
async def test_a_keyspace_there_and_back(keyspace: int, given: str | int, tmp_path: Path) -> None:
    number, name = parse_keyspace(given)
    known = {name or "by-number": keyspace, **{f"other-{other}": other for other in OTHERS if other}}
    storage = open_storage(f"local://{tmp_path}/place")
    async with EmbeddedCluster(data_dir=tmp_path / "source", api_version=ApiVersion.V2, keyspaces=known) as embedded:
        for other in OTHERS:
            await fill(embedded, other, b"another's")
        await fill(embedded, keyspace, b"ours")
        options = ClusterOptions(pd=(embedded.pd_address,), keyspace=name, keyspace_id=number or 0)
        async with await Cluster.connect(options) as source:
            summary = await backup(source, storage, backup_options(checksum=True))
            assert (summary.total_kv, summary.verified) == (20, True)
            assert (await verify_backup(source, storage, checksum_options(start="3035", end="3132"))).matches
    async with EmbeddedCluster(
        data_dir=tmp_path / "target", api_version=ApiVersion.V2, stores=1, keyspaces=known
    ) as embedded:
        for other in OTHERS:
            await fill(embedded, other, b"their own")
        options = ClusterOptions(pd=(embedded.pd_address,), keyspace=name, keyspace_id=number or 0)
        async with await Cluster.connect(options) as target:
            assert (await restore(target, storage, restore_options(checksum=True))).verified
        assert await held(embedded, keyspace) == {b"ours"}
        for other in OTHERS:
            assert await held(embedded, other) == {b"their own"}
