from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.proto import brpb_pb2, import_sstpb_pb2, methods, pdpb_pb2
from tests.embedded.pd_caller import PdCaller
from tests.support.waiting import until

REQUEST = pdpb_pb2.GetMembersRequest()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(data_dir=tmp_path, stores=2) as cluster:
        yield cluster


async def test_a_status_strikes_as_often_as_asked(cluster: EmbeddedCluster) -> None:
    point = cluster.faults.fail(methods.PD_GET_MEMBERS, code=grpc.StatusCode.UNAVAILABLE, details="not leader", times=2)
    async with PdCaller(cluster) as pd:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError, match="not leader") as error:
                await pd.call(methods.PD_GET_MEMBERS, REQUEST)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await pd.call(methods.PD_GET_MEMBERS, REQUEST)).members
        assert point.hits == 2


async def test_a_message_stands_in_for_the_answer_until_disarmed(cluster: EmbeddedCluster) -> None:
    point = cluster.faults.fail(methods.PD_GET_MEMBERS, response=pdpb_pb2.GetMembersResponse(), times=None)
    async with PdCaller(cluster) as pd:
        for _ in range(3):
            assert not (await pd.call(methods.PD_GET_MEMBERS, REQUEST)).members
        point.disarm()
        assert (await pd.call(methods.PD_GET_MEMBERS, REQUEST)).members
        cluster.faults.fail(methods.PD_GET_MEMBERS, code=grpc.StatusCode.INTERNAL)
        cluster.faults.clear()
        assert (await pd.call(methods.PD_GET_MEMBERS, REQUEST)).members


async def test_only_one_store_is_struck(cluster: EmbeddedCluster) -> None:
    cluster.faults.fail(methods.IMPORT_SWITCH_MODE, code=grpc.StatusCode.UNAVAILABLE, store_id=2, times=None)
    request = import_sstpb_pb2.SwitchModeRequest(mode=import_sstpb_pb2.Import)
    async with PdCaller(cluster, address=cluster.topology.stores[1].address) as store:
        await store.call(methods.IMPORT_SWITCH_MODE, request)
    async with PdCaller(cluster, address=cluster.topology.stores[2].address) as store:
        with pytest.raises(grpc.aio.AioRpcError):
            await store.call(methods.IMPORT_SWITCH_MODE, request)
    assert cluster.import_modes() == {1: True, 2: False}


async def test_a_stream_is_struck_too(cluster: EmbeddedCluster) -> None:
    fault = brpb_pb2.BackupResponse(error=brpb_pb2.Error(msg="injected"))
    cluster.faults.fail(methods.BACKUP, response=fault)
    cluster.faults.fail(methods.PD_TSO, code=grpc.StatusCode.UNAVAILABLE)
    async with PdCaller(cluster, address=cluster.topology.stores[1].address) as store:
        answers = [r async for r in store.make(methods.BACKUP)(brpb_pb2.BackupRequest(), timeout=10)]
        assert [a.error.msg for a in answers] == ["injected"]
    async with PdCaller(cluster) as pd:
        with pytest.raises(grpc.aio.AioRpcError):
            await pd.tso(1)
        await pd.tso(1)


async def test_a_delay_alone_lets_the_answer_through(cluster: EmbeddedCluster) -> None:
    point = cluster.faults.fail(methods.PD_GET_MEMBERS, delay_s=0.5)
    async with PdCaller(cluster) as pd:
        slow = asyncio.create_task(pd.call(methods.PD_GET_MEMBERS, REQUEST))
        await until(lambda: point.hits)
        assert not slow.done()
        assert (await slow).members
