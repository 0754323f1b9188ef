"""How pieces wait, apart from what they wait for."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_tikvbr.exceptions import ServerIsBusyError, StoreUnavailableError
from airflow_provider_tikvbr.rawbr import parking
from airflow_provider_tikvbr.rawbr.parking import LEAST_TRIES, Parked, Parking, store_cause
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey
from airflow_provider_tikvbr.tikv.model import Peer, Region

DOWN = StoreUnavailableError("store 2 is down", store_id=2)
SECOND = store_cause(2)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "OUTAGE_BASE_S", 0.001)
    monkeypatch.setattr(parking, "OUTAGE_CAP_S", 0.001)
    monkeypatch.setattr(parking, "PIECE_BASE_S", 0.001)


def pieces(count: int) -> list[Parked]:
    return [Parked(keys=KeyRange(RegionKey(b"%d" % i), RegionKey(b""))) for i in range(count)]


async def probe(park: Parking[Parked]) -> Parked:
    """The one that is sent ahead."""
    await asyncio.sleep(0.01)
    (outage,) = park.wake()
    park.take_for_a_look(outage)
    park.send_probe(outage, lambda piece: True)
    assert len(park.ready) == 1
    return park.ready.popleft()


async def test_one_is_sent_ahead_and_all_follow_when_the_store_answers() -> None:
    park: Parking[Parked] = Parking()
    for piece in pieces(5):
        park.park(piece, DOWN, SECOND)
    assert (len(park.ready), park.is_empty) == (0, False)
    first = await probe(park)
    assert first.probes == SECOND
    # The others wait as long as it is under way.
    await asyncio.sleep(0.01)
    assert park.wake() == []
    park.park(first, DOWN, SECOND)
    second = await probe(park)
    park.well(SECOND)
    park.done(second)
    assert len(park.ready) == 4
    assert park.outages == []


async def test_those_that_do_not_depend_on_it_any_more_go_on() -> None:
    park: Parking[Parked] = Parking()
    found = pieces(4)
    for piece in found:
        park.park(piece, DOWN, SECOND)
    await asyncio.sleep(0.01)
    (outage,) = park.wake()
    assert park.take_for_a_look(outage) == found
    assert len(park.all_waiting()) == 4
    park.send_probe(outage, lambda piece: piece is found[2])
    assert list(park.ready) == [found[0], found[1], found[3], found[2]]
    assert [piece.probes for piece in park.ready] == [None, None, None, SECOND]


async def test_one_that_finds_out_nothing_is_followed_by_another() -> None:
    park: Parking[Parked] = Parking()
    for piece in pieces(2):
        park.park(piece, DOWN, SECOND)
    park.done(await probe(park))
    assert (await probe(park)).probes == SECOND


async def test_a_region_on_a_store_that_is_down_need_not_be_tried() -> None:
    park: Parking[Parked] = Parking()
    region = Region(
        id=1, start=RegionKey(b""), end=RegionKey(b""), conf_ver=1, version=1, peers=(Peer(1, 1), Peer(2, 2))
    )
    assert park.blocking(region) is None
    park.park(pieces(1)[0], DOWN, SECOND)
    outage = park.blocking(region)
    assert outage is not None
    assert outage.cause == SECOND
    park.hold(pieces(1)[0], outage)
    assert len(outage.waiting) == 2


async def test_it_is_not_given_up_before_everything_has_failed_often_enough() -> None:
    park: Parking[Parked] = Parking()
    park.park(pieces(1)[0], DOWN, SECOND)
    for _ in range(LEAST_TRIES - 1):
        assert not park.has_tried_enough([])
        park.park(await probe(park), DOWN, SECOND)
    assert park.has_tried_enough([])
    # One that is under way may still succeed.
    assert not park.has_tried_enough(pieces(1))
    park.done(pieces(1)[0])
    assert not park.has_tried_enough([])


async def test_a_store_that_asks_for_time_is_given_it() -> None:
    park: Parking[Parked] = Parking()
    park.park(pieces(1)[0], ServerIsBusyError("busy", kind="server_is_busy", backoff_s=30))
    assert (park.pause_s() or 0) > 20
    assert park.timed == 1
    assert park.wake() == []
