from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.limits import RateLimiter
from airflow_provider_tikvbr.proto import brpb_pb2, encryptionpb_pb2, kvrpcpb_pb2, methods
from airflow_provider_tikvbr.storage.cipher import Cipher, CipherMethod
from airflow_provider_tikvbr.storage.sst import SstReader
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyCodec, UserKey
from airflow_provider_tikvbr.tikv.values import decode_value
from tests.embedded.stores import Stores, held_up
from tests.support.waiting import until

SPLITS = [UserKey(b"%02d" % i) for i in range(10, 100, 10)]
ALL = list(ApiVersion)
V1, V1TTL, V2 = ALL
CONVERSIONS = [(V1, V1), (V1TTL, V1TTL), (V2, V2), (V1, V2), (V1TTL, V2)]


@pytest.fixture
async def stores(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stores]:
    """Three stores, ten regions; region 70.. is empty; keys 00 to 99, deleted and overwritten ones among them."""
    async with (
        EmbeddedCluster(
            data_dir=tmp_path / "data", api_version=request.param, stores=3, replicas=3, split_keys=SPLITS
        ) as cluster,
        Stores(cluster) as found,
    ):
        ttl = 0 if request.param is V1 else 5000
        await cluster.put((UserKey(b"%02d" % i), b"old") for i in range(70))
        await cluster.put((UserKey(b"%02d" % i), b"value %d" % i, ttl * (i % 2)) for i in range(60))
        await cluster.put((UserKey(b"%02d" % i), b"value %d" % i) for i in range(80, 100))
        for i in range(60, 70):
            request_ = kvrpcpb_pb2.RawDeleteRequest(key=found.api_key(b"%02d" % i))
            await found.lead(methods.KV_RAW_DELETE, request_, b"%02d" % i)
        yield found


def on(*versions: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("stores", versions, indirect=True, ids=lambda v: v.name)


def backup_request(stores: Stores, target: Path | None, **fields: Any) -> brpb_pb2.BackupRequest:
    codec = stores.cluster.topology.codec
    backend = brpb_pb2.StorageBackend(noop=brpb_pb2.Noop())
    if target is not None:
        target.mkdir(exist_ok=True)
        backend = brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(target)))
    return brpb_pb2.BackupRequest(
        **{
            "start_key": codec.prefix,
            "end_key": codec.prefix_end,
            "is_raw_kv": True,
            "cf": "default",
            "storage_backend": backend,
            "dst_api_version": int(stores.cluster.api_version),
            "compression_type": brpb_pb2.ZSTD,
            "cipher_info": brpb_pb2.CipherInfo(cipher_type=encryptionpb_pb2.PLAINTEXT),
            **fields,
        }
    )


async def back_up(
    stores: Stores, request: brpb_pb2.BackupRequest, store_ids: Iterable[int] = ()
) -> list[brpb_pb2.BackupResponse]:
    """What all stores, or some, answer."""
    found: list[brpb_pb2.BackupResponse] = []
    for store_id in store_ids or stores.cluster.engines:
        found += [r async for r in stores.stream(methods.BACKUP, request, store_id)]
    return found


@pytest.mark.parametrize(
    ("stores", "target"), CONVERSIONS, indirect=["stores"], ids=[f"{s.name}-{t.name}" for s, t in CONVERSIONS]
)
async def test_a_backup_holds_every_live_pair(stores: Stores, target: ApiVersion, tmp_path: Path) -> None:
    source = stores.cluster.api_version
    directory = tmp_path / "backup"
    answers = await back_up(stores, backup_request(stores, directory, dst_api_version=int(target)))
    assert not any(a.HasField("error") for a in answers)
    assert {a.api_version for a in answers} == {int(target)}
    answers.sort(key=lambda a: a.start_key)
    codec = stores.cluster.topology.codec
    borders = [codec.prefix, *(codec.api_key(k) for k in SPLITS), codec.prefix_end]
    assert [(a.start_key, a.end_key) for a in answers] == list(zip(borders, borders[1:], strict=False))  # noqa: RUF007
    # Regions without live pairs are told, but have no file.
    assert [len(a.files) for a in answers] == [1, 1, 1, 1, 1, 1, 0, 0, 1, 1]

    crc = kvs = size = 0
    pairs = []
    written = KeyCodec(target)
    for answer in answers:
        for file in answer.files:
            data = (directory / file.name).read_bytes()
            assert (file.size, file.sha256, file.cf) == (len(data), hashlib.sha256(data).digest(), "default")
            assert len(file.cipher_iv) == 16
            assert file.start_key == written.api_key(codec.user_key(answer.start_key))  # type: ignore[arg-type]
            end = answer.end_key
            open_end = not end or end == codec.prefix_end
            assert file.end_key == (written.prefix_end if open_end else written.prefix + end[len(codec.prefix) :])
            crc, kvs, size = crc ^ file.crc64xor, kvs + file.total_kvs, size + file.total_bytes
            reader = SstReader(data)
            reader.verify()
            assert reader.format_version == 2
            for key, stored in reader:
                api_key, ts = written.split_engine_key(key)
                if source is not target:
                    assert ts == 1
                value = decode_value(target, stored)
                assert not value.deleted
                pairs.append((written.user_key(api_key), value.value, value.expire_at))
    assert pairs == [(p.key, p.value, p.expire) for p in await stores.cluster.pairs()]
    assert any(expire for _, _, expire in pairs) == (source is not V1)
    assert (kvs, size) == (80, sum(len(written.prefix) + len(k) + len(v) for k, v, _ in pairs))
    if source is target:
        digest = await stores.cluster.checksum()
        assert (crc, kvs, size) == (digest.crc64xor, digest.kvs, digest.bytes)


@on(V1)
async def test_files_have_tikvs_names(stores: Stores, tmp_path: Path) -> None:
    answers = await back_up(stores, backup_request(stores, tmp_path / "backup"))
    for answer in answers:
        region = stores.region(answer.start_key)
        for file in answer.files:
            head = f"{region.leader_store_id}/{region.id}_{region.version}"
            if not answer.start_key:
                assert file.name == f"{head}_default.sst"
                continue
            found = re.fullmatch(rf"{head}_([0-9a-f]{{64}})_(\d{{13}})_default\.sst", file.name)
            assert found
            assert found[1] == hashlib.sha256(answer.start_key).hexdigest()
            assert abs(int(found[2]) / 1000 - time.time()) < 100


@on(V2)
async def test_a_store_backs_up_what_it_leads(stores: Stores) -> None:
    request = backup_request(stores, None)
    by_store = {s: await back_up(stores, request, [s]) for s in stores.cluster.engines}
    for store_id, answers in by_store.items():
        led = [r for r in stores.cluster.topology.regions if r.led_by(store_id) and r.end]
        codec = stores.cluster.topology.codec
        starts = sorted(codec.api_key_of_region_key(r.start) or codec.prefix for r in led)
        assert sorted(a.start_key for a in answers) == starts


@on(*ALL)
async def test_ranges_are_clipped(stores: Stores) -> None:
    start, end = stores.api_key(b"15"), stores.api_key(b"32")
    # Requests for the gaps of a backup name no column family.
    answers = await back_up(stores, backup_request(stores, None, start_key=start, end_key=end, cf=""))
    assert sorted((a.start_key, a.end_key, a.files[0].total_kvs) for a in answers) == [
        (start, stores.api_key(b"20"), 5),
        (stores.api_key(b"20"), stores.api_key(b"30"), 10),
        (stores.api_key(b"30"), end, 2),
    ]
    assert all(a.files[0].name.endswith("_default.sst") for a in answers)
    ranges = [(b"01", b"02"), (b"15", b"17")]
    sub = [kvrpcpb_pb2.KeyRange(start_key=stores.api_key(s), end_key=stores.api_key(e)) for s, e in ranges]
    answers = await back_up(stores, backup_request(stores, None, sub_ranges=sub))
    assert sorted(a.files[0].total_kvs for a in answers) == [1, 2]


@on(V1)
async def test_a_noop_storage_counts_and_keeps_nothing(stores: Stores) -> None:
    answers = await back_up(stores, backup_request(stores, None))
    digest = await stores.cluster.checksum()
    assert sum(f.total_kvs for a in answers for f in a.files) == digest.kvs
    assert all(re.match(r"\d+_\d+_\d+_", f.name) for a in answers for f in a.files)
    for engine in stores.cluster.engines.values():
        assert list(engine.scratch_dir.iterdir()) == []


@on(V1)
@pytest.mark.parametrize("method", [CipherMethod.AES128_CTR, CipherMethod.AES192_CTR, CipherMethod.AES256_CTR])
async def test_encrypted_backups(stores: Stores, method: CipherMethod, tmp_path: Path) -> None:
    cipher = Cipher(method=method, key=bytes(range(method.key_length)))
    answers = await back_up(stores, backup_request(stores, tmp_path / "b", cipher_info=cipher.message()))
    ivs = set()
    count = 0
    for file in (f for a in answers for f in a.files):
        stored = (tmp_path / "b" / file.name).read_bytes()
        assert hashlib.sha256(stored).digest() == file.sha256
        count += len(list(SstReader(cipher.decrypt(stored, file.cipher_iv))))
        ivs.add(file.cipher_iv)
    assert count == 80
    assert len(ivs) == 8


@on(V1)
async def test_no_cipher_info_means_plaintext(stores: Stores, tmp_path: Path) -> None:
    request = backup_request(stores, tmp_path / "b")
    request.ClearField("cipher_info")
    answers = await back_up(stores, request)
    assert sum(len(list(SstReader((tmp_path / "b" / f.name).read_bytes()))) for a in answers for f in a.files) == 80
    request.cipher_info.cipher_type = encryptionpb_pb2.AES128_CTR
    request.cipher_info.cipher_key = b"too short"
    answers = await back_up(stores, request)
    assert [("UnknownEncryption" in a.error.msg) for a in answers] == [bool(a.HasField("error")) for a in answers]
    assert sum(a.HasField("error") for a in answers) == 8


@on(V1)
async def test_each_compression(stores: Stores, tmp_path: Path) -> None:
    for name, byte in (("LZ4", 4), ("SNAPPY", 1), ("ZSTD", 7), ("UNKNOWN", 4)):
        kind = brpb_pb2.CompressionType.Value(name)
        await stores.cluster.put([(UserKey(b"00"), b"x" * 50_000)])
        request = backup_request(stores, tmp_path / name, compression_type=kind, end_key=b"01")
        (answer,) = await back_up(stores, request)
        data = (tmp_path / name / answer.files[0].name).read_bytes()
        assert data[sum(SstReader(data)._handles[0])] == byte


@on(V1)
async def test_other_column_families_and_jobs(stores: Stores) -> None:
    put = kvrpcpb_pb2.RawPutRequest(key=b"05", value=b"v", cf="lock")
    await stores.lead(methods.KV_RAW_PUT, put, b"05")
    answers = await back_up(stores, backup_request(stores, None, cf="lock"))
    (file,) = [f for a in answers for f in a.files]
    assert (file.cf, file.total_kvs) == ("lock", 1)
    (refused,) = await back_up(stores, backup_request(stores, None, is_raw_kv=False), [1])
    assert "is_raw_kv" in refused.error.msg


@on(V1)
async def test_a_storage_that_fails_is_told_region_by_region(stores: Stores, tmp_path: Path) -> None:
    request = backup_request(stores, tmp_path / "backup")
    for store_id in stores.cluster.engines:
        # Files go below a directory of the store's number.
        (tmp_path / "backup" / str(store_id)).write_text("in the way")
    answers = await back_up(stores, request)
    assert len(answers) == 10
    for answer in answers:
        live = b"70" > answer.start_key[:2] != b"60" or answer.start_key >= b"80"
        assert answer.error.msg.startswith("Io(Custom { kind:") == live
        assert not answer.files


@on(V1)
async def test_the_rate_limit_counts_what_is_stored(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[tuple[int, int]] = []

    async def spend(self: RateLimiter, size: int) -> None:
        spent.append((self.rate, size))

    monkeypatch.setattr(RateLimiter, "spend", spend)
    answers = await back_up(stores, backup_request(stores, None, rate_limit=1234))
    assert sorted(spent) == sorted((1234, f.size) for a in answers for f in a.files)


@on(V1)
async def test_a_backup_ends_when_the_client_goes(stores: Stores, tmp_path: Path) -> None:
    leader = stores.region(b"00").leader_store_id
    request = backup_request(stores, tmp_path / "backup", rate_limit=1)
    stream = stores.stream(methods.BACKUP, request, leader)
    reading = asyncio.ensure_future(stream.read())
    engine = stores.cluster.engines[leader]
    await until(lambda: list(engine.scratch_dir.iterdir()))
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await until(lambda: not list(engine.scratch_dir.iterdir()))
    assert list((tmp_path / "backup").iterdir()) == []
    # The store is as good as before.
    assert len(await back_up(stores, backup_request(stores, tmp_path / "second"))) == 10


@on(V1)
async def test_the_cluster_stops_during_a_backup(stores: Stores, tmp_path: Path) -> None:
    leader = stores.region(b"00").leader_store_id
    stream = stores.stream(methods.BACKUP, backup_request(stores, tmp_path / "backup", rate_limit=1), leader)
    reading = asyncio.ensure_future(stream.read())
    engine = stores.cluster.engines[leader]
    await until(lambda: list(engine.scratch_dir.iterdir()))
    await stores.cluster.stop()
    with pytest.raises(Exception, match=r"UNAVAILABLE|CANCELLED|Cancel"):
        await reading


@on(V1)
async def test_regions_may_split_during_a_backup(stores: Stores) -> None:
    request = backup_request(stores, None, rate_limit=100_000)
    answers = []
    for store_id in stores.cluster.engines:
        async for answer in stores.stream(methods.BACKUP, request, store_id):
            answers.append(answer)
            keys = [k for k in (answer.start_key + b"5", answer.end_key + b"5") if k[:2] < b"99"]
            stores.cluster.split(UserKey(k) for k in keys)
    answers.sort(key=lambda a: a.start_key)
    assert [a.end_key for a in answers] == [*(a.start_key for a in answers[1:]), b""]
    assert sum(f.total_kvs for a in answers for f in a.files) == 80


@on(V1)
async def test_peers_stay_where_they_are_while_a_backup_reads_them(stores: Stores) -> None:
    topology = stores.cluster.topology
    region = stores.region(b"00")
    async with held_up(stores.cluster.engines[region.leader_store_id]):
        stream = stores.stream(methods.BACKUP, backup_request(stores, None), region.leader_store_id)
        reading = asyncio.ensure_future(stream.read())
        await until(lambda: topology.is_pinned(region))
        stores.cluster.split([UserKey(b"05")])
        assert topology.is_pinned(stores.region(b"00"))
        assert topology.is_pinned(stores.region(b"05"))
    await reading
    await until(lambda: not any(topology.is_pinned(r) for r in topology.regions))
