from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.exceptions import InvalidOptionError, TikvBrError, UnsupportedError
from airflow_provider_tikvbr.proto import keyspacepb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.tikv.options import ClusterOptions

BY_NUMBER = "9.0.1"
# Lists keyspaces, but does not load them by number.
LISTING = "8.5.0"
BY_NAME = "7.1.0"
NONE = "6.3.0"


@asynccontextmanager
async def known(
    directory: Path, *, version: str = LISTING, api_version: ApiVersion = ApiVersion.V2
) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(
        data_dir=directory,
        api_version=api_version,
        stores=1,
        version=version,
        keyspaces={"orders": 5, "old": 6, "up": 9},
    ) as embedded:
        embedded.pd.keyspaces.set_state("old", "ARCHIVED")
        yield embedded


async def chosen(embedded: EmbeddedCluster, **fields: Any) -> int:
    async with await Cluster.connect(ClusterOptions(pd=(embedded.pd_address,), **fields)) as cluster:
        return cluster.codec.keyspace_id


async def refused(kind: type[TikvBrError], embedded: EmbeddedCluster, **fields: Any) -> str:
    with pytest.raises(kind) as caught:
        await chosen(embedded, **fields)
    message = str(caught.value)
    assert "\n" not in message
    if isinstance(caught.value, InvalidOptionError):
        assert caught.value.parameter == "keyspace"
    return message


@pytest.mark.parametrize("version", [BY_NUMBER, LISTING, BY_NAME])
async def test_by_name_and_by_number(version: str, tmp_path: Path) -> None:
    async with known(tmp_path, version=version) as embedded:
        assert await chosen(embedded, keyspace="orders") == 5
        assert await chosen(embedded, keyspace_id=5) == 5
        assert await chosen(embedded, keyspace="orders", keyspace_id=5) == 5
        assert await chosen(embedded, keyspace="DEFAULT") == 0
        assert await chosen(embedded) == 0


@pytest.mark.parametrize("version", [BY_NUMBER, LISTING])
async def test_what_pd_does_not_know_or_has_closed(version: str, tmp_path: Path) -> None:
    async with known(tmp_path, version=version) as embedded:
        pd = embedded.pd_address
        # The listing tells the next one, number 9, when it is asked for 8.
        for number in (8, 4711):
            assert await refused(InvalidOptionError, embedded, keyspace_id=number) == (
                f"PD at {pd} knows no keyspace with id {number}: check the id, or create the keyspace"
            )
        assert (await refused(InvalidOptionError, embedded, keyspace="Orders")).startswith(
            f"PD at {pd} knows no keyspace 'Orders': check the name"
        )
        for given in ({"keyspace": "old"}, {"keyspace_id": 6}):
            assert (await refused(InvalidOptionError, embedded, **given)).startswith(
                "keyspace 'old' (id 6) is ARCHIVED"
            )
        assert await refused(InvalidOptionError, embedded, keyspace="orders", keyspace_id=9) == (
            "keyspace 'orders' has id 5 in this cluster, but id 9 is given too: give one of them"
        )


async def test_an_old_pd_takes_the_number_as_it_is(tmp_path: Path) -> None:
    async with known(tmp_path / "by-name", version=BY_NAME) as embedded:
        assert await chosen(embedded, keyspace_id=4711) == 4711
    async with known(tmp_path / "none", version=NONE) as embedded:
        assert await chosen(embedded, keyspace_id=4711) == 4711
        assert await chosen(embedded, keyspace="DEFAULT") == 0
        message = await refused(UnsupportedError, embedded, keyspace="orders")
        assert message.endswith(
            "is older than 6.4 and knows no keyspaces by name: give the number of keyspace 'orders' instead"
        )


@pytest.mark.parametrize("api_version", [ApiVersion.V1, ApiVersion.V1TTL])
async def test_there_are_none_below_v2(api_version: ApiVersion, tmp_path: Path) -> None:
    async with known(tmp_path, api_version=api_version) as embedded:
        for given in ({"keyspace": "orders"}, {"keyspace_id": 5}, {"keyspace": "DEFAULT"}):
            message = await refused(UnsupportedError, embedded, **given)
            assert message.endswith(f"has API version {api_version.name}: only V2 has keyspaces, so leave it out")


async def test_a_pd_that_has_no_error_type_for_it(tmp_path: Path) -> None:
    async with known(tmp_path) as embedded:
        error = pdpb_pb2.Error(type=pdpb_pb2.UNKNOWN, message="keyspace does not exist")
        header = pdpb_pb2.ResponseHeader(cluster_id=embedded.topology.cluster_id, error=error)
        answer = keyspacepb_pb2.LoadKeyspaceResponse(header=header)
        embedded.faults.fail(methods.KEYSPACE_LOAD, response=answer)
        assert "knows no keyspace 'orders'" in await refused(InvalidOptionError, embedded, keyspace="orders")


async def test_keyspaces_are_kept(tmp_path: Path) -> None:
    async with known(tmp_path) as embedded:
        assert embedded.create_keyspace("next") == 10
        assert embedded.create_keyspace("next") == 10
        for name, number in (("orders", 8), ("other", 5)):
            with pytest.raises(InvalidOptionError, match="it is taken"):
                embedded.create_keyspace(name, keyspace_id=number)
    async with known(tmp_path) as embedded:
        assert [k.name for k in embedded.pd.keyspaces.scan(0, 0)] == ["DEFAULT", "orders", "old", "up", "next"]
        borders = {r.start for r in embedded.topology.regions}
        assert {embedded.topology.codec.region_key(k) for k in (b"r\0\0\5", b"r\0\0\6", b"r\0\0\x0b")} <= borders  # type: ignore[arg-type]
