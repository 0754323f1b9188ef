from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_tikvbr.tikv.keys import (
    CONVERTED_TS,
    ApiKey,
    ApiVersion,
    KeyCodec,
    KeyRange,
    RegionKey,
    UserKey,
    decode_desc_ts,
    decode_memcomparable,
    encode_desc_ts,
    encode_memcomparable,
    region_boundary,
)

# What TiKV's own codec gives.
MEMCOMPARABLE = [
    ("", "0000000000000000f7"),
    ("61", "6100000000000000f8"),
    ("72000000", "7200000000000000fb"),
    ("72000001", "7200000100000000fb"),
    ("7200000061", "7200000061000000fc"),
    ("7200000061626364", "7200000061626364ff0000000000000000f7"),
    ("720000006162636465666768", "7200000061626364ff6566676800000000fb"),
]

quick = settings(deadline=None, max_examples=200)
raw = st.binary(max_size=40)
versions = st.sampled_from(ApiVersion)
keyspaces = st.integers(0, (1 << 24) - 1)


@pytest.mark.parametrize(("plain", "encoded"), MEMCOMPARABLE)
def test_memcomparable_as_tikv_writes_it(plain: str, encoded: str) -> None:
    assert encode_memcomparable(bytes.fromhex(plain)).hex() == encoded
    assert decode_memcomparable(bytes.fromhex(encoded) + b"rest") == (bytes.fromhex(plain), b"rest")


@quick
@given(raw, raw)
def test_memcomparable_keeps_the_order(one: bytes, other: bytes) -> None:
    left, right = encode_memcomparable(one), encode_memcomparable(other)
    assert (left < right) == (one < other)
    assert len(left) == (len(one) // 8 + 1) * 9
    # What follows an encoded key does not change the order of different keys.
    if one != other:
        assert (left + other < right + one) == (one < other)


@quick
@given(raw, raw)
def test_memcomparable_and_back(key: bytes, rest: bytes) -> None:
    assert decode_memcomparable(encode_memcomparable(key) + rest) == (key, rest)


@pytest.mark.parametrize(
    "encoded",
    ["", "61", "6100000000000000", "6100000000000000f6", "6100000000000001f8", "6162636465666768ff"],
)
def test_what_is_not_memcomparable(encoded: str) -> None:
    with pytest.raises(ValueError, match="not a memcomparable key"):
        decode_memcomparable(bytes.fromhex(encoded))


@pytest.mark.parametrize(
    ("key", "boundary"),
    [
        (b"", b""),
        (b"plain", b"plain"),
        (b"\xff" * 12, b"\xff" * 12),
        (encode_memcomparable(b"abc"), encode_memcomparable(b"abc")),
        (encode_memcomparable(b"abc") + b"tail", encode_memcomparable(b"abc")),
        (encode_memcomparable(b"abcdefghij") + encode_desc_ts(7), encode_memcomparable(b"abcdefghij")),
        (b"12345678\xfe", b"12345678\xfe"),
        (b"1234567\0\xfe!", b"1234567\0\xfe"),
    ],
)
def test_boundaries_as_tikv_makes_them(key: bytes, boundary: bytes) -> None:
    assert region_boundary(RegionKey(key)) == boundary


def test_newer_timestamps_sort_first() -> None:
    assert encode_desc_ts(1).hex() == "fffffffffffffffe"
    assert encode_desc_ts(2) < encode_desc_ts(1)
    assert decode_desc_ts(encode_desc_ts(436120585518448641)) == 436120585518448641


def test_api_versions() -> None:
    assert [ApiVersion.parse(text) for text in ("v1", " V1TTL ", "v2")] == list(ApiVersion)
    with pytest.raises(ValueError, match="'v3' is not an API version"):
        ApiVersion.parse("v3")
    assert [version.in_context for version in ApiVersion] == [ApiVersion.V1, ApiVersion.V1, ApiVersion.V2]


# --- ranges ---


def keys(start: bytes, end: bytes) -> KeyRange[UserKey]:
    return KeyRange(UserKey(start), UserKey(end))


def test_a_range_is_half_open() -> None:
    assert keys(b"a", b"c").contains(UserKey(b"a"))
    assert not keys(b"a", b"c").contains(UserKey(b"c"))
    assert keys(b"a", b"").contains(UserKey(b"\xff" * 20))
    assert not keys(b"a", b"").contains(UserKey(b""))


@pytest.mark.parametrize(
    ("outer", "inner", "covered"),
    [
        ((b"", b""), (b"", b""), True),
        ((b"", b""), (b"a", b"b"), True),
        ((b"a", b"c"), (b"a", b"c"), True),
        ((b"a", b"c"), (b"a", b""), False),
        ((b"a", b""), (b"", b""), False),
        ((b"a", b"c"), (b"b", b"d"), False),
    ],
)
def test_covers(outer: tuple[bytes, bytes], inner: tuple[bytes, bytes], covered: bool) -> None:
    assert keys(*outer).covers(keys(*inner)) is covered


@quick
@given(raw, raw, raw, raw, raw)
def test_an_intersection_holds_what_both_hold(a: bytes, b: bytes, c: bytes, d: bytes, key: bytes) -> None:
    one, other = keys(a, b), keys(c, d)
    both = one.intersect(other)
    inside = both is not None and both.contains(UserKey(key))
    assert inside == (one.contains(UserKey(key)) and other.contains(UserKey(key)))
    assert one.intersect(other) == other.intersect(one)


# --- the forms of a key ---


@quick
@given(versions, keyspaces, raw)
def test_every_form_and_back(version: ApiVersion, keyspace: int, plain: bytes) -> None:
    codec = KeyCodec(version, keyspace)
    api = codec.api_key(UserKey(plain))
    assert codec.user_key(api) == plain
    assert codec.api_key_of_region_key(codec.region_key(api)) == api
    whole = KeyRange(api, ApiKey(b""))
    assert codec.api_range_of_regions(codec.region_range(whole)) == whole
    assert codec.split_engine_key(codec.engine_key(api, 5)) == (api, 5 if codec.is_v2 else 0)


@quick
@given(versions, keyspaces, raw, raw)
def test_every_form_keeps_the_order(version: ApiVersion, keyspace: int, one: bytes, other: bytes) -> None:
    codec = KeyCodec(version, keyspace)
    left, right = codec.api_key(UserKey(one)), codec.api_key(UserKey(other))
    assert (left < right) == (one < other)
    assert (codec.region_key(left) < codec.region_key(right)) == (one < other)
    if one != other:
        assert (codec.engine_key(left, 9) < codec.engine_key(right, 1)) == (one < other)


def test_v1_keys_are_as_they_are() -> None:
    for version in (ApiVersion.V1, ApiVersion.V1TTL):
        codec = KeyCodec(version)
        assert codec.api_key(UserKey(b"k")) == b"k"
        assert codec.region_key(ApiKey(b"k")) == b"k"
        assert codec.engine_key(ApiKey(b"k")) == b"k"
        assert codec.api_range(keys(b"a", b"")) == KeyRange(ApiKey(b"a"), ApiKey(b""))


def test_v2_keys_as_tikv_writes_them() -> None:
    codec = KeyCodec(ApiVersion.V2)
    assert codec.api_key(UserKey(b"a")).hex() == "7200000061"
    assert codec.region_key(ApiKey(b"r\0\0\0a")).hex() == "7200000061000000fc"
    assert codec.engine_key(ApiKey(b"r\0\0\0a")).hex() == "7200000061000000fcfffffffffffffffe"
    assert codec.split_engine_key(codec.engine_key(ApiKey(b"r\0\0\0a"))) == (b"r\0\0\0a", CONVERTED_TS)


def test_v2_ranges_stay_in_their_keyspace() -> None:
    codec = KeyCodec(ApiVersion.V2, 5)
    everything = codec.api_range(keys(b"", b""))
    assert everything == KeyRange(ApiKey(b"r\0\0\5"), ApiKey(b"r\0\0\6"))
    assert codec.user_range(everything) == keys(b"", b"")
    assert codec.user_range(codec.api_range(keys(b"a", b"b"))) == keys(b"a", b"b")
    assert codec.region_range(everything) == KeyRange(
        RegionKey(bytes.fromhex("7200000500000000fb")), RegionKey(bytes.fromhex("7200000600000000fb"))
    )


def test_the_last_keyspace_has_an_end_too() -> None:
    codec = KeyCodec(ApiVersion.V2, (1 << 24) - 1)
    everything = codec.api_range(keys(b"", b""))
    # TiKV takes a range for one of raw keys if both ends start with r, or the end is s and nothing else.
    assert everything == KeyRange(ApiKey(b"r\xff\xff\xff"), ApiKey(b"s"))
    assert codec.user_range(everything) == keys(b"", b"")
    assert codec.region_range(everything).contains(codec.region_key(codec.api_key(UserKey(b"\xff" * 20))))


def test_an_open_region_boundary_stays_open() -> None:
    codec = KeyCodec(ApiVersion.V2)
    assert codec.region_key(ApiKey(b"")) == b""
    assert codec.api_key_of_region_key(RegionKey(b"")) == b""


def test_keys_that_do_not_belong_here() -> None:
    codec = KeyCodec(ApiVersion.V2, 5)
    with pytest.raises(ValueError, match="does not start with 72000005"):
        codec.user_key(ApiKey(b"r\0\0\4k"))
    with pytest.raises(ValueError, match="not a memcomparable key"):
        codec.api_key_of_region_key(RegionKey(b"plain"))
    with pytest.raises(ValueError, match="does not end with a timestamp"):
        codec.split_engine_key(codec.engine_key(ApiKey(b"r\0\0\5k"))[:-1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keyspace id 16777216 is outside"):
        KeyCodec(ApiVersion.V2, 1 << 24)
