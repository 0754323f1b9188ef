"""Faults of gRPC calls as a client on a real socket sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_answers import PD_ERRORS, REGION_ERRORS, carries
from airflow_provider_tikvbr.embedded.fault_rules import METHODS, Kind, Rule
from airflow_provider_tikvbr.embedded.faults import Faults
from airflow_provider_tikvbr.proto import (
    brpb_pb2,
    errorpb_pb2,
    import_sstpb_pb2,
    kvrpcpb_pb2,
    methods,
    pdpb_pb2,
    tikvpb_pb2,
)
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.tikv.errors import region_error_kind
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.embedded.pd_caller import PdCaller
from tests.embedded.stores import Stores
from tests.embedded.test_backup_service import backup_request
from tests.support.waiting import until

MEMBERS = pdpb_pb2.GetMembersRequest()
IMPORT = import_sstpb_pb2.SwitchModeRequest(mode=import_sstpb_pb2.Import)
NORMAL = import_sstpb_pb2.SwitchModeRequest(mode=import_sstpb_pb2.Normal)
SPLITS = [UserKey(b"%d" % i) for i in range(1, 5)]


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    """Two stores, five regions that store 1 leads, a pair in each."""
    async with (
        EmbeddedCluster(data_dir=tmp_path / "data", stores=2, replicas=2, split_keys=SPLITS) as cluster,
        Stores(cluster) as found,
    ):
        await cluster.put((UserKey(b"%d" % i), b"value") for i in range(5))
        for region in cluster.topology.regions:
            cluster.topology.transfer_leader(region.id, 1)
        yield found


@pytest.fixture
def faults(stores: Stores) -> Faults:
    return stores.cluster.faults


async def get(stores: Stores, key: bytes) -> kvrpcpb_pb2.RawGetResponse:
    return await stores.lead(methods.KV_RAW_GET, kvrpcpb_pb2.RawGetRequest(key=key), key)


async def backup(stores: Stores) -> list[brpb_pb2.BackupResponse]:
    return [r async for r in stores.stream(methods.BACKUP, backup_request(stores, None), 1)]


async def broken_backup(stores: Stores, code: grpc.StatusCode) -> int:
    """How many messages came before the status."""
    found: list[brpb_pb2.BackupResponse] = []

    async def read() -> None:
        async for response in stores.stream(methods.BACKUP, backup_request(stores, None), 1):
            found.append(response)

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await read()
    assert error.value.code() is code
    return len(found)


# --- region errors ---


@pytest.mark.parametrize("kind", REGION_ERRORS)
async def test_every_region_error_is_told_with_what_belongs_to_it(stores: Stores, faults: Faults, kind: str) -> None:
    rule = faults.add(Rule(kind=Kind.REGION_ERROR, error=kind, method=methods.KV_RAW_GET, times=1))
    error = (await get(stores, b"2")).region_error
    assert region_error_kind(error) == kind
    assert error.message
    detail = getattr(error, kind)
    if kind not in ("message", "not_leader") and detail.DESCRIPTOR.fields:
        assert detail.ListFields(), f"{kind} says nothing"
    if hasattr(detail, "region_id"):
        assert detail.region_id == stores.region(b"2").id
    assert (await get(stores, b"2")).value == b"value"
    assert rule.hits == 1


def test_every_field_of_the_error_is_a_kind() -> None:
    assert set(REGION_ERRORS) == set(errorpb_pb2.Error.DESCRIPTOR.fields_by_name)
    assert len(REGION_ERRORS) == 22


async def test_a_refusing_store_may_name_another_peer_or_none(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.REGION_ERROR, error="not_leader", method="RawGet"))
    leaders = {(await get(stores, b"1")).region_error.not_leader.leader.store_id for _ in range(20)}
    assert leaders == {0, 2}


CARRIERS = [m for m in METHODS.values() if carries(m.response, Kind.REGION_ERROR.value) and not m.client_streams]


def where(response: Any) -> errorpb_pb2.Error:
    """The place of a region error, by the protocol's definitions."""
    if isinstance(response, brpb_pb2.BackupResponse):
        return response.error.region_error
    if isinstance(response, import_sstpb_pb2.DownloadResponse):
        return response.error.store_error
    if isinstance(response, import_sstpb_pb2.IngestResponse):
        return response.error
    found: errorpb_pb2.Error = response.region_error
    return found


@pytest.mark.parametrize("method", CARRIERS, ids=lambda m: m.name)
async def test_each_call_carries_region_errors_in_its_place(
    stores: Stores, faults: Faults, method: Method[Any, Any]
) -> None:
    faults.add(Rule(kind=Kind.REGION_ERROR, error="server_is_busy", method=method))
    if method.server_streams:
        answers = await backup(stores)
        assert len(answers) == 5
    else:
        answers = [await stores.call(method, method.request(), 1)]
    for answer in answers:
        assert where(answer).HasField("server_is_busy")
        assert where(answer).message


def test_the_calls_that_carry_region_errors_are_those_of_stores() -> None:
    names = {m.name for m in METHODS.values() if carries(m.response, Kind.REGION_ERROR.value)}
    stores = {m.name for m in METHODS.values() if m.service in ("tikvpb.Tikv", "backup.Backup")}
    assert names == stores - {"GetStoreSafeTS"} | {"Download", "Ingest", "MultiIngest"}


async def test_a_batch_carries_region_errors_in_each_answer(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.REGION_ERROR, error="epoch_not_match", method=methods.KV_BATCH_COMMANDS))
    get_ = kvrpcpb_pb2.RawGetRequest(key=b"1", context=stores.context(b"1"))
    requests = [tikvpb_pb2.BatchCommandsRequest.Request(RawGet=get_)] * 2
    method = methods.KV_BATCH_COMMANDS
    stream = stores.channel(1).stream_stream(method.path, method.request.SerializeToString, method.response.FromString)(
        timeout=30
    )
    await stream.write(tikvpb_pb2.BatchCommandsRequest(requests=requests, request_ids=[1, 2]))
    await stream.done_writing()
    answers = [(number, each) async for r in stream for number, each in zip(r.request_ids, r.responses, strict=True)]
    assert sorted(number for number, _ in answers) == [1, 2]
    assert all(each.RawGet.region_error.HasField("epoch_not_match") for _, each in answers)


async def test_a_backup_says_which_piece_the_region_error_is_about(stores: Stores, faults: Faults) -> None:
    region = stores.region(b"2")
    faults.add(Rule(kind=Kind.REGION_ERROR, error="epoch_not_match", method="backup", region_id=region.id))
    refused = [r for r in await backup(stores) if r.HasField("error")]
    assert [(r.start_key, r.end_key) for r in refused] == [(b"2", b"3")]
    told = refused[0].error.region_error.epoch_not_match.current_regions
    assert [r.id for r in told] == [region.id]


# --- other errors in answers ---


async def test_errors_in_words(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.TEXT_ERROR, details="said so"))
    assert (await get(stores, b"1")).error == "said so"
    request = import_sstpb_pb2.DownloadRequest()
    assert (await stores.call(methods.IMPORT_DOWNLOAD, request, 1)).error.message == "said so"
    assert {r.error.msg for r in await backup(stores)} == {"said so"}
    # The ingest has no place for words of its own.
    assert (await stores.call(methods.IMPORT_MULTI_INGEST, import_sstpb_pb2.MultiIngestRequest(), 1)).error.message != (
        "said so"
    )


@pytest.mark.parametrize("error", PD_ERRORS)
async def test_errors_in_pds_header(stores: Stores, faults: Faults, error: str) -> None:
    faults.add(Rule(kind=Kind.PD_ERROR, error=error, details="why", times=2))
    async with PdCaller(stores.cluster) as pd:
        for method in (methods.PD_GET_REGION, methods.PD_GET_ALL_STORES):
            header = (await pd.call(method, method.request())).header
            assert header.cluster_id == stores.cluster.topology.cluster_id
            assert (header.error.type, header.error.message) == (pdpb_pb2.ErrorType.Value(error), "why")
        assert not (await pd.call(methods.PD_GET_REGION, pdpb_pb2.GetRegionRequest())).header.HasField("error")


# --- statuses, time, loss, repetition ---


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_statuses(stores: Stores, faults: Faults, code: grpc.StatusCode) -> None:
    faults.add(Rule(kind=Kind.STATUS, code=code, details="so it is", method="RawGet"))
    with pytest.raises(grpc.aio.AioRpcError, match="so it is") as error:
        await get(stores, b"1")
    assert error.value.code() is code


async def test_a_lost_answer_is_of_work_that_was_done(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.LOST, code=grpc.StatusCode.DEADLINE_EXCEEDED))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await stores.call(methods.IMPORT_SWITCH_MODE, IMPORT, 2)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert stores.cluster.import_modes() == {1: False, 2: True}
    assert await broken_backup(stores, grpc.StatusCode.DEADLINE_EXCEEDED) == 0


async def test_late_work_is_done_when_the_client_has_been_told_off(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.LATE, method=methods.IMPORT_SWITCH_MODE, delay_s=0.2, times=1))
    with pytest.raises(grpc.aio.AioRpcError):
        await stores.call(methods.IMPORT_SWITCH_MODE, IMPORT, 2)
    assert not any(stores.cluster.import_modes().values())
    await stores.call(methods.IMPORT_SWITCH_MODE, NORMAL, 2)
    await until(lambda: stores.cluster.import_modes()[2])


async def test_late_work_is_dropped_when_the_rules_are_cleared(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.LATE, method=methods.IMPORT_SWITCH_MODE, delay_s=0.3, times=1))
    with pytest.raises(grpc.aio.AioRpcError):
        await stores.call(methods.IMPORT_SWITCH_MODE, IMPORT, 2)
    await asyncio.to_thread(faults.clear)
    await asyncio.sleep(0.5)
    assert not any(stores.cluster.import_modes().values())


async def test_late_work_without_anybody_to_tell_fails_in_silence(stores: Stores, faults: Faults) -> None:
    # The handler wants to end the call with a status of its own: the cluster id is wrong.
    faults.add(Rule(kind=Kind.LATE, method=methods.PD_GET_STORE, delay_s=0.0))
    request = pdpb_pb2.GetStoreRequest(header=pdpb_pb2.RequestHeader(cluster_id=1), store_id=1)
    async with PdCaller(stores.cluster) as pd:
        with pytest.raises(grpc.aio.AioRpcError, match="injected"):
            await pd.call(methods.PD_GET_STORE, request)
        await asyncio.sleep(0.05)
        faults.clear()
        assert (await pd.call(methods.PD_GET_MEMBERS, MEMBERS)).members


async def test_a_call_is_carried_out_twice_but_answered_once(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.DUPLICATE, method="RawCompareAndSwap", times=1))
    request = kvrpcpb_pb2.RawCASRequest(key=b"1", value=b"new", previous_value=b"value")
    answer = await stores.lead(methods.KV_RAW_COMPARE_AND_SWAP, request, b"1")
    # Carried out once more, the swap finds its own value; the answer is that of the first time.
    assert (answer.succeed, answer.previous_value) == (True, b"value")
    assert (await get(stores, b"1")).value == b"new"


async def test_a_repetition_may_come_later(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.DUPLICATE, method="SwitchMode", delay_s=0.3, times=1))
    await stores.call(methods.IMPORT_SWITCH_MODE, IMPORT, 1)
    await stores.call(methods.IMPORT_SWITCH_MODE, NORMAL, 1)
    assert not any(stores.cluster.import_modes().values())
    await until(lambda: stores.cluster.import_modes()[1])


async def test_slow_answers_are_of_work_that_was_done(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.SLOW, delay_s=0.5, method=methods.IMPORT_SWITCH_MODE))
    call = asyncio.create_task(stores.call(methods.IMPORT_SWITCH_MODE, IMPORT, 1))
    await until(lambda: stores.cluster.import_modes()[1])
    assert not call.done()
    await call


async def test_delays_come_before_the_work_and_before_another_fault(stores: Stores, faults: Faults) -> None:
    wait = faults.add(Rule(kind=Kind.DELAY, delay_s=0.4, method=methods.IMPORT_SWITCH_MODE))
    refuse = faults.add(Rule(kind=Kind.STATUS, method=methods.IMPORT_SWITCH_MODE, store_id=2))
    calls = [asyncio.create_task(stores.call(methods.IMPORT_SWITCH_MODE, IMPORT, i)) for i in (1, 2)]
    await until(lambda: wait.hits == 2)
    assert not any(stores.cluster.import_modes().values())
    done, refused = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done, import_sstpb_pb2.SwitchModeResponse)
    assert isinstance(refused, grpc.aio.AioRpcError)
    assert refuse.hits == 1


async def test_a_call_hangs_until_the_client_gives_up_or_for_a_time(stores: Stores, faults: Faults) -> None:
    hang = faults.add(Rule(kind=Kind.HANG, method="GetMembers", times=1))
    async with PdCaller(stores.cluster) as pd:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await pd.make(methods.PD_GET_MEMBERS)(MEMBERS, timeout=0.3)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        hang.times = 2
        hang.delay_s = 0.1
        with pytest.raises(grpc.aio.AioRpcError, match="injected"):
            await pd.call(methods.PD_GET_MEMBERS, MEMBERS)
    stuck = faults.add(Rule(kind=Kind.HANG, method="backup"))
    stream = stores.stream(methods.BACKUP, backup_request(stores, None), 1)
    read = asyncio.ensure_future(stream.read())
    await until(lambda: stuck.hits)
    await asyncio.sleep(0.1)
    assert not read.done()
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read


async def test_pd_tells_of_regions_as_they_were(stores: Stores, faults: Faults) -> None:
    def request() -> pdpb_pb2.GetRegionRequest:
        return pdpb_pb2.GetRegionRequest(region_key=b"2")

    stale = faults.add(Rule(kind=Kind.STALE, method="GetRegion", after=1, times=1))
    async with PdCaller(stores.cluster) as pd:
        old = await pd.call(methods.PD_GET_REGION, request())
        stores.cluster.topology.transfer_leader(old.region.id, 2)
        again = await pd.call(methods.PD_GET_REGION, request())
        assert (again.leader.store_id, stale.hits) == (1, 1)
        assert (await pd.call(methods.PD_GET_REGION, request())).leader.store_id == 2


# --- streams ---


@pytest.mark.parametrize("messages", [0, 2, 5])
async def test_a_stream_breaks_after_some_messages(stores: Stores, faults: Faults, messages: int) -> None:
    rule = faults.add(Rule(kind=Kind.RESET, method="backup", messages=messages, code=grpc.StatusCode.INTERNAL))
    assert await broken_backup(stores, grpc.StatusCode.INTERNAL) == messages
    assert await broken_backup(stores, grpc.StatusCode.INTERNAL) == messages
    rule.disarm()
    assert len(await backup(stores)) == 5


async def test_a_stream_may_break_at_any_message(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.RESET, method="backup", after=7))
    assert len(await backup(stores)) == 5
    assert await broken_backup(stores, grpc.StatusCode.UNAVAILABLE) == 2


async def test_a_stream_ends_early_as_if_nothing_were_wrong(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.CUT, messages=3))
    assert len(await backup(stores)) == 3


async def test_a_stream_says_nothing_more(stores: Stores, faults: Faults) -> None:
    faults.add(Rule(kind=Kind.SILENT, method="backup", messages=2, times=1))
    stream = stores.stream(methods.BACKUP, backup_request(stores, None), 1)
    for _ in range(2):
        await stream.read()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(stream.read())), 0.3)
    stream.cancel()
    faults.clear()
    faults.add(Rule(kind=Kind.SILENT, method="backup", messages=2, delay_s=0.1))
    assert len(await backup(stores)) == 5


async def test_messages_get_lost_and_come_twice(stores: Stores, faults: Faults) -> None:
    ids = [region.id for region in stores.cluster.topology.regions]
    faults.add(Rule(kind=Kind.DROP, region_id=ids[1]))
    faults.add(Rule(kind=Kind.DUPLICATE, method="backup", region_id=ids[3]))
    starts = sorted(r.start_key for r in await backup(stores))
    assert starts == [b"", b"2", b"3", b"3", b"4"]


async def test_messages_come_slowly(stores: Stores, faults: Faults) -> None:
    slow = faults.add(Rule(kind=Kind.SLOW, method="backup", delay_s=0.01))
    assert len(await backup(stores)) == 5
    assert slow.hits == 5


async def test_timestamps_stall_on_a_stream_that_is_open_already(stores: Stores, faults: Faults) -> None:
    async with PdCaller(stores.cluster) as pd:
        stream = pd.make(methods.PD_TSO)(timeout=20)
        header = pdpb_pb2.RequestHeader(cluster_id=stores.cluster.topology.cluster_id)
        request = pdpb_pb2.TsoRequest(header=header, count=1)
        await stream.write(request)
        assert (await stream.read()).count == 1
        stall = faults.add(Rule(kind=Kind.SILENT, method=methods.PD_TSO, delay_s=0.3))
        await stream.write(request)
        await until(lambda: stall.hits)
        assert (await stream.read()).count == 1
        faults.clear()
        faults.add(Rule(kind=Kind.RESET, method=methods.PD_TSO, details="not leader"))
        await stream.write(request)
        with pytest.raises(grpc.aio.AioRpcError, match="not leader"):
            await stream.read()


# --- whom it strikes ---


async def test_one_region_of_one_store(stores: Stores, faults: Faults) -> None:
    region = stores.region(b"2")
    rule = faults.add(Rule(kind=Kind.STATUS, method="/tikvpb.Tikv/Raw*", store_id=1, region_id=region.id))
    for key in (b"1", b"3"):
        assert (await get(stores, key)).value == b"value"
    with pytest.raises(grpc.aio.AioRpcError):
        await get(stores, b"2")
    stores.cluster.topology.transfer_leader(region.id, 2)
    assert (await get(stores, b"2")).value == b"value"
    assert rule.hits == 1


@pytest.mark.parametrize(
    ("method", "make"),
    [
        (methods.PD_GET_REGION, lambda r: pdpb_pb2.GetRegionRequest(region_key=r.start)),
        (methods.PD_GET_REGION_BY_ID, lambda r: pdpb_pb2.GetRegionByIDRequest(region_id=r.id)),
        (methods.PD_SCAN_REGIONS, lambda r: pdpb_pb2.ScanRegionsRequest(start_key=r.start, end_key=r.end)),
        (
            methods.PD_BATCH_SCAN_REGIONS,
            lambda r: pdpb_pb2.BatchScanRegionsRequest(
                ranges=[pdpb_pb2.KeyRange(start_key=r.start, end_key=r.start + b"\0")]
            ),
        ),
        (methods.PD_SCATTER_REGION, lambda r: pdpb_pb2.ScatterRegionRequest(regions_id=[r.id])),
        (methods.PD_GET_OPERATOR, lambda r: pdpb_pb2.GetOperatorRequest(region_id=r.id)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_what_pd_is_asked_of_a_region(
    stores: Stores, faults: Faults, method: Method[Any, Any], make: Any
) -> None:
    other, struck = stores.region(b"1"), stores.region(b"2")
    faults.add(Rule(kind=Kind.STATUS, region_id=struck.id))
    async with PdCaller(stores.cluster) as pd:
        await pd.call(method, make(other))
        with pytest.raises(grpc.aio.AioRpcError, match="injected"):
            await pd.call(method, make(struck))


@pytest.mark.parametrize("method", [methods.IMPORT_DOWNLOAD, methods.IMPORT_INGEST, methods.IMPORT_MULTI_INGEST])
async def test_what_a_store_takes_in_for_a_region(stores: Stores, faults: Faults, method: Method[Any, Any]) -> None:
    faults.add(Rule(kind=Kind.STATUS, region_id=stores.region(b"2").id))
    for key, struck in ((b"1", False), (b"2", True)):
        request = method.request()
        if method is methods.IMPORT_MULTI_INGEST:
            request.context.region_id = stores.region(key).id
        else:
            request.sst.region_id = stores.region(key).id
        try:
            await stores.call(method, request, 1)
        except grpc.aio.AioRpcError:
            assert struck
        else:
            assert not struck


async def test_a_backup_of_a_region_is_struck_in_any_api_version(tmp_path: Path) -> None:
    async with (
        EmbeddedCluster(data_dir=tmp_path, api_version=ApiVersion.V2, stores=1, split_keys=SPLITS) as cluster,
        Stores(cluster) as stores,
    ):
        region = stores.region(b"2")
        faults = cluster.faults
        dropped = faults.add(Rule(kind=Kind.DROP, region_id=region.id))
        found = await backup(stores)
        assert (dropped.hits, stores.api_key(b"2") in {r.start_key for r in found}) == (1, False)
        faults.clear()
        faults.add(Rule(kind=Kind.STATUS, method="backup", region_id=region.id))
        await broken_backup(stores, grpc.StatusCode.UNAVAILABLE)
        request = backup_request(stores, None, end_key=stores.api_key(b"1"))
        assert [r async for r in stores.stream(methods.BACKUP, request, 1)]


async def test_one_member_of_pd(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1, pd_members=2) as cluster:
        cluster.faults.add(Rule(kind=Kind.STATUS, pd_member="pd-1", details="not leader"))
        async with PdCaller(cluster) as pd:
            assert (await pd.call(methods.PD_GET_MEMBERS, MEMBERS)).members
        async with PdCaller(cluster, address=cluster.pd_addresses[1]) as pd:
            with pytest.raises(grpc.aio.AioRpcError, match="not leader"):
                await pd.call(methods.PD_GET_MEMBERS, MEMBERS)


async def test_work_put_off_is_dropped_when_the_cluster_stops(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1) as cluster, Stores(cluster) as stores:
        cluster.faults.add(Rule(kind=Kind.DUPLICATE, method="SwitchMode", delay_s=3600))
        await stores.call(methods.IMPORT_SWITCH_MODE, IMPORT, 1)
