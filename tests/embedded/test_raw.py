from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.checksum import digest_of
from airflow_provider_tikvbr.embedded.engine import StoreEngine
from airflow_provider_tikvbr.embedded.raw import RawFormat, RawReader, decode_stored_memcomparable
from airflow_provider_tikvbr.tikv.keys import (
    ApiKey,
    ApiVersion,
    EngineKey,
    KeyRange,
    decode_memcomparable,
    encode_memcomparable,
)

EVERYTHING: KeyRange[EngineKey] = KeyRange(EngineKey(b""), EngineKey(b""))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[StoreEngine]:
    engine = StoreEngine(store_id=1, path=tmp_path)
    yield engine
    engine.close()


def api_key(text: str) -> ApiKey:
    return ApiKey(b"r\x00\x00\x00" + text.encode())


@pytest.mark.parametrize("length", range(20))
def test_the_fast_decoder_agrees_with_the_careful_one(length: int) -> None:
    for data in (bytes(length), b"\xff" * length, bytes(range(length))):
        encoded = encode_memcomparable(data)
        assert decode_stored_memcomparable(encoded) == decode_memcomparable(encoded)[0] == data


def test_v1_values_are_kept_as_they_are(engine: StoreEngine) -> None:
    raw = RawFormat(ApiVersion.V1)
    engine.write([raw.put(ApiKey(b"k"), b"value", 0, ts=5)])
    assert list(engine.items(EVERYTHING)) == [(b"zk", b"value")]
    assert raw.delete(ApiKey(b"k"), ts=6) == (b"k", None)
    assert not raw.has_ttl


def test_v1ttl_values_end_with_their_expiry(engine: StoreEngine) -> None:
    raw = RawFormat(ApiVersion.V1TTL)
    engine.write([raw.put(ApiKey(b"a"), b"value", 0, ts=5), raw.put(ApiKey(b"b"), b"value", 1000, ts=5)])
    (_, first), (_, second) = engine.items(EVERYTHING)
    assert first == b"value" + bytes(8)
    assert second[:5] == b"value"
    assert 0 <= time.time() + 1000 - int.from_bytes(second[5:], "big") < 100


def test_v2_writes_versions_and_marks(engine: StoreEngine) -> None:
    raw = RawFormat(ApiVersion.V2)
    engine.write([raw.put(api_key("a"), b"value", 0, ts=1), raw.delete(api_key("a"), ts=2)])
    encoded = bytes.fromhex("7a7200000061000000fc")  # protocol facts: 'a' of the default keyspace
    assert list(engine.items(EVERYTHING)) == [
        (encoded + bytes.fromhex("fffffffffffffffd"), b"\x02"),
        (encoded + bytes.fromhex("fffffffffffffffe"), b"value\x00"),
    ]


def test_v2_reads_the_newest_version_only(engine: StoreEngine) -> None:
    raw = RawFormat(ApiVersion.V2)
    reader = RawReader(engine=engine, raw=raw)
    engine.write(
        [
            raw.put(api_key("a"), b"old", 0, ts=1),
            raw.put(api_key("a"), b"new", 0, ts=9),
            raw.put(api_key("gone"), b"old", 0, ts=1),
            raw.delete(api_key("gone"), ts=9),
            raw.put(api_key("back"), b"old", 0, ts=1),
            raw.delete(api_key("back"), ts=5),
            raw.put(api_key("back"), b"again", 0, ts=9),
            raw.put(api_key("a longer key"), b"x", 0, ts=3),
        ]
    )
    expected = [("a", b"new"), ("a longer key", b"x"), ("back", b"again")]
    found = [(p.key, p.value) for p in reader.scan(EVERYTHING)]
    assert found == [(api_key(k), v) for k, v in expected]
    assert [(p.key, p.value) for p in reader.scan(EVERYTHING, reverse=True)] == found[::-1]
    assert reader.get(api_key("gone")) is None
    assert reader.get(api_key("never")) is None
    again = reader.get(api_key("back"))
    assert again is not None
    assert again.value == b"again"


@pytest.mark.parametrize("api", [ApiVersion.V1TTL, ApiVersion.V2])
def test_expired_pairs_are_not_seen(engine: StoreEngine, api: ApiVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = RawFormat(api)
    reader = RawReader(engine=engine, raw=raw)
    engine.write([raw.put(api_key(k), b"v", ttl, ts=1) for k, ttl in (("a", 0), ("b", 50), ("c", 5000))])
    assert [p.key for p in reader.scan(EVERYTHING)] == [api_key(k) for k in "abc"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    assert [p.key for p in reader.scan(EVERYTHING)] == [api_key(k) for k in "ac"]
    assert reader.get(api_key("b")) is None
    assert reader.get(api_key("c")) is not None


def test_an_expired_newest_version_hides_the_older_ones(engine: StoreEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = RawFormat(ApiVersion.V2)
    engine.write([raw.put(api_key("a"), b"old", 0, ts=1), raw.put(api_key("a"), b"new", 50, ts=2)])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 100)
    assert list(RawReader(engine=engine, raw=raw).scan(EVERYTHING)) == []


def test_digest_matches_the_vectors(engine: StoreEngine) -> None:
    v1, v2 = RawFormat(ApiVersion.V1), RawFormat(ApiVersion.V2)
    engine.write([v1.put(ApiKey(b"a"), b"b", 0, ts=0)])
    digest = digest_of(RawReader(engine=engine, raw=v1).scan(EVERYTHING))
    assert (digest.crc64xor, digest.kvs, digest.bytes) == (0xBC6573200E84B046, 1, 2)
    engine.delete_range(EVERYTHING)
    engine.write([v2.put(api_key("a"), b"b", 0, ts=7)])
    digest = digest_of(RawReader(engine=engine, raw=v2).scan(EVERYTHING))
    assert (digest.crc64xor, digest.kvs, digest.bytes) == (0x475F8C7D734AFFBA, 1, 6)
