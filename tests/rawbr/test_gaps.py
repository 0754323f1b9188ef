from __future__ import annotations

import pytest

from airflow_provider_tikvbr.rawbr.gaps import parts_by_leader
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, KeyRange, encode_memcomparable
from airflow_provider_tikvbr.tikv.model import Peer, Region


def regions(codec: KeyCodec, *bounds_and_leaders: tuple[bytes, bytes, int | None]) -> list[Region]:
    found = []
    for number, (start, end, leader) in enumerate(bounds_and_leaders):
        peer = Peer(number, leader or 9)
        found.append(
            Region(
                id=number,
                start=codec.region_key(ApiKey(start)),
                end=codec.region_key(ApiKey(end)),
                conf_ver=1,
                version=1,
                peers=(peer,),
                leader=peer if leader else None,
            )
        )
    return found


def keys(start: bytes, end: bytes) -> KeyRange[ApiKey]:
    return KeyRange(ApiKey(start), ApiKey(end))


@pytest.mark.parametrize("version", [ApiVersion.V1, ApiVersion.V2])
def test_one_stretch_for_each_leader(version: ApiVersion) -> None:
    codec = KeyCodec(version)
    found = regions(codec, (b"", b"b", 1), (b"b", b"d", 2), (b"d", b"f", 1), (b"f", b"h", 3), (b"h", b"", 2))
    assert parts_by_leader([keys(b"a", b"g")], found[:4], codec) == [
        (1, keys(b"a", b"f")),
        (2, keys(b"b", b"d")),
        (3, keys(b"f", b"g")),
    ]
    assert parts_by_leader([keys(b"c", b"")], found[1:], codec) == [
        (2, keys(b"c", b"")),
        (1, keys(b"d", b"f")),
        (3, keys(b"f", b"h")),
    ]


def test_regions_without_leader_are_left_out() -> None:
    codec = KeyCodec(ApiVersion.V1)
    found = regions(codec, (b"", b"b", None), (b"b", b"", 2))
    assert parts_by_leader([keys(b"", b"")], found, codec) == [(2, keys(b"b", b""))]


def test_v2_regions_reach_beyond_the_keyspace() -> None:
    codec = KeyCodec(ApiVersion.V2)
    gap = KeyRange(ApiKey(codec.prefix), ApiKey(codec.prefix_end))
    assert parts_by_leader([gap], regions(codec, (b"", b"", 4)), codec) == [(4, gap)]
    assert encode_memcomparable(codec.prefix) == codec.region_key(gap.start)


def test_a_stretch_reaches_over_what_others_have_finished() -> None:
    codec = KeyCodec(ApiVersion.V1)
    found = regions(
        codec, (b"", b"b", 1), (b"b", b"d", 2), (b"d", b"f", 1), (b"f", b"h", 2), (b"h", b"k", 1), (b"k", b"", 1)
    )
    gaps = [keys(b"a", b"b"), keys(b"d", b"e"), keys(b"g", b"h"), keys(b"m", b"")]
    assert parts_by_leader(gaps, found, codec) == [
        # What store 1 has finished from "h" to "k" is not to be done again.
        (1, keys(b"a", b"e")),
        (2, keys(b"g", b"h")),
        (1, keys(b"m", b"")),
    ]


def test_a_region_with_several_gaps() -> None:
    codec = KeyCodec(ApiVersion.V1)
    gaps = [keys(b"a", b"b"), keys(b"d", b"e"), keys(b"g", b"i")]
    found = regions(codec, (b"", b"h", 1), (b"h", b"", 2))
    assert parts_by_leader(gaps, found, codec) == [(1, keys(b"a", b"h")), (2, keys(b"h", b"i"))]
