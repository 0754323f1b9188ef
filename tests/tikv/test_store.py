from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from airflow_provider_tikvbr import exceptions as e
from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.proto import brpb_pb2, errorpb_pb2, import_sstpb_pb2, kvrpcpb_pb2, metapb_pb2, methods
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyRange, UserKey
from airflow_provider_tikvbr.tikv.model import Region, Store
from airflow_provider_tikvbr.tikv.options import ClusterOptions, GrpcOptions
from airflow_provider_tikvbr.tikv.store import StoreClient
from tests.tikv.servers import serving

PAIRS = [(UserKey(b"%03d" % n), b"value %d" % n) for n in range(100)]
EVERY_ERROR = [field.name for field in errorpb_pb2.Error.DESCRIPTOR.fields if field.name != "message"]


@pytest.fixture(params=[ApiVersion.V1, ApiVersion.V1TTL, ApiVersion.V2], ids=lambda version: version.name)
def api_version(request: pytest.FixtureRequest) -> ApiVersion:
    return ApiVersion(request.param)


@pytest.fixture
async def embedded(tmp_path: Path, api_version: ApiVersion) -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(
        data_dir=tmp_path / "cluster", api_version=api_version, replicas=3, split_keys=[UserKey(b"050")]
    ) as running:
        await running.put(PAIRS)
        yield running


@pytest.fixture
async def cluster(embedded: EmbeddedCluster) -> AsyncIterator[Cluster]:
    async with await Cluster.connect(ClusterOptions(pd=(embedded.pd_address,))) as connected:
        yield connected


class Place:
    """A region, and the client of the store that leads it."""

    def __init__(self, cluster: Cluster, region: Region, client: StoreClient) -> None:
        if region.leader is None:
            raise ValueError("no leader")
        self.cluster = cluster
        self.region = region
        self.peer = region.leader
        self.client = client

    def key(self, text: bytes) -> ApiKey:
        return self.cluster.codec.api_key(UserKey(text))

    def keys(self, start: bytes, end: bytes) -> KeyRange[ApiKey]:
        return self.cluster.codec.api_range(KeyRange(UserKey(start), UserKey(end)))


@pytest.fixture
async def place(cluster: Cluster) -> Place:
    return await find(cluster, b"")


async def find(cluster: Cluster, text: bytes) -> Place:
    region = await cluster.regions.locate(cluster.codec.region_key(cluster.codec.api_key(UserKey(text))))
    if region.leader is None:
        raise ValueError("no leader")
    return Place(cluster, region, await cluster.client(region.leader.store_id))


# --- raw calls ---


async def test_checksum_of_a_region(place: Place, embedded: EmbeddedCluster) -> None:
    answer = await place.client.raw_checksum(
        place.region, place.peer, place.keys(b"", b"050"), place.cluster.api_version
    )
    expected = await embedded.checksum(KeyRange(UserKey(b""), UserKey(b"050")))
    assert (answer.checksum, answer.total_kvs, answer.total_bytes) == (
        expected.crc64xor,
        expected.kvs,
        expected.bytes,
    )
    # What reaches beyond the region is not read.
    wide = await place.client.raw_checksum(place.region, place.peer, place.keys(b"", b""), place.cluster.api_version)
    assert wide == answer


async def test_hundreds_of_checksums_at_once(place: Place) -> None:
    answers = await asyncio.gather(
        *(
            place.client.raw_checksum(
                place.region, place.peer, place.keys(b"%03d" % (n % 50), b"050"), place.cluster.api_version
            )
            for n in range(300)
        )
    )
    assert [a.total_kvs for a in answers] == [50 - n % 50 for n in range(300)]


async def test_scan_of_a_region(place: Place) -> None:
    scan = place.client.raw_scan
    found = await scan(
        place.region, place.peer, place.keys(b"010", b""), limit=5, api_version=place.cluster.api_version
    )
    assert found == [(place.key(k), v) for k, v in PAIRS[10:15]]
    found = await scan(
        place.region, place.peer, place.keys(b"047", b"099"), limit=500, api_version=place.cluster.api_version
    )
    assert [k for k, _ in found] == [place.key(b"047"), place.key(b"048"), place.key(b"049")]
    found = await scan(
        place.region,
        place.peer,
        place.keys(b"048", b"049"),
        limit=500,
        api_version=place.cluster.api_version,
        key_only=True,
    )
    assert found == [(place.key(b"048"), b"")]


async def test_another_api_version_is_refused(place: Place) -> None:
    other = ApiVersion.V1 if place.cluster.api_version is ApiVersion.V2 else ApiVersion.V2
    with pytest.raises(e.ApiVersionError, match="refused RawChecksum for region"):
        await place.client.raw_checksum(place.region, place.peer, place.keys(b"", b"050"), other)
    with pytest.raises(e.ApiVersionError, match="refused RawScan for region"):
        await place.client.raw_scan(place.region, place.peer, place.keys(b"", b"050"), limit=5, api_version=other)


async def test_a_changed_region_is_told(place: Place, embedded: EmbeddedCluster) -> None:
    embedded.split([UserKey(b"020")])
    with pytest.raises(e.EpochNotMatchError) as caught:
        await place.client.raw_checksum(place.region, place.peer, place.keys(b"", b"050"), place.cluster.api_version)
    place.cluster.regions.update(caught.value.current_regions)
    again = await find(place.cluster, b"030")
    assert again.region.version == place.region.version + 1
    answer = await again.client.raw_checksum(
        again.region, again.peer, place.keys(b"020", b"050"), place.cluster.api_version
    )
    assert answer.total_kvs == 30


async def test_a_leader_elsewhere_is_told(place: Place, embedded: EmbeddedCluster) -> None:
    target = next(peer for peer in place.region.peers if peer.store_id != place.peer.store_id)
    embedded.topology.transfer_leader(place.region.id, target.store_id)
    with pytest.raises(e.NotLeaderError) as caught:
        await place.client.raw_checksum(place.region, place.peer, place.keys(b"", b"050"), place.cluster.api_version)
    assert caught.value.leader == target
    place.cluster.regions.set_leader(place.region.id, target)
    again = await find(place.cluster, b"")
    assert again.client.store.id == target.store_id
    await again.client.raw_checksum(again.region, again.peer, place.keys(b"", b"050"), place.cluster.api_version)


# --- splits ---


async def test_a_split_gives_every_piece_with_its_leader(place: Place, embedded: EmbeddedCluster) -> None:
    keys = [place.key(b"010"), place.key(b"020")]
    pieces = await place.client.split_region(place.region, keys)
    codec = place.cluster.codec
    assert [p.start for p in pieces] == [place.region.start, *(codec.region_key(key) for key in keys)]
    assert pieces[-1].id == place.region.id
    assert pieces[-1].end == place.region.end
    for piece in pieces:
        state = embedded.topology.by_id(piece.id)
        assert state is not None
        assert piece.leader is not None
        assert piece.leader.store_id == state.leader_store_id == place.client.store.id
        assert piece.version == place.region.version + 2


async def test_a_split_at_its_own_border_is_refused(place: Place) -> None:
    with pytest.raises(e.RegionRefusedError):
        await place.client.split_region(place.region, [place.key(b"050")])


async def test_a_region_without_a_peer_here_is_not_split(place: Place) -> None:
    region = replace(place.region, peers=(), leader=None)
    with pytest.raises(e.ProtocolError, match="has no peer on store"):
        await place.client.split_region(region, [place.key(b"010")])


# --- backup, download, ingest ---


def backup_request(place: Place, directory: Path) -> brpb_pb2.BackupRequest:
    keys = place.keys(b"", b"")
    version = place.cluster.api_version
    return brpb_pb2.BackupRequest(
        cluster_id=place.cluster.cluster_id,
        start_key=keys.start,
        end_key=keys.end,
        is_raw_kv=True,
        cf="default",
        dst_api_version=kvrpcpb_pb2.APIVersion.Name(version.value),
        storage_backend=brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(directory))),
    )


async def test_backup_download_and_ingest(place: Place, embedded: EmbeddedCluster, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    request = backup_request(place, tmp_path / "backup")
    files: list[brpb_pb2.File] = []
    async with aclosing(place.client.backup(request, idle_timeout_s=30)) as responses:
        async for response in responses:
            assert not response.HasField("error")
            files += response.files
    before = await embedded.checksum()
    assert 0 < sum(file.total_kvs for file in files) <= before.kvs

    file = next(f for f in files if f.start_key == place.keys(b"", b"050").start)
    region = place.region
    sst = import_sstpb_pb2.SSTMeta(
        uuid=uuid.uuid4().bytes,
        range=import_sstpb_pb2.Range(start=region.start, end=region.end),
        length=file.size,
        cf_name="default",
        region_id=region.id,
        region_epoch=region.epoch,
        end_key_exclusive=True,
        api_version=request.dst_api_version,
        cipher_iv=file.cipher_iv,
    )
    download = import_sstpb_pb2.DownloadRequest(
        sst=sst, name=file.name, storage_backend=request.storage_backend, is_raw_kv=True
    )
    clients = [await place.cluster.client(peer.store_id) for peer in region.peers]
    spans = await asyncio.gather(*(client.download(download) for client in clients))
    assert not any(span.is_empty for span in spans)
    sst.range.CopyFrom(spans[0].range)
    await place.client.multi_ingest(region.context(place.peer), [sst])
    assert await embedded.checksum() == before
    with pytest.raises(e.StaleCommandError):
        await place.client.multi_ingest(region.context(place.peer), [sst])
    with pytest.raises(e.StaleCommandError):
        await place.client.ingest(region.context(place.peer), sst)

    download.name = "missing_default.sst"
    download.sst.uuid = uuid.uuid4().bytes
    with pytest.raises(e.BackupFileError, match=r"could not fetch the backup file missing_default\.sst") as caught:
        await place.client.download(download)
    assert (caught.value.file, caught.value.store_id) == ("missing_default.sst", place.client.store.id)


async def test_a_failed_download_may_pass_later(place: Place, embedded: EmbeddedCluster) -> None:
    answer = import_sstpb_pb2.DownloadResponse(error=import_sstpb_pb2.Error(message="put object timeout"))
    embedded.faults.fail(methods.IMPORT_DOWNLOAD, response=answer)
    with pytest.raises(e.DownloadFailedError, match="put object timeout"):
        await place.client.download(import_sstpb_pb2.DownloadRequest(name="x"))
    busy = import_sstpb_pb2.Error(store_error=errorpb_pb2.Error(server_is_busy=errorpb_pb2.ServerIsBusy(reason="b")))
    embedded.faults.fail(methods.IMPORT_DOWNLOAD, response=import_sstpb_pb2.DownloadResponse(error=busy))
    with pytest.raises(e.ServerIsBusyError):
        await place.client.download(import_sstpb_pb2.DownloadRequest(name="x"))


async def test_import_mode_and_speed_limit(place: Place, embedded: EmbeddedCluster) -> None:
    engine = embedded.engines[place.client.store.id]
    modes = []
    for wanted in (True, False):
        await place.client.switch_mode(import_mode=wanted)
        modes.append(engine.import_mode.is_on)
    assert modes == [True, False]
    await place.client.set_download_speed_limit(5 << 20)
    assert engine.download_limiter.rate == 5 << 20
    await place.client.set_download_speed_limit(0)
    assert engine.download_limiter.rate == 0


# --- every region error, from every call ---

REGION = Region.of(
    metapb_pb2.Region(id=7, peers=[metapb_pb2.Peer(id=9, store_id=4)]), metapb_pb2.Peer(id=9, store_id=4)
)
PEER = REGION.peers[0]
KEYS = KeyRange(ApiKey(b"a"), ApiKey(b"b"))

CALLS: dict[str, tuple[Method[Any, Any], str, Callable[[StoreClient], Awaitable[Any]]]] = {
    "checksum": (
        methods.KV_RAW_CHECKSUM,
        "region_error",
        lambda client: client.raw_checksum(REGION, PEER, KEYS, ApiVersion.V1),
    ),
    "scan": (
        methods.KV_RAW_SCAN,
        "region_error",
        lambda client: client.raw_scan(REGION, PEER, KEYS, limit=5, api_version=ApiVersion.V1),
    ),
    "split": (methods.KV_SPLIT_REGION, "region_error", lambda client: client.split_region(REGION, [ApiKey(b"a")])),
    "multi_ingest": (
        methods.IMPORT_MULTI_INGEST,
        "error",
        lambda client: client.multi_ingest(REGION.context(PEER), [import_sstpb_pb2.SSTMeta()]),
    ),
    "ingest": (
        methods.IMPORT_INGEST,
        "error",
        lambda client: client.ingest(REGION.context(PEER), import_sstpb_pb2.SSTMeta()),
    ),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_store_that_answers_each_region_error(call: str) -> None:
    method, field, ask = CALLS[call]
    pending: list[Message] = []

    async def answer(_request: Any, _context: Any) -> Message:
        return pending.pop()

    async with serving({method: answer}) as address:
        client = StoreClient(Store(id=4, address=address), tls=None, options=GrpcOptions())
        for name in EVERY_ERROR:
            error = errorpb_pb2.Error(message="some text")
            getattr(error, name).SetInParent()
            response = method.response()
            getattr(response, field).CopyFrom(error)
            pending.append(response)
            with pytest.raises((e.RegionError, e.RegionRefusedError)) as caught:
                await ask(client)
            assert caught.value.attrs()["kind"] == name
            assert (caught.value.region_id, caught.value.store_id, caught.value.address) == (7, 4, address)
        await client.close()


async def test_data_calls_go_to_the_peer_address() -> None:
    seen: list[str] = []

    def noting(name: str, response: Message) -> Callable[[Any, Any], Any]:
        async def answer(_request: Any, _context: Any) -> Message:
            seen.append(name)
            return response

        return answer

    def table(where: str) -> dict[Method[Any, Any], Any]:
        return {
            method: noting(f"{where} {method.name}", method.response())
            for method in (
                methods.IMPORT_DOWNLOAD,
                methods.IMPORT_MULTI_INGEST,
                methods.IMPORT_SWITCH_MODE,
                methods.KV_RAW_SCAN,
            )
        }

    async with serving(table("clients")) as address, serving(table("peers")) as peer_address:
        store = Store(id=4, address=address, peer_address=peer_address)
        client = StoreClient(store, tls=None, options=GrpcOptions())
        await client.download(import_sstpb_pb2.DownloadRequest())
        await client.multi_ingest(REGION.context(PEER), [])
        await client.switch_mode(import_mode=True)
        await client.raw_scan(REGION, PEER, KEYS, limit=5, api_version=ApiVersion.V1)
        await client.close()
    assert seen == ["peers Download", "peers MultiIngest", "clients SwitchMode", "clients RawScan"]
