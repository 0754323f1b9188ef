from __future__ import annotations

from pathlib import Path

import grpc

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.proto import kvrpcpb_pb2, methods, tikvpb_pb2
from airflow_provider_tikvbr.tikv.keys import UserKey
from tests.embedded.stores import Stores

METHOD = methods.KV_BATCH_COMMANDS
Request = tikvpb_pb2.BatchCommandsRequest.Request


async def test_each_request_of_a_stream_is_answered_once(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1) as cluster, Stores(cluster) as stores:
        await cluster.put((UserKey(b"k%03d" % i), b"v%d" % i) for i in range(100))
        context = stores.context(b"k")
        stream = stores.channel(1).stream_stream(
            METHOD.path, METHOD.request.SerializeToString, METHOD.response.FromString
        )()
        late = Request(Empty=tikvpb_pb2.BatchCommandsEmptyRequest(test_id=77, delay_time=300))
        gets = [Request(RawGet=kvrpcpb_pb2.RawGetRequest(context=context, key=b"k%03d" % i)) for i in range(100)]
        scan = Request(
            RawScan=kvrpcpb_pb2.RawScanRequest(context=context, start_key=b"k050", end_key=b"k053", limit=10)
        )
        await stream.write(tikvpb_pb2.BatchCommandsRequest(requests=[late, *gets[:50]], request_ids=range(500, 551)))
        await stream.write(tikvpb_pb2.BatchCommandsRequest(requests=[*gets[50:], scan], request_ids=range(551, 602)))
        put = Request(RawPut=kvrpcpb_pb2.RawPutRequest(context=context, key=b"new", value=b"v"))
        await stream.write(tikvpb_pb2.BatchCommandsRequest(requests=[put], request_ids=[602]))
        await stream.done_writing()
        answers = []
        async for batch in stream:
            assert len(batch.responses) == len(batch.request_ids) > 0
            answers += list(zip(batch.request_ids, batch.responses, strict=True))
        assert sorted(i for i, _ in answers) == list(range(500, 603))
        # Nobody waits for a slow one.
        assert answers[-1][0] == 500
        assert answers[-1][1].Empty.test_id == 77
        found = dict(answers)
        assert [found[501 + i].RawGet.value for i in range(100)] == [b"v%d" % i for i in range(100)]
        assert [p.key for p in found[601].RawScan.kvs] == [b"k050", b"k051", b"k052"]
        assert found[602].RawPut == kvrpcpb_pb2.RawPutResponse()
        assert await stream.code() == grpc.StatusCode.OK


async def test_refusals_come_in_the_answer(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1) as cluster, Stores(cluster) as stores:
        stream = stores.channel(1).stream_stream(
            METHOD.path, METHOD.request.SerializeToString, METHOD.response.FromString
        )()
        wrong = stores.context(b"k")
        wrong.api_version = kvrpcpb_pb2.V2
        lost = stores.context(b"k")
        lost.region_id = 4711
        requests = [
            Request(RawGet=kvrpcpb_pb2.RawGetRequest(context=wrong, key=b"k")),
            Request(RawDelete=kvrpcpb_pb2.RawDeleteRequest(context=lost, key=b"k")),
        ]
        found: dict[int, tikvpb_pb2.BatchCommandsResponse.Response] = {}
        await stream.write(tikvpb_pb2.BatchCommandsRequest(requests=requests, request_ids=[1, 2]))
        while len(found) < 2:
            batch = await stream.read()
            found.update(zip(batch.request_ids, batch.responses, strict=True))
        stream.cancel()
        assert found[1].RawGet.error.startswith("Api version in request does not match")
        assert found[2].RawDelete.region_error.region_not_found.region_id == 4711


async def test_the_cluster_stops_while_streams_are_open(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, stores=1) as cluster, Stores(cluster) as stores:
        stream = stores.channel(1).stream_stream(
            METHOD.path, METHOD.request.SerializeToString, METHOD.response.FromString
        )()
        endless = Request(Empty=tikvpb_pb2.BatchCommandsEmptyRequest(delay_time=3_600_000))
        await stream.write(tikvpb_pb2.BatchCommandsRequest(requests=[endless], request_ids=[1]))
        await stream.write(
            tikvpb_pb2.BatchCommandsRequest(
                requests=[Request(RawGet=kvrpcpb_pb2.RawGetRequest(context=stores.context(b"k"), key=b"k"))],
                request_ids=[2],
            )
        )
        assert list((await stream.read()).request_ids) == [2]
        await cluster.stop()
        assert await stream.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
