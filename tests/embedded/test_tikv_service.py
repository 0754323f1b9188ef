from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.proto import kvrpcpb_pb2, methods
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.embedded.stores import Stores, held_up
from tests.support.waiting import until

SPLITS = (b"g", b"p")
ALL = list(ApiVersion)
WITH_TTL = [ApiVersion.V1TTL, ApiVersion.V2]


@pytest.fixture
async def stores(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    """Three stores with three copies of regions that border on ``g`` and ``p``."""
    async with (
        EmbeddedCluster(
            data_dir=tmp_path,
            api_version=request.param,
            stores=3,
            replicas=3,
            split_keys=[UserKey(k) for k in SPLITS],
        ) as cluster,
        Stores(cluster) as found,
    ):
        yield found


def on(*versions: ApiVersion) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("stores", versions, indirect=True, ids=lambda v: v.name)


async def put(stores: Stores, key: bytes, value: bytes = b"v", **fields: Any) -> kvrpcpb_pb2.RawPutResponse:
    request = kvrpcpb_pb2.RawPutRequest(key=stores.api_key(key), value=value, **fields)
    return await stores.lead(methods.KV_RAW_PUT, request, key)


async def get(stores: Stores, key: bytes) -> bytes | None:
    response = await stores.lead(methods.KV_RAW_GET, kvrpcpb_pb2.RawGetRequest(key=stores.api_key(key)), key)
    assert not response.error, response
    assert not response.HasField("region_error"), response
    return None if response.not_found else response.value


async def scan(stores: Stores, start: bytes, end: bytes, **fields: Any) -> list[bytes]:
    """The user keys that a scan finds, sent to the region of its start key."""
    end_key = stores.api_key(end) if end else stores.cluster.topology.codec.prefix_end
    request = kvrpcpb_pb2.RawScanRequest(start_key=stores.api_key(start), end_key=end_key, **{"limit": 100, **fields})
    response = await stores.lead(methods.KV_RAW_SCAN, request, start)
    assert not response.HasField("region_error"), response
    return [k.key[len(stores.cluster.topology.codec.prefix) :] for k in response.kvs]


@on(*ALL)
async def test_what_is_written_is_read(stores: Stores) -> None:
    for key in (b"a", b"h", b"z"):
        assert await get(stores, key) is None
        assert await put(stores, key, b"value of " + key) == kvrpcpb_pb2.RawPutResponse()
        assert await put(stores, key, b"new value of " + key) == kvrpcpb_pb2.RawPutResponse()
        assert await get(stores, key) == b"new value of " + key
    request = kvrpcpb_pb2.RawDeleteRequest(key=stores.api_key(b"h"))
    assert await stores.lead(methods.KV_RAW_DELETE, request, b"h") == kvrpcpb_pb2.RawDeleteResponse()
    assert await get(stores, b"h") is None
    assert [p.key for p in await stores.cluster.pairs()] == [b"a", b"z"]


@on(*ALL)
async def test_every_peer_has_what_the_leader_has(stores: Stores) -> None:
    for key in (b"a", b"h", b"z"):
        await put(stores, key, b"value")
    request = kvrpcpb_pb2.RawBatchDeleteRequest(keys=[stores.api_key(b"h")])
    await stores.lead(methods.KV_RAW_BATCH_DELETE, request, b"h")
    for store_id in stores.cluster.engines:
        assert [p.key for p in await stores.cluster.data.pairs(store_id=store_id)] == [b"a", b"z"]


@on(*ALL)
async def test_batches(stores: Stores) -> None:
    keys = [stores.api_key(k) for k in (b"a", b"b", b"c")]
    pairs = [kvrpcpb_pb2.KvPair(key=k, value=b"v" + k) for k in keys[:2]]
    await stores.lead(methods.KV_RAW_BATCH_PUT, kvrpcpb_pb2.RawBatchPutRequest(pairs=pairs), b"a")
    found = await stores.lead(methods.KV_RAW_BATCH_GET, kvrpcpb_pb2.RawBatchGetRequest(keys=keys[::-1]), b"a")
    assert list(found.pairs) == pairs[::-1]


@on(*ALL)
async def test_scans_are_clipped_to_the_region(stores: Stores) -> None:
    await stores.cluster.put((UserKey(bytes([c])), b"v") for c in b"abcghijpqr")
    assert await scan(stores, b"a", b"") == [b"a", b"b", b"c"]
    assert await scan(stores, b"b", b"c") == [b"b"]
    assert await scan(stores, b"g", b"z") == [b"g", b"h", b"i", b"j"]
    assert await scan(stores, b"h", b"z", limit=2) == [b"h", b"i"]
    assert await scan(stores, b"q", b"", limit=0) == []
    assert await scan(stores, b"x", b"") == []
    # In reverse the start is the upper end and does not count; the end does.
    assert await scan(stores, b"j", b"a", reverse=True) == [b"i", b"h", b"g"]
    assert await scan(stores, b"r\x00", b"q", reverse=True) == [b"r", b"q"]
    assert await scan(stores, b"r\x00", b"a", reverse=True, limit=1) == [b"r"]


@on(*ALL)
async def test_scans_start_inside_the_region(stores: Stores) -> None:
    request = kvrpcpb_pb2.RawScanRequest(start_key=stores.api_key(b"a"), end_key=stores.api_key(b"z"), limit=10)
    response = await stores.lead(methods.KV_RAW_SCAN, request, b"h")
    assert response.region_error.key_not_in_region.key == stores.region_key(b"a")
    assert response.region_error.key_not_in_region.start_key == stores.region(b"h").start


@on(*ALL)
async def test_key_only_scans_leave_the_values_out(stores: Stores) -> None:
    await put(stores, b"a", b"value")
    for key_only, value in ((False, b"value"), (True, b"")):
        request = kvrpcpb_pb2.RawScanRequest(
            start_key=stores.api_key(b"a"), end_key=stores.api_key(b"b"), limit=9, key_only=key_only
        )
        response = await stores.lead(methods.KV_RAW_SCAN, request, b"a")
        assert [p.value for p in response.kvs] == [value]


@on(*ALL)
async def test_batch_scans(stores: Stores) -> None:
    await stores.cluster.put((UserKey(bytes([c])), b"v") for c in b"abcdef")

    async def found(*ranges: tuple[bytes, bytes], reverse: bool = False) -> Any:
        request = kvrpcpb_pb2.RawBatchScanRequest(
            ranges=[
                kvrpcpb_pb2.KeyRange(start_key=stores.api_key(s), end_key=stores.api_key(e) if e else b"")
                for s, e in ranges
            ],
            each_limit=2,
            reverse=reverse,
        )
        response = await stores.lead(methods.KV_RAW_BATCH_SCAN, request, b"a")
        return response.kvs[0].error.abort or b"".join(p.key[-1:] for p in response.kvs)

    assert await found((b"a", b"d"), (b"d", b"e")) == b"abd"
    assert await found((b"e", b"b"), (b"c", b"a"), reverse=True) == b"dcba"
    assert "Invalid KeyRanges" in await found((b"d", b"a"))
    open_ended = await found((b"a", b""), (b"c", b""))
    if stores.cluster.api_version is ApiVersion.V2:
        assert "InvalidKeyRangeMode { cmd: raw_batch_scan" in open_ended
    else:
        assert open_ended == b"abcd"


@on(*ALL)
async def test_delete_range_deletes_for_good(stores: Stores) -> None:
    await stores.cluster.put((UserKey(bytes([c])), b"v") for c in b"abcdefgh")
    request = kvrpcpb_pb2.RawDeleteRangeRequest(start_key=stores.api_key(b"b"), end_key=stores.api_key(b"g"))
    response = await stores.lead(methods.KV_RAW_DELETE_RANGE, request, b"a")
    assert response == kvrpcpb_pb2.RawDeleteRangeResponse()
    for store_id, engine in stores.cluster.engines.items():
        assert [p.key for p in await stores.cluster.data.pairs(store_id=store_id)] == [b"a", b"g", b"h"]
        assert engine.get(stores.cluster.topology.codec.engine_key(stores.api_key(b"c"))) is None
    request.end_key = stores.api_key(b"h")
    response = await stores.lead(methods.KV_RAW_DELETE_RANGE, request, b"a")
    assert response.region_error.HasField("key_not_in_region")
    request.end_key = stores.api_key(b"a")
    assert "invalid delete range" in (await stores.lead(methods.KV_RAW_DELETE_RANGE, request, b"a")).error


@on(*ALL)
async def test_writes_stay_in_the_region(stores: Stores) -> None:
    request = kvrpcpb_pb2.RawPutRequest(key=stores.api_key(b"z"), value=b"v")
    response = await stores.lead(methods.KV_RAW_PUT, request, b"a")
    assert response.region_error.key_not_in_region.key == stores.region_key(b"z")
    assert await stores.cluster.pairs() == []


@on(*ALL)
async def test_compare_and_swap(stores: Stores) -> None:
    async def swap(**fields: Any) -> tuple[bool, bytes | None]:
        request = kvrpcpb_pb2.RawCASRequest(key=stores.api_key(b"k"), **fields)
        response = await stores.lead(methods.KV_RAW_COMPARE_AND_SWAP, request, b"k")
        return response.succeed, None if response.previous_not_exist else response.previous_value

    assert await swap(value=b"1", previous_value=b"0") == (False, None)
    assert await swap(value=b"1", previous_not_exist=True) == (True, None)
    assert await swap(value=b"2", previous_not_exist=True) == (False, b"1")
    assert await swap(value=b"2", previous_value=b"1") == (True, b"1")
    assert await get(stores, b"k") == b"2"
    assert await swap(previous_value=b"1", delete=True) == (False, b"2")
    assert await swap(previous_value=b"2", delete=True) == (True, b"2")
    assert await get(stores, b"k") is None


@on(*WITH_TTL)
async def test_time_to_live(stores: Stores) -> None:
    async def ttl(key: bytes) -> Any:
        request = kvrpcpb_pb2.RawGetKeyTTLRequest(key=stores.api_key(key))
        return await stores.lead(methods.KV_RAW_GET_KEY_TTL, request, key)

    await put(stores, b"a", ttl=1000)
    await put(stores, b"b")
    assert 900 < (await ttl(b"a")).ttl <= 1000
    assert (await ttl(b"b")) == kvrpcpb_pb2.RawGetKeyTTLResponse()
    assert (await ttl(b"c")).not_found
    pairs = [kvrpcpb_pb2.KvPair(key=stores.api_key(k), value=b"v") for k in (b"d", b"e")]
    batch = kvrpcpb_pb2.RawBatchPutRequest
    for ttls, expected in (([50], (50, 50)), ([50, 0], (50, 0)), ([], (0, 0))):
        await stores.lead(methods.KV_RAW_BATCH_PUT, batch(pairs=pairs, ttls=ttls), b"d")
        assert [(await ttl(k)).ttl for k in (b"d", b"e")] == [pytest.approx(t, abs=20) for t in expected]
    response = await stores.lead(methods.KV_RAW_BATCH_PUT, batch(pairs=pairs, ttls=[1, 2, 3]), b"d")
    assert response.error == "The length of ttls does not equal to the length of pairs"


@on(ApiVersion.V1)
async def test_no_time_to_live_without_ttl(stores: Stores) -> None:
    assert "ttl is not enabled" in (await put(stores, b"a", ttl=1)).error
    request = kvrpcpb_pb2.RawGetKeyTTLRequest(key=b"a")
    assert "ttl is not enabled" in (await stores.lead(methods.KV_RAW_GET_KEY_TTL, request, b"a")).error


@on(ApiVersion.V1, ApiVersion.V1TTL)
async def test_column_families(stores: Stores) -> None:
    await put(stores, b"a", b"of lock", cf="lock")
    await put(stores, b"a", b"of default", cf="default")
    for cf, value in (("", b"of default"), ("default", b"of default"), ("lock", b"of lock"), ("write", b"")):
        request = kvrpcpb_pb2.RawGetRequest(key=b"a", cf=cf)
        assert (await stores.lead(methods.KV_RAW_GET, request, b"a")).value == value
    assert (await put(stores, b"a", cf="nope")).error == "invalid cf name: nope"


@on(ApiVersion.V2)
async def test_v2_knows_no_column_families_and_raw_keys_only(stores: Stores) -> None:
    assert (await put(stores, b"a", cf="default")).error == "cf is deprecated in API V2, cf name: default"
    request = kvrpcpb_pb2.RawPutRequest(key=b"x\x00\x00\x00a", value=b"v")
    response = await stores.lead(methods.KV_RAW_PUT, request, b"a")
    assert response.error.startswith("Key mode mismatched with the request mode, cmd: raw_put, storage: V2")


@on(*ALL)
async def test_keys_have_a_longest_length(stores: Stores) -> None:
    prefix = len(stores.cluster.topology.codec.prefix)
    longest = b"k" * (8192 - prefix)
    assert not (await put(stores, longest)).error
    assert (await put(stores, longest + b"k")).error == "max key size exceeded, size: 8193, limit: 8192"


@on(*ALL)
async def test_checksums_are_those_of_the_region(stores: Stores) -> None:
    await stores.cluster.put((UserKey(bytes([c])), bytes([c]) * 100) for c in b"abcghijpqr")
    codec = stores.cluster.topology.codec
    numbers = [0, 0, 0]
    for start in (b"", *SPLITS):
        whole = kvrpcpb_pb2.KeyRange(start_key=stores.api_key(start), end_key=codec.prefix_end)
        request = kvrpcpb_pb2.RawChecksumRequest(ranges=[whole])
        response = await stores.lead(methods.KV_RAW_CHECKSUM, request, start)
        numbers[0] ^= response.checksum
        numbers[1] += response.total_kvs
        numbers[2] += response.total_bytes
    digest = await stores.cluster.checksum()
    assert numbers == [digest.crc64xor, digest.kvs, digest.bytes]
    assert digest.kvs == 10
    assert digest.bytes == 10 * (len(codec.prefix) + 101)


@on(ApiVersion.V1)
async def test_peers_stay_where_they_are_while_they_are_read(stores: Stores) -> None:
    await put(stores, b"a")
    region = stores.region(b"a")
    topology = stores.cluster.topology
    keys = kvrpcpb_pb2.KeyRange(start_key=b"", end_key=b"g")
    checksum = kvrpcpb_pb2.RawChecksumRequest(ranges=[keys])
    for work in (lambda: stores.lead(methods.KV_RAW_CHECKSUM, checksum, b"a"), lambda: scan(stores, b"", b"g")):
        async with held_up(stores.cluster.engines[region.leader_store_id]):
            reading = asyncio.ensure_future(work())
            await until(lambda: topology.is_pinned(region))
        await reading
        assert not topology.is_pinned(region)


@on(*ALL)
async def test_splits(stores: Stores) -> None:
    await stores.cluster.put((UserKey(bytes([c])), b"v") for c in b"hijkl")
    region = stores.region(b"h")
    before, version = region.id, region.version
    request = kvrpcpb_pb2.SplitRegionRequest(split_keys=[stores.api_key(k) for k in (b"k", b"i", b"g")], is_raw_kv=True)
    request.context.CopyFrom(stores.context(b"h"))
    request.context.api_version = kvrpcpb_pb2.V1  # not looked at
    response = await stores.call(methods.KV_SPLIT_REGION, request, region.leader_store_id)
    borders = [stores.region_key(k) for k in (b"g", b"i", b"k", b"p")]
    assert [(r.start_key, r.end_key) for r in response.regions] == list(itertools.pairwise(borders))
    assert {r.region_epoch.version for r in response.regions} == {version + 2}
    assert [r.id == before for r in response.regions] == [False, False, True]
    assert not response.HasField("left")
    assert await scan(stores, b"i", b"z") == [b"i", b"j"]
    again = await stores.call(methods.KV_SPLIT_REGION, request, region.leader_store_id)
    assert again.region_error.HasField("epoch_not_match")
    edges = kvrpcpb_pb2.SplitRegionRequest(split_keys=[stores.api_key(b"k")], is_raw_kv=True)
    refused = await stores.lead(methods.KV_SPLIT_REGION, edges, b"k")
    assert "no valid key found for split" in refused.region_error.message


@on(ApiVersion.V1)
async def test_a_client_that_missed_splits_is_told_of_the_new_regions(stores: Stores) -> None:
    old = stores.context(b"h")
    stores.cluster.split([UserKey(b"i"), UserKey(b"k")])
    region = stores.region(b"k")
    request = kvrpcpb_pb2.RawGetRequest(context=old, key=b"h")
    response = await stores.call(methods.KV_RAW_GET, request, region.leader_store_id)
    told = response.region_error.epoch_not_match.current_regions
    assert [(r.start_key, r.end_key) for r in told] == [(b"k", b"p"), (b"i", b"k"), (b"g", b"i")]


@on(ApiVersion.V1)
async def test_a_region_without_majority_takes_no_writes(stores: Stores) -> None:
    region = stores.region(b"a")
    followers = [s for s in region.store_ids if s != region.leader_store_id]
    await stores.cluster.stop_store(followers[0])
    assert not (await put(stores, b"a")).HasField("region_error")
    stores.cluster.topology.stores[followers[1]].running = False
    refused = (await put(stores, b"a")).region_error
    assert refused.not_leader.region_id == region.id
    assert not refused.not_leader.HasField("leader")  # it has stepped down, and nobody can be elected
    request = kvrpcpb_pb2.RawGetRequest(context=stores.context(b"a"), key=b"a")
    read = await stores.call(methods.KV_RAW_GET, request, region.leader_store_id)
    assert read.region_error.HasField("not_leader")
    stores.cluster.topology.stores[followers[1]].running = True
    assert not (await put(stores, b"a")).HasField("region_error")


@on(ApiVersion.V2)
async def test_safe_ts_is_a_fresh_timestamp(stores: Stores) -> None:
    before = stores.cluster.topology.tso()
    response = await stores.call(methods.KV_GET_STORE_SAFE_TS, kvrpcpb_pb2.StoreSafeTSRequest(), 1)
    assert before < response.safe_ts < stores.cluster.topology.tso()
