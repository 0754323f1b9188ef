from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.engine import DataKey
from airflow_provider_tikvbr.embedded.limits import RateLimiter
from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.embedded.sst_writer import write_sst
from airflow_provider_tikvbr.proto import brpb_pb2, import_sstpb_pb2, kvrpcpb_pb2, methods
from airflow_provider_tikvbr.rawbr.meta import read_meta
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher, CipherMethod
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, RegionKey, UserKey
from tests.embedded.stores import Stores, held_up
from tests.support import golden
from tests.support.waiting import until

NAME = "1/one_default.sst"
KEYS = [b"%03d" % i for i in range(1000)]


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    """Three V1 stores with three copies of two regions that border on 500."""
    async with (
        EmbeddedCluster(data_dir=tmp_path / "data", stores=3, replicas=3, split_keys=[UserKey(b"500")]) as cluster,
        Stores(cluster) as found,
    ):
        yield found


@pytest.fixture
def backup(tmp_path: Path) -> brpb_pb2.StorageBackend:
    """A directory with one file of the keys 000 to 999."""
    write_sst(tmp_path / "backup" / NAME, ((DataKey(b"z" + k), b"value " + k) for k in KEYS))
    return brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(tmp_path / "backup")))


def sst_meta(region: RegionState, *, api: int = 0, start: bytes = b"", end: bytes = b"") -> Any:
    return import_sstpb_pb2.SSTMeta(
        uuid=uuid.uuid4().bytes,
        range=import_sstpb_pb2.Range(start=max(region.start, start), end=end or region.end),
        cf_name="default",
        region_id=region.id,
        region_epoch=region.epoch(),
        end_key_exclusive=True,
        api_version=api,  # type: ignore[arg-type]
    )


async def download(
    stores: Stores, backup: brpb_pb2.StorageBackend, sst: Any, store_id: int, **fields: Any
) -> import_sstpb_pb2.DownloadResponse:
    request = import_sstpb_pb2.DownloadRequest(
        **{"sst": sst, "name": NAME, "storage_backend": backup, "is_raw_kv": True, **fields}
    )
    return await stores.call(methods.IMPORT_DOWNLOAD, request, store_id)


async def ingest(stores: Stores, region: RegionState, *ssts: Any) -> import_sstpb_pb2.IngestResponse:
    context = kvrpcpb_pb2.Context(region_id=region.id, region_epoch=region.epoch(), peer=region.leader.message())
    request = import_sstpb_pb2.MultiIngestRequest(context=context, ssts=ssts)
    return await stores.call(methods.IMPORT_MULTI_INGEST, request, region.leader_store_id)


async def downloaded(stores: Stores, backup: Any, region: RegionState, store_ids: list[int]) -> Any:
    """The meta of a file that some stores have."""
    sst = sst_meta(region)
    found = sst_meta(region)
    found.CopyFrom(sst)
    for store_id in store_ids:
        found.range.CopyFrom((await download(stores, backup, sst, store_id)).range)
    return found


@pytest.mark.parametrize(
    "backup_name",
    [b for b in golden.backups() if b.name in ("full", "aes256", "range_to_v2", "snappy", "lz4")],
    ids=str,
)
async def test_files_of_real_tikv_are_taken_in(backup_name: golden.Golden, tmp_path: Path) -> None:
    storage = LocalStorage(path=backup_name.path)
    key = bytes.fromhex(golden.AES256_KEY)
    cipher = Cipher(method=CipherMethod.AES256_CTR, key=key) if backup_name.crypter else PLAINTEXT
    meta = await read_meta(storage, cipher)
    api = backup_name.api_version
    codec = KeyCodec(api)
    # Split where no file ends, so that files are cut in two.
    split_keys = [UserKey(b"idx"), UserKey(b"user:00000800")]
    async with (
        EmbeddedCluster(data_dir=tmp_path, api_version=api, stores=3, replicas=3, split_keys=split_keys) as cluster,
        Stores(cluster) as stores,
    ):
        for file in meta.files:
            wanted = codec.region_key(ApiKey(file.start_key)), codec.region_key(ApiKey(file.end_key))
            for region in list(cluster.topology.regions):
                if (region.end and region.end <= wanted[0]) or (wanted[1] and wanted[1] <= region.start):
                    continue
                sst = sst_meta(region, api=int(api))
                sst.length = file.size
                sst.cipher_iv = file.cipher_iv
                answers = [
                    await download(stores, storage.backend(), sst, s, name=file.name, cipher_info=cipher.message())
                    for s in region.store_ids
                ]
                assert not any(a.HasField("error") for a in answers), answers
                assert answers[1:] == answers[:-1]
                if answers[0].is_empty:
                    continue
                sst.range.CopyFrom(answers[0].range)
                assert region.keys.contains(RegionKey(sst.range.start))
                assert region.keys.contains(RegionKey(sst.range.end))
                assert not (await ingest(stores, region, sst)).HasField("error")
        expected = [(p.key, p.value) for p in backup_name.pairs]
        for store_id in cluster.engines:
            found = await cluster.data.pairs(store_id=store_id)
            assert [(p.key, p.value) for p in found] == expected
        assert any(p.expire for p in found) == any(p.ttl for p in backup_name.pairs)


async def test_a_file_wholly_inside_is_kept_as_it_is(stores: Stores, backup: Any, tmp_path: Path) -> None:
    region = stores.region(b"000")
    small = [(DataKey(b"z" + k), b"v") for k in KEYS[:10]]
    write_sst(tmp_path / "backup" / "small_default.sst", small)
    answer = await download(stores, backup, sst_meta(region), 1, name="small_default.sst")
    assert (answer.range.start, answer.range.end) == (b"000", b"009")
    (kept,) = stores.cluster.engines[1].import_dir.iterdir()
    assert kept.read_bytes() == (tmp_path / "backup" / "small_default.sst").read_bytes()


async def test_downloads_are_clipped(stores: Stores, backup: Any) -> None:
    first, second = stores.cluster.topology.regions
    for region, start, end, span in (
        (first, b"", b"", (b"000", b"499")),
        (second, b"", b"", (b"500", b"999")),
        (first, b"0995", b"102", (b"100", b"101")),
        (second, b"x", b"", None),
    ):
        answer = await download(stores, backup, sst_meta(region, start=start, end=end), 1)
        assert not answer.error.message
        assert answer.is_empty == (span is None)
        assert (answer.range.start, answer.range.end) == (span or (b"", b""))
    inclusive = sst_meta(first, start=b"100", end=b"102")
    inclusive.end_key_exclusive = False
    assert (await download(stores, backup, inclusive, 1)).range.end == b"102"


async def test_the_same_download_again_gives_the_same_answer(stores: Stores, backup: Any, tmp_path: Path) -> None:
    region = stores.region(b"000")
    sst = sst_meta(region)
    answers = await asyncio.gather(*(download(stores, backup, sst, 1) for _ in range(5)))
    shutil.rmtree(tmp_path / "backup")  # it is not read again
    answers.append(await download(stores, backup, sst, 1))
    assert answers == [import_sstpb_pb2.DownloadResponse(range=import_sstpb_pb2.Range(start=b"000", end=b"499"))] * 6
    assert len(list(stores.cluster.engines[1].import_dir.iterdir())) == 1


async def test_one_uuid_means_one_file(stores: Stores, backup: Any) -> None:
    await stores.call(
        methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT, import_sstpb_pb2.SetDownloadSpeedLimitRequest(speed_limit=1), 1
    )
    sst = sst_meta(stores.region(b"000"))
    first = asyncio.ensure_future(download(stores, backup, sst, 1))
    limiter = stores.cluster.engines[1].download_limiter
    await until(lambda: limiter._changed is not None)
    sst.range.end = b"100"
    assert (await download(stores, backup, sst, 1)).error.message == "mismatch request type"
    # The limit holds the first one up until it is taken away.
    assert not first.done()
    await stores.call(methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT, import_sstpb_pb2.SetDownloadSpeedLimitRequest(), 1)
    assert (await first).range.end == b"499"


async def test_the_speed_limit_counts_what_is_read(
    stores: Stores, backup: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spent: list[tuple[int, int]] = []

    async def spend(self: RateLimiter, size: int) -> None:
        spent.append((self.rate, size))

    monkeypatch.setattr(RateLimiter, "spend", spend)
    limit = import_sstpb_pb2.SetDownloadSpeedLimitRequest(speed_limit=7777)
    await stores.call(methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT, limit, 1)
    await download(stores, backup, sst_meta(stores.region(b"000")), 1)
    assert spent == [(7777, (tmp_path / "backup" / NAME).stat().st_size)]


async def test_downloads_that_cannot_be(stores: Stores, backup: Any, tmp_path: Path) -> None:
    region = stores.region(b"000")
    bad_uuid = sst_meta(region)
    bad_uuid.uuid = b"short"
    bad_cf = sst_meta(region)
    bad_cf.cf_name = "../../../etc"
    rewrite = import_sstpb_pb2.RewriteRule(old_key_prefix=b"a", new_key_prefix=b"b")
    missing = brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(tmp_path / "missing")))
    for sst, fields, text in (
        (bad_uuid, {}, "invalid uuid"),
        (bad_cf, {}, "invalid cf name"),
        (sst_meta(region), {"rewrite_rule": rewrite}, "rewrite"),
        (sst_meta(region), {"name": "../secret"}, "Cannot read"),
        (sst_meta(region), {"storage_backend": missing}, f"Cannot read local://{tmp_path}/missing/1/one_default.sst"),
        (sst_meta(region), {"storage_backend": brpb_pb2.StorageBackend(noop=brpb_pb2.Noop())}, "Cannot read noop://"),
    ):
        answer = await download(stores, backup, sst, 1, **fields)
        assert text in answer.error.message
    assert list(stores.cluster.engines[1].import_dir.iterdir()) == []


async def test_every_block_is_verified(stores: Stores, backup: Any, tmp_path: Path) -> None:
    path = tmp_path / "backup" / "big_default.sst"
    write_sst(path, ((DataKey(b"z0%06d" % i), os.urandom(100)) for i in range(4000)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    answer = await download(stores, backup, sst_meta(stores.region(b"0")), 1, name=path.name)
    assert "Corruption: block checksum mismatch" in answer.error.message
    assert list(stores.cluster.engines[1].import_dir.iterdir()) == []


async def test_an_ingest_is_taken_once(stores: Stores, backup: Any) -> None:
    region = stores.region(b"000")
    await stores.cluster.put([(UserKey(b"000"), b"older"), (UserKey(b"0001"), b"kept")])
    sst = await downloaded(stores, backup, region, region.store_ids)
    context = kvrpcpb_pb2.Context(region_id=region.id, region_epoch=region.epoch(), peer=region.leader.message())
    single = import_sstpb_pb2.IngestRequest(context=context, sst=sst)
    first = await stores.call(methods.IMPORT_INGEST, single, region.leader_store_id)
    assert first == import_sstpb_pb2.IngestResponse()
    pairs = {p.key: p.value for p in await stores.cluster.pairs()}
    assert len(pairs) == 501
    assert (pairs[UserKey(b"000")], pairs[UserKey(b"0001")]) == (b"value 000", b"kept")
    again = await stores.call(methods.IMPORT_INGEST, single, region.leader_store_id)
    assert again.error.HasField("stale_command")
    assert not stores.cluster.topology.stores[region.leader_store_id].death


async def test_every_peer_applies_an_ingest_although_the_client_goes(stores: Stores, backup: Any) -> None:
    region = stores.region(b"000")
    sst = await downloaded(stores, backup, region, region.store_ids)
    follower = next(s for s in region.store_ids if s != region.leader_store_id)
    topology = stores.cluster.topology
    async with held_up(stores.cluster.engines[follower]):
        call = asyncio.ensure_future(ingest(stores, region, sst))
        await until(lambda: topology.is_pinned(region))
        call.cancel()
        await asyncio.wait({call})
        # The store learns of it soon; a second request of the same client comes after that.
        await stores.call(methods.IMPORT_SWITCH_MODE, import_sstpb_pb2.SwitchModeRequest(), region.leader_store_id)
    await until(lambda: not topology.is_pinned(region))
    for store_id in region.store_ids:
        assert len(await stores.cluster.data.pairs(store_id=store_id)) == 500


async def test_ingests_that_are_refused(stores: Stores, backup: Any) -> None:
    region, other = stores.cluster.topology.regions
    stores.cluster.topology.transfer_leader(other.id, region.leader_store_id)
    sst = await downloaded(stores, backup, region, region.store_ids)
    wrong_region = await ingest(stores, other, sst)
    assert wrong_region.error.region_not_found.region_id == region.id
    sst = await downloaded(stores, backup, region, region.store_ids)
    sst.range.end = b"500"
    assert (await ingest(stores, region, sst)).error.key_not_in_region.key == b"500"
    sst = await downloaded(stores, backup, region, region.store_ids)
    region.conf_ver += 1
    # The context's version is current, so only the file's own epoch tells.
    refused = await ingest(stores, region, sst)
    assert refused.error.epoch_not_match.current_regions[0].id == region.id
    assert await stores.cluster.pairs() == []


@pytest.mark.parametrize(
    ("cluster_api", "file_api", "fits"),
    [
        (ApiVersion.V1, 0, True),
        (ApiVersion.V1, 1, False),
        (ApiVersion.V1, 2, False),
        (ApiVersion.V1TTL, 1, True),
        (ApiVersion.V1TTL, 0, True),
        (ApiVersion.V1TTL, 2, False),
        (ApiVersion.V2, 2, True),
        (ApiVersion.V2, 0, False),
        (ApiVersion.V2, 1, False),
    ],
)
async def test_files_of_other_api_versions(
    tmp_path: Path, cluster_api: ApiVersion, file_api: int, *, fits: bool
) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, api_version=cluster_api, stores=1) as cluster, Stores(cluster) as s:
        region = cluster.topology.regions[0]
        if fits:
            assert (await ingest(s, region, sst_meta(region, api=file_api))).error.HasField("stale_command")
            return
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ingest(s, region, sst_meta(region, api=file_api))
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNKNOWN, "IncompatibleApiVersion")


async def test_a_peer_without_the_file_takes_its_store_down(stores: Stores, backup: Any) -> None:
    region = stores.region(b"000")
    victim = next(s for s in region.store_ids if s != region.leader_store_id)
    others = [s for s in region.store_ids if s != victim]
    sst = await downloaded(stores, backup, region, others)
    assert not (await ingest(stores, region, sst)).HasField("error")
    topology = stores.cluster.topology
    await until(lambda: not topology.stores[victim].running)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stores.call(methods.IMPORT_SWITCH_MODE, import_sstpb_pb2.SwitchModeRequest(), victim)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(RuntimeError, match="cannot start"):
        await stores.cluster.start_store(victim)
    for store_id in others:
        assert len(await stores.cluster.data.pairs(store_id=store_id)) == 500


async def test_a_store_that_is_down_dies_at_its_next_start(stores: Stores, backup: Any) -> None:
    region = stores.region(b"000")
    down = next(s for s in region.store_ids if s != region.leader_store_id)
    await stores.cluster.stop_store(down)
    sst = await downloaded(stores, backup, region, [s for s in region.store_ids if s != down])
    assert not (await ingest(stores, region, sst)).HasField("error")
    record = stores.cluster.topology.stores[down]
    assert not record.death
    await stores.cluster.start_store(down)
    await until(lambda: not record.running)
    assert f"region {region.id} ingested" in record.death
    with pytest.raises(RuntimeError, match="cannot start"):
        await stores.cluster.start_store(down)


async def test_a_store_that_was_down_catches_up_if_it_has_the_file(stores: Stores, backup: Any) -> None:
    region = stores.region(b"000")
    down = next(s for s in region.store_ids if s != region.leader_store_id)
    sst = await downloaded(stores, backup, region, region.store_ids)
    await stores.cluster.stop_store(down)
    assert not (await ingest(stores, region, sst)).HasField("error")
    await stores.cluster.start_store(down)
    assert len(await stores.cluster.data.pairs(store_id=down)) == 500


async def test_import_mode_and_limit_are_forgotten_at_a_restart(stores: Stores) -> None:
    engine = stores.cluster.engines[1]
    on = import_sstpb_pb2.SwitchModeRequest(mode=import_sstpb_pb2.Import)
    await stores.call(methods.IMPORT_SWITCH_MODE, on, 1)
    limit = import_sstpb_pb2.SetDownloadSpeedLimitRequest(speed_limit=5)
    await stores.call(methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT, limit, 1)
    assert (engine.import_mode.is_on, engine.download_limiter.rate) == (True, 5)
    await stores.cluster.stop_store(1)
    await stores.cluster.start_store(1)
    assert (engine.import_mode.is_on, engine.download_limiter.rate) == (False, 0)


async def test_files_that_can_never_be_ingested_are_removed(stores: Stores, backup: Any) -> None:
    region, other = stores.cluster.topology.regions
    for at in (region, other):
        await download(stores, backup, sst_meta(at), 1)
    stores.cluster.split([UserKey(b"250")])
    directory = stores.cluster.engines[1].import_dir
    seen = []
    for mode in (import_sstpb_pb2.Import, import_sstpb_pb2.Normal):
        await stores.call(methods.IMPORT_SWITCH_MODE, import_sstpb_pb2.SwitchModeRequest(mode=mode), 1)
        seen.append(sorted(int(p.name.split("_")[1]) for p in directory.iterdir()))
    assert seen == [sorted([region.id, other.id]), [other.id]]


async def test_import_mode_is_left_when_asked(stores: Stores) -> None:
    seen = []
    for mode in (import_sstpb_pb2.Import, import_sstpb_pb2.Normal):
        await stores.call(methods.IMPORT_SWITCH_MODE, import_sstpb_pb2.SwitchModeRequest(mode=mode), 2)
        seen.append([e.import_mode.is_on for e in stores.cluster.engines.values()])
    assert seen == [[False, True, False], [False, False, False]]


async def test_the_cluster_stops_during_downloads(stores: Stores, backup: Any) -> None:
    limit = import_sstpb_pb2.SetDownloadSpeedLimitRequest(speed_limit=1)
    await stores.call(methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT, limit, 1)
    region = stores.region(b"000")
    waiting = [asyncio.ensure_future(download(stores, backup, sst_meta(region), 1)) for _ in range(20)]
    limiter = stores.cluster.engines[1].download_limiter
    await until(lambda: limiter._changed is not None)
    await stores.cluster.stop()
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, grpc.aio.AioRpcError)
