from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from airflow_provider_tikvbr import exceptions as e
from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.proto import metapb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.cluster import Cluster, ClusterDescription
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyCodec, UserKey
from airflow_provider_tikvbr.tikv.options import ClusterOptions, TlsOptions
from tests.support.certs import Authority, KeyPair
from tests.support.waiting import until
from tests.tikv.servers import closed_port


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(data_dir=tmp_path / "v1", api_version=ApiVersion.V1) as running:
        yield running


def options(embedded: EmbeddedCluster, **fields: Any) -> ClusterOptions:
    return ClusterOptions(**{"pd": (embedded.pd_address,), "connect_timeout_s": 5, **fields})


def stores_of(embedded: EmbeddedCluster, *more: metapb_pb2.Store) -> pdpb_pb2.GetAllStoresResponse:
    """What PD tells of the stores, to be changed by a test."""
    header = pdpb_pb2.ResponseHeader(cluster_id=embedded.topology.cluster_id)
    stores = [
        metapb_pb2.Store(id=s.id, address=s.address, status_address=s.status_address, version=s.version)
        for s in embedded.topology.stores.values()
    ]
    return pdpb_pb2.GetAllStoresResponse(header=header, stores=[*stores, *more])


def tell(embedded: EmbeddedCluster, answer: pdpb_pb2.GetAllStoresResponse) -> None:
    """Let PD tell this of the stores from now on."""
    embedded.faults.fail(methods.PD_GET_ALL_STORES, response=answer, times=None)


async def refused(kind: type[e.TikvBrError], embedded: EmbeddedCluster, **fields: Any) -> str:
    """Why a connection is refused, in one sentence."""
    with pytest.raises(kind) as caught:
        await Cluster.connect(options(embedded, **fields))
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what a connected cluster knows ---


@pytest.mark.parametrize("api_version", list(ApiVersion))
async def test_a_cluster_says_what_it_is(tmp_path: Path, api_version: ApiVersion) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, api_version=api_version, version="7.5.1") as embedded:
        expected = options(embedded, api_version=api_version, cluster_id=embedded.topology.cluster_id)
        async with await Cluster.connect(expected) as cluster:
            assert cluster.api_version is api_version
            assert cluster.codec == KeyCodec(api_version)
            assert cluster.cluster_id == embedded.topology.cluster_id
            assert cluster.cluster_version == Version("7.5.1")
            assert cluster.cluster_version_text == "7.5.1"
            description = await cluster.describe()
            assert description == ClusterDescription(
                cluster_id=cluster.cluster_id,
                pd_leader=embedded.pd_address,
                pd_members=1,
                stores_up=3,
                stores_total=3,
                tikv_versions=("7.5.1",),
                api_version=api_version,
            )


async def test_a_keyspace_changes_the_codec(tmp_path: Path) -> None:
    async with (
        EmbeddedCluster(data_dir=tmp_path, api_version=ApiVersion.V2, keyspaces={"seven": 7}) as embedded,
        await Cluster.connect(options(embedded, keyspace_id=7)) as cluster,
    ):
        assert cluster.codec.api_key(UserKey(b"k")) == b"r\x00\x00\x07k"


async def test_stores_and_their_clients(embedded: EmbeddedCluster) -> None:
    async with await Cluster.connect(options(embedded)) as cluster:
        first, _, third = await cluster.up_stores()
        client = await cluster.client(first.id)
        assert client is await cluster.client(first.id)
        assert (await cluster.client(third.id)).store == third
        with pytest.raises(e.StoreUnavailableError, match="knows no store 4711") as caught:
            await cluster.client(4711)
        assert caught.value.store_id == 4711


async def test_stores_that_are_leaving_or_foreign_are_left_out(embedded: EmbeddedCluster) -> None:
    answer = stores_of(embedded)
    answer.stores[0].state = metapb_pb2.Offline
    answer.stores[1].labels.add(key="engine", value="tiflash")
    tell(embedded, answer)
    async with await Cluster.connect(options(embedded, check_requirements=False)) as cluster:
        assert [s.id for s in await cluster.up_stores()] == [answer.stores[2].id]
        description = await cluster.describe()
        assert (description.stores_up, description.stores_total) == (1, 2)


@pytest.mark.parametrize(
    ("fields", "known", "up"),
    [
        # Releases before node states leave them at 0, which is Preparing.
        ({"state": "Up", "node_state": "Preparing"}, True, True),
        ({"state": "Up", "node_state": "Serving"}, True, True),
        # Its regions move away in time; until then it serves them.
        ({"state": "Offline", "node_state": "Removing"}, True, False),
        ({"state": "Offline", "node_state": "Preparing"}, True, False),
        ({"state": "Tombstone", "node_state": "Removed"}, False, False),
        ({"state": "Tombstone", "node_state": "Preparing"}, False, False),
        ({"state": "Up", "node_state": "Removed"}, False, False),
    ],
)
async def test_the_states_of_a_store(embedded: EmbeddedCluster, fields: dict[str, Any], known: bool, up: bool) -> None:
    address = next(iter(embedded.topology.stores.values())).address
    extra = metapb_pb2.Store(id=99, address=address, version="8.5.0", **fields)
    async with await Cluster.connect(options(embedded)) as cluster:
        tell(embedded, stores_of(embedded, extra))
        assert (99 in [store.id for store in await cluster.up_stores()]) is up
        if known:
            await (await cluster.client(99)).switch_mode(import_mode=False)
        else:
            with pytest.raises(e.StoreUnavailableError, match="knows no store 99"):
                await cluster.client(99)


async def test_status_servers_that_are_switched_off(
    embedded: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    answer = stores_of(embedded)
    answer.stores[1].status_address = ""
    tell(embedded, answer)
    async with await Cluster.connect(options(embedded)) as cluster:
        assert cluster.api_version is embedded.api_version
    assert f"store {answer.stores[1].id} ({answer.stores[1].address}) tells PD no address" in caplog.text
    for store in answer.stores:
        store.status_address = ""
    tell(embedded, answer)
    assert "no store that PD counts as up tells its API version" in await refused(e.StoreUnavailableError, embedded)


async def test_a_store_that_moves_gets_a_new_client(embedded: EmbeddedCluster) -> None:
    async with await Cluster.connect(options(embedded)) as cluster:
        before = await cluster.client(1)
        answer = stores_of(embedded)
        old, answer.stores[0].address = answer.stores[0].address, answer.stores[1].address
        tell(embedded, answer)
        assert await cluster.client(1) is before
        await cluster.up_stores()
        after = await cluster.client(1)
        assert after is not before
        assert (before.store.address, after.store.address) == (old, answer.stores[1].address)
        # Calls under way on the old one are not disturbed.
        await before.switch_mode(import_mode=False)


async def test_closing_twice(embedded: EmbeddedCluster) -> None:
    cluster = await Cluster.connect(options(embedded))
    client = await cluster.client(1)
    await cluster.close()
    await cluster.close()
    with pytest.raises(e.StoreUnavailableError, match="is closed"):
        await client.switch_mode(import_mode=False)


def test_one_cluster_after_another_in_loops_of_their_own(tmp_path: Path) -> None:
    async def once() -> int:
        async with EmbeddedCluster(data_dir=tmp_path) as embedded, await Cluster.connect(options(embedded)) as cluster:
            return len(await cluster.up_stores())

    assert [asyncio.run(once()) for _ in range(3)] == [3, 3, 3]
    gc.collect()


FORKING = """
import asyncio, os, signal, sys
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.options import ClusterOptions

async def use():
    async with await Cluster.connect(ClusterOptions(pd=(sys.argv[1],))) as cluster:
        return len(await cluster.up_stores())

assert asyncio.run(use()) == 3
child = os.fork()
if not child:
    signal.alarm(60)
    os._exit(asyncio.run(use()))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert asyncio.run(use()) == 3
"""


async def test_before_and_after_a_fork(embedded: EmbeddedCluster) -> None:
    """Airflow forks its tasks from a process that may have talked to a cluster before."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FORKING, embedded.pd_address)
    assert await process.wait() == 0


# --- what is refused ---


async def test_unreachable_pd() -> None:
    address = closed_port()
    with pytest.raises(e.PDUnavailableError, match=f"no PD leader found within 0.5 s, tried {address}"):
        await Cluster.connect(ClusterOptions(pd=(address,), connect_timeout_s=0.5))


async def test_another_cluster_than_expected(embedded: EmbeddedCluster) -> None:
    number = embedded.topology.cluster_id
    assert await refused(e.WrongClusterError, embedded, cluster_id=5) == (
        f"PD at {embedded.pd_address} belongs to cluster {number}, but cluster 5 is expected:"
        " check the PD endpoints or the expected cluster id"
    )


async def test_another_api_version_than_expected(embedded: EmbeddedCluster) -> None:
    message = await refused(e.ApiVersionError, embedded, api_version=ApiVersion.V2)
    assert message.startswith("the cluster has API version V1, but V2 is expected")


async def test_a_keyspace_where_there_are_none(embedded: EmbeddedCluster) -> None:
    assert "only V2 has keyspaces" in await refused(e.UnsupportedError, embedded, keyspace_id=7)


async def test_stores_that_are_too_old(embedded: EmbeddedCluster) -> None:
    answer = stores_of(embedded)
    answer.stores[1].version = "4.0.16"
    tell(embedded, answer)
    message = await refused(e.UnsupportedError, embedded)
    assert f"store {answer.stores[1].id} ({answer.stores[1].address}, version 4.0.16)" in message
    async with await Cluster.connect(options(embedded, check_requirements=False)) as cluster:
        assert len(await cluster.up_stores()) == 3


async def test_a_v2_of_old(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, api_version=ApiVersion.V2, version="6.0.0") as embedded:
        message = await refused(e.UnsupportedError, embedded)
        assert message.startswith("API version V2 is supported from TiKV 6.1.0 on, and this cluster has 6.0.0")
        async with await Cluster.connect(options(embedded, check_requirements=False)) as cluster:
            assert cluster.codec.is_v2


async def test_tiflash(embedded: EmbeddedCluster) -> None:
    tiflash = metapb_pb2.Store(id=99, address="flash:3930", version="8.5.0")
    tiflash.labels.add(key="engine", value="tiflash")
    tell(embedded, stores_of(embedded, tiflash))
    assert "store 99 (flash:3930, version 8.5.0)" in await refused(e.UnsupportedError, embedded)


async def test_mixed_api_versions_name_the_stores(embedded: EmbeddedCluster, tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path / "v2", api_version=ApiVersion.V2, stores=1) as other:
        foreign = replace(next(iter(other.topology.stores.values())))
        answer = stores_of(embedded)
        answer.stores[2].status_address = foreign.status_address
        tell(embedded, answer)
        message = await refused(e.ApiVersionError, embedded)
    first, second, third = (f"store {s.id} ({s.address})" for s in answer.stores)
    assert message == (
        f"the stores have different API versions: V1 on {first}, {second}; V2 on {third}: give all the same one"
    )


async def test_no_store_is_up(embedded: EmbeddedCluster) -> None:
    answer = stores_of(embedded)
    for store in answer.stores:
        store.state = metapb_pb2.Offline
    tell(embedded, answer)
    assert "no TiKV store of the cluster is up" in await refused(e.StoreUnavailableError, embedded)
    del answer.stores[:]
    tell(embedded, answer)
    assert "no TiKV store of the cluster is up" in await refused(e.StoreUnavailableError, embedded)


async def test_a_store_that_is_down_does_not_stop_the_others(
    embedded: EmbeddedCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """PD counts a store as up until somebody removes it."""
    await embedded.stop_store(2)
    with caplog.at_level(logging.WARNING):
        async with await Cluster.connect(options(embedded)) as cluster:
            assert cluster.api_version is ApiVersion.V1
    assert "status server of store 2" in caplog.text
    assert "its API version is taken to be that of the other stores" in caplog.text


async def test_no_store_answers(embedded: EmbeddedCluster) -> None:
    for number in (1, 2, 3):
        await embedded.stop_store(number)
    message = await refused(e.StoreUnavailableError, embedded, connect_timeout_s=0.5)
    assert message.startswith("no store that PD counts as up tells its API version: the status server of store 1")


async def test_stores_that_do_not_answer_for_a_moment(embedded: EmbeddedCluster) -> None:
    rule = Rule(kind=Kind.STATUS, method="GET /config", status=429, times=3)
    embedded.faults.add(rule)
    async with await Cluster.connect(options(embedded)) as cluster:
        assert cluster.api_version is embedded.api_version
    assert rule.hits == 3


async def test_a_cluster_without_stores_yet(embedded: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_tikvbr.tikv.pd.CALL_BUDGET_S", 0.2)
    header = pdpb_pb2.ResponseHeader(
        cluster_id=embedded.topology.cluster_id, error=pdpb_pb2.Error(type="NOT_BOOTSTRAPPED")
    )
    tell(embedded, pdpb_pb2.GetAllStoresResponse(header=header))
    assert "no TiKV store has joined it" in await refused(e.PDUnavailableError, embedded)


async def test_cancelling_a_connect(embedded: EmbeddedCluster) -> None:
    point = embedded.faults.fail(methods.PD_GET_ALL_STORES, delay_s=30, times=None)
    task = asyncio.create_task(Cluster.connect(options(embedded)))
    await until(lambda: point.hits)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- TLS ---


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls_everywhere(
    tmp_path: Path, authority: Authority, server_pair: KeyPair, client_pair: KeyPair, mutual: bool
) -> None:
    server = ServerTls(cert=server_pair.cert, key=server_pair.key, ca=authority.ca if mutual else None)
    tls = TlsOptions(ca=authority.ca)
    if mutual:
        tls = TlsOptions(ca=authority.ca, cert=client_pair.cert, key=client_pair.key)
    async with (
        EmbeddedCluster(data_dir=tmp_path, tls=server) as embedded,
        await Cluster.connect(options(embedded, tls=tls)) as cluster,
    ):
        assert await cluster.pd.tso() > 0
        assert await cluster.http.schedulers()
        for store in await cluster.up_stores():
            await (await cluster.client(store.id)).switch_mode(import_mode=False)


async def test_tls_mistakes(
    embedded: EmbeddedCluster, tmp_path: Path, authority: Authority, server_pair: KeyPair
) -> None:
    tls = TlsOptions(ca=authority.ca)
    message = await refused(e.AuthenticationError, embedded, tls=tls, connect_timeout_s=60)
    assert message.startswith(f"{embedded.pd_address} does not speak TLS: drop the certificates")
    server = ServerTls(cert=server_pair.cert, key=server_pair.key, ca=authority.ca)
    async with EmbeddedCluster(data_dir=tmp_path / "secure", tls=server) as secure:
        for wrong, expected in (
            (None, "speaks TLS only: give the CA"),
            (
                TlsOptions(ca=Authority("other").ca),
                "shows a certificate that the given CA has not signed",
            ),
            (tls, "wants a client certificate: give cert and key besides ca"),
        ):
            message = await refused(e.AuthenticationError, secure, tls=wrong, connect_timeout_s=60)
            assert message.startswith(f"{secure.pd_address} {expected}")


async def test_a_store_with_other_tls_than_pd(
    embedded: EmbeddedCluster, tmp_path: Path, server_pair: KeyPair, authority: Authority
) -> None:
    server = ServerTls(cert=server_pair.cert, key=server_pair.key)
    async with EmbeddedCluster(data_dir=tmp_path / "secure", tls=server) as secure:
        plain, locked = stores_of(embedded), stores_of(secure)
        for mine, theirs in zip(plain.stores, locked.stores, strict=True):
            mine.status_address, theirs.status_address = theirs.status_address, mine.status_address
        tell(embedded, plain)
        tell(secure, locked)
        message = await refused(e.AuthenticationError, embedded)
        assert message.startswith(f"the status server of store {plain.stores[0].id} ({plain.stores[0].status_address})")
        assert "speaks TLS only" in message
        message = await refused(e.AuthenticationError, secure, tls=TlsOptions(ca=authority.ca))
        assert "does not speak TLS" in message
