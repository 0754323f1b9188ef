from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr import ranges as ranges_module
from airflow_provider_tikvbr.rawbr.ranges import FinishedRange, FinishedRanges
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange

EVERYTHING = KeyRange(ApiKey(b""), ApiKey(b""))


def keys(start: str, end: str) -> KeyRange[ApiKey]:
    return KeyRange(ApiKey(start.encode()), ApiKey(end.encode()))


def piece(start: str, end: str, *names: str) -> FinishedRange:
    return FinishedRange(keys(start, end), tuple(brpb_pb2.File(name=name) for name in names))


def test_nothing_is_one_gap() -> None:
    found = FinishedRanges()
    assert found.gaps(EVERYTHING) == [EVERYTHING]
    assert found.gaps(keys("a", "b")) == [keys("a", "b")]


def test_gaps_lie_between_pieces() -> None:
    found = FinishedRanges()
    for start, end in [("d", "f"), ("a", "b"), ("m", "p")]:
        assert found.insert(piece(start, end)) == []
    assert found.gaps(EVERYTHING) == [keys("", "a"), keys("b", "d"), keys("f", "m"), keys("p", "")]
    assert found.gaps(keys("a", "b")) == []
    assert found.gaps(keys("e", "n")) == [keys("f", "m")]
    assert found.gaps(keys("b", "d")) == [keys("b", "d")]
    assert found.gaps(keys("q", "")) == [keys("q", "")]
    found.insert(piece("b", "d"))
    found.insert(piece("f", "m"))
    found.insert(piece("p", ""))
    found.insert(piece("", "a"))
    assert found.gaps(EVERYTHING) == []
    assert [p.keys.start for p in found] == [b"", b"a", b"b", b"d", b"f", b"m", b"p"]


def test_a_newer_piece_replaces_what_it_overlaps() -> None:
    found = FinishedRanges()
    for start, end in [("", "c"), ("c", "f"), ("f", "k"), ("k", "")]:
        found.insert(piece(start, end, f"old-{start}"))
    replaced = found.insert(piece("d", "g", "new"))
    assert [p.files[0].name for p in replaced] == ["old-c", "old-f"]
    assert [f.name for f in found.files()] == ["old-", "new", "old-k"]
    assert found.gaps(EVERYTHING) == [keys("c", "d"), keys("g", "k")]
    assert len(found) == 3


def test_pieces_can_be_taken_out() -> None:
    found = FinishedRanges()
    for start, end in [("", "c"), ("c", "f"), ("f", "")]:
        found.insert(piece(start, end, f"of-{start}"))
    assert [p.files[0].name for p in found.remove(keys("c", "f"))] == ["of-c"]
    assert found.remove(keys("c", "f")) == []
    assert found.gaps(EVERYTHING) == [keys("c", "f")]
    assert [f.name for f in found.files()] == ["of-", "of-f"]
    assert len(found) == 2


def test_the_same_piece_twice_counts_once() -> None:
    found = FinishedRanges()
    found.insert(piece("a", "b", "first"))
    assert [p.files[0].name for p in found.insert(piece("a", "b", "second"))] == ["first"]
    assert [f.name for f in found.files()] == ["second"]


def test_one_piece_can_replace_everything() -> None:
    found = FinishedRanges()
    for i in range(2000):
        found.insert(piece(f"{i:05}", f"{i + 1:05}"))
    assert len(found.insert(FinishedRange(EVERYTHING))) == 2000
    assert len(found) == 1
    assert found.gaps(EVERYTHING) == []


def test_a_piece_without_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no key"):
        FinishedRanges().insert(piece("b", "b"))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 41)), max_size=60))
def test_it_behaves_like_a_set_of_points(spans: list[tuple[int, int]]) -> None:
    """Key i covers [i, i+1); the end 41 stands for no bound, and so for every key from 40 on."""
    found = FinishedRanges()
    owner: dict[int, int] = {}
    block, ranges_module.BLOCK = ranges_module.BLOCK, 4
    try:
        for number, (start, end) in enumerate(spans):
            if end <= start:
                continue
            bounds = keys(f"{start:02}", "" if end == 41 else f"{end:02}")
            found.insert(FinishedRange(bounds, (brpb_pb2.File(size=number),)))
            gone = {owner[i] for i in range(start, end) if i in owner}
            owner = {i: n for i, n in owner.items() if n not in gone}
            owner.update(dict.fromkeys(range(start, end), number))
    finally:
        ranges_module.BLOCK = block
    expected = list(dict.fromkeys(owner[i] for i in sorted(owner)))
    assert [f.size for f in found.files()] == expected
    assert len(found) == len(expected)
    uncovered = [i for i in range(41) if i not in owner]
    gaps = found.gaps(keys("00", ""))
    assert [i for i in range(41) if any(gap.contains(ApiKey(f"{i:02}".encode())) for gap in gaps)] == uncovered
    for left, right in itertools.pairwise(gaps):
        assert left.end < right.start


def test_many_pieces_in_any_order() -> None:
    count = 100_000
    bounds = [ApiKey(i.to_bytes(4, "big")) for i in range(count)]
    bounds.append(ApiKey(b""))
    order = list(range(count))
    random.Random(3).shuffle(order)
    found = FinishedRanges()
    for i in order[:-2]:
        found.insert(FinishedRange(KeyRange(bounds[i], bounds[i + 1])))
    assert len(found.gaps(KeyRange(bounds[0], ApiKey(b"")))) == 2
    for i in order[-2:]:
        found.insert(FinishedRange(KeyRange(bounds[i], bounds[i + 1])))
    assert found.gaps(KeyRange(bounds[0], ApiKey(b""))) == []
    assert len(found) == count
