from __future__ import annotations

import asyncio
import threading
import urllib.request
from pathlib import Path

import grpc
import pytest

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.proto import methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import UserKey


def running(cluster: ThreadedCluster) -> list[int]:
    return [s.id for s in cluster.topology.stores.values() if s.running]


def test_callers_need_no_loop(tmp_path: Path) -> None:
    with ThreadedCluster(data_dir=tmp_path, stores=3, replicas=3) as cluster:
        cluster.put([(UserKey(b"a"), b"1"), (UserKey(b"b"), b"2")])
        assert [p.value for p in cluster.pairs()] == [b"1", b"2"]
        assert cluster.checksum().kvs == 2
        cluster.apply(lambda c: c.split([UserKey(b"b")]))
        assert len(cluster.topology.regions) == 2
        cluster.stop_store(1)
        assert running(cluster) == [2, 3]
        cluster.start_store(1)
        assert running(cluster) == [1, 2, 3]
        with urllib.request.urlopen(f"http://{cluster.pd_address}/pd/api/v1/ping") as answer:
            assert answer.status == 200
    assert not [t for t in threading.enumerate() if t.name == "embedded-cluster"]


def test_callers_may_run_loops_of_their_own_one_after_the_other(tmp_path: Path) -> None:
    async def ask(address: str) -> int:
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary(
                methods.PD_GET_MEMBERS.path,
                request_serializer=pdpb_pb2.GetMembersRequest.SerializeToString,
                response_deserializer=pdpb_pb2.GetMembersResponse.FromString,
            )
            answers = await asyncio.gather(*(call(pdpb_pb2.GetMembersRequest(), timeout=10) for _ in range(20)))
            return len(answers)

    with ThreadedCluster(data_dir=tmp_path, stores=1) as cluster:
        assert [asyncio.run(ask(cluster.pd_address)) for _ in range(3)] == [20, 20, 20]


def test_a_failed_start_is_told_to_the_caller(tmp_path: Path) -> None:
    with ThreadedCluster(data_dir=tmp_path, stores=1):
        other = ThreadedCluster(data_dir=tmp_path, stores=1)
        with pytest.raises(InvalidOptionError, match="in use"):
            other.start()
    with pytest.raises(RuntimeError, match="has not been started"):
        ThreadedCluster(data_dir=tmp_path).checksum()


def test_errors_come_back_from_calls(tmp_path: Path) -> None:
    with ThreadedCluster(data_dir=tmp_path, stores=1) as cluster, pytest.raises(KeyError):
        cluster.stop_store(9)
