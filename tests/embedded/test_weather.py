"""Events that come true at their time."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.embedded.weather import Weather
from airflow_provider_tikvbr.embedded.weather_events import Happening, WeatherEvent, events_from_json
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.support.waiting import until

PAIRS = [(UserKey(b"k%03d" % i), b"v%d" % i) for i in range(300)]
SPLITS = [UserKey(b"k%03d" % i) for i in range(20, 300, 20)]
LONG_S = 3600


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[EmbeddedCluster]:
    options: dict[str, Any] = {"stores": 4, "replicas": 3, "pd_members": 3, "split_keys": SPLITS}
    async with EmbeddedCluster(data_dir=tmp_path, **options) as cluster:
        await cluster.put(PAIRS)
        yield cluster


def event(kind: str, **fields: Any) -> WeatherEvent:
    return WeatherEvent(kind=Happening(kind), **fields)


def leaders(cluster: EmbeddedCluster) -> list[int]:
    return [region.leader_store_id for region in cluster.topology.regions]


def shape(cluster: EmbeddedCluster) -> list[tuple[bytes, int, list[int]]]:
    return [(r.start, r.leader_store_id, r.store_ids) for r in cluster.topology.regions]


def up(cluster: EmbeddedCluster) -> tuple[list[bool], list[bool]]:
    stores = [store.running for store in cluster.topology.stores.values()]
    return stores, [cluster.pd_is_up(at) for at in range(3)]


def pd_led(cluster: EmbeddedCluster) -> bool:
    return cluster.pd.leader is not None


async def logged(weather: Weather, count: int) -> None:
    await until(lambda: len(weather.log) == count)


ALL_UP = ([True] * 4, [True] * 3)


async def test_leaders_move_again_and_again(cluster: EmbeddedCluster) -> None:
    before = leaders(cluster)
    async with Weather(cluster, [event("shuffle_leaders", every_s=0.05, times=3)]) as weather:
        await until(lambda: len(weather.log) == 1)
        assert all(now != then for now, then in zip(leaders(cluster), before, strict=True))
        await until(lambda: len(weather.log) == 3)
        await asyncio.sleep(0.2)
    assert [entry.what for entry in weather.log] == ["15 leaders"] * 3
    assert sorted(entry.at_s for entry in weather.log) == [entry.at_s for entry in weather.log]


async def test_leaders_never_move_to_stores_that_are_down(cluster: EmbeddedCluster) -> None:
    await cluster.stop_store(2)
    async with Weather(cluster, [event("shuffle_leaders", every_s=0.01, times=10)]) as weather:
        await until(lambda: len(weather.log) == 10)
    assert 2 not in leaders(cluster)
    assert not cluster.topology.stores[2].running  # it was not the weather that took it down


@pytest.mark.parametrize("api_version", list(ApiVersion))
async def test_every_region_splits(tmp_path: Path, api_version: ApiVersion) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, api_version=api_version, split_keys=SPLITS) as cluster:
        await cluster.put(PAIRS)
        digest, before = await cluster.checksum(), [r.id for r in cluster.topology.regions]
        async with Weather(cluster, [event("split_all")]) as weather:
            await until(lambda: weather.log)
        assert len(cluster.topology.regions) == 2 * len(before)
        assert await cluster.checksum() == digest
        # Between the pairs, not beside them.
        sizes = Counter(
            cluster.topology.region_of(cluster.topology.codec.region_key(cluster.topology.codec.api_key(k))).id
            for k, _ in PAIRS
        )
        assert set(sizes.values()) == {10}


async def test_empty_regions_split_too(tmp_path: Path) -> None:
    async with EmbeddedCluster(data_dir=tmp_path, api_version=ApiVersion.V2, split_keys=SPLITS) as cluster:
        before = len(cluster.topology.regions)
        async with Weather(cluster, [event("split_all", every_s=0.01, times=2)]) as weather:
            await until(lambda: len(weather.log) == 2)
        assert len(cluster.topology.regions) == 4 * before


@pytest.mark.parametrize("for_s", [None, 0.1])
async def test_regions_merge(cluster: EmbeddedCluster, for_s: float | None) -> None:
    digest = await cluster.checksum()
    async with Weather(cluster, [event("merge_some", count=4, for_s=for_s)]) as weather:
        await until(lambda: weather.log)
        assert sum(r.merging for r in cluster.topology.regions) == (4 if for_s else 0)
        await until(lambda: len(cluster.topology.regions) == 11)
    assert weather.log[0].what == "4 regions"
    assert await cluster.checksum() == digest


async def test_a_merge_under_way_ends_with_the_weather(cluster: EmbeddedCluster) -> None:
    async with Weather(cluster, [event("merge_some", count=2, for_s=LONG_S)]) as weather:
        await until(lambda: weather.log)
        merging = [r for r in cluster.topology.regions if r.merging]
        assert len(merging) == 2
    assert not any(r.merging for r in cluster.topology.regions)
    assert len(cluster.topology.regions) == 13


async def test_regions_split_and_move_here_and_there(cluster: EmbeddedCluster) -> None:
    digest, before = await cluster.checksum(), shape(cluster)
    events = [event("split_some", count=3), event("move_peers", count=5), event("scatter")]
    async with Weather(cluster, events) as weather:
        await until(lambda: len(weather.log) == 3)
    assert len(cluster.topology.regions) == len(before) + 3
    assert weather.log[1].what == "5 peers"
    assert await cluster.checksum() == digest


async def test_a_store_is_away_for_a_while(cluster: EmbeddedCluster) -> None:
    async with Weather(cluster, [event("stop_store", store_id=2, for_s=0.3)]) as weather:
        await until(lambda: weather.log)
        assert up(cluster)[0] == [True, False, True, True]
        await until(lambda: up(cluster) == ALL_UP)
    assert [(e.kind, e.what) for e in weather.log] == [(Happening.STOP_STORE, "store 2")]


async def test_what_is_away_comes_back_at_the_end(cluster: EmbeddedCluster) -> None:
    events = [
        event("stop_store"),
        event("stop_store", for_s=LONG_S),
        event("stop_pd", member=1),
        event("pd_no_leader"),
        event("disk_full", store_id=3),
    ]
    async with Weather(cluster, events) as weather:
        await until(lambda: len(weather.log) == 5)
        assert up(cluster)[0].count(False) == 2
        assert up(cluster)[1] == [True, False, True]
        assert not pd_led(cluster)
        assert cluster.topology.stores[3].disk_full
    assert up(cluster) == ALL_UP
    assert pd_led(cluster)
    assert not cluster.topology.stores[3].disk_full


async def test_a_store_that_died_stays_dead(cluster: EmbeddedCluster) -> None:
    events = [
        event("kill_store", store_id=3),
        event("start_store", store_id=3, at_s=0.05),
        event("stop_store", store_id=3),
    ]
    async with Weather(cluster, events) as weather:
        await until(lambda: len(weather.log) == 3)
    assert [e.refused for e in weather.log] == [False, True, True]
    assert "no such store" in weather.log[2].what
    assert up(cluster)[0] == [True, True, False, True]


async def test_a_store_goes_and_comes_at_set_times(cluster: EmbeddedCluster) -> None:
    events = [event("start_store", at_s=0.2), event("stop_store", store_id=4)]
    async with Weather(cluster, events) as weather:
        await until(lambda: weather.log)
        assert up(cluster)[0] == [True, True, True, False]
        await until(lambda: len(weather.log) == 2)
        assert up(cluster) == ALL_UP
    assert [e.what for e in weather.log] == ["store 4", "store 4"]


async def test_pd_changes_its_leader_and_restarts(cluster: EmbeddedCluster) -> None:
    names: list[str] = []
    async with Weather(cluster, [event("pd_leader", every_s=0.05, times=4)]) as weather:
        await until(lambda: len(weather.log) == 4)
        names = ["pd-0", *(e.what for e in weather.log)]
        assert all(now != then for now, then in zip(names[1:], names, strict=False))
        weather.add(event("pd_leader", member=0))
        weather.add(event("restart_pd", for_s=0.3, at_s=0.1))
        await until(lambda: up(cluster)[1] == [False] * 3)
        assert not pd_led(cluster)
        await until(lambda: up(cluster) == ALL_UP and pd_led(cluster))
        weather.add(event("restart_pd"))
        weather.add(event("stop_pd", for_s=0.1))
        weather.add(event("pd_no_leader", for_s=0.1, at_s=0.3))
        await until(lambda: len(weather.log) == 9 and pd_led(cluster) and up(cluster) == ALL_UP)
    assert not any(e.refused for e in weather.log)
    assert weather.log[4].what == "pd-0"


async def test_the_seed_decides(tmp_path: Path) -> None:
    events = [
        event("shuffle_leaders", every_s=0.02, times=3),
        event("split_some", count=2, at_s=0.01),
        event("merge_some", count=3, at_s=0.07),
        event("stop_store", at_s=0.1, for_s=0.1),
        event("move_peers", count=3, at_s=0.3),
    ]
    seen = []
    for at, seed in enumerate((1, 1, 2)):
        options: dict[str, Any] = {"stores": 4, "replicas": 3, "split_keys": SPLITS, "data_dir": tmp_path / str(at)}
        async with EmbeddedCluster(**options) as cluster:
            await cluster.put(PAIRS)
            async with Weather(cluster, events, seed=seed) as weather:
                await logged(weather, 7)
            seen.append((shape(cluster), [(e.kind, e.what) for e in weather.log]))
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


async def test_a_busy_weather_leaves_time_for_others(cluster: EmbeddedCluster) -> None:
    async with Weather(cluster, [event("shuffle_leaders", every_s=0.00001)]) as weather:
        await asyncio.sleep(0.1)
        assert (await cluster.checksum()).kvs == len(PAIRS)
    count = len(weather.log)
    await asyncio.sleep(0.05)
    assert len(weather.log) == count > 1


async def test_weather_over_a_cluster_in_a_thread(tmp_path: Path) -> None:
    def run() -> list[str]:
        with ThreadedCluster(data_dir=tmp_path, stores=2) as threaded:

            async def blow(cluster: EmbeddedCluster) -> list[str]:
                async with Weather.from_json(cluster, [{"kind": "stop_store", "store_id": 2}]) as weather:
                    await until(lambda: weather.log)
                return [e.what for e in weather.log]

            return threaded.call(blow)

    assert await asyncio.to_thread(run) == ["store 2"]


async def test_a_deed_that_fails_is_told_at_the_end(cluster: EmbeddedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise TypeError("broken")

    monkeypatch.setattr(cluster, "scatter", broken)
    weather = Weather(cluster, [event("stop_store"), event("scatter")])
    weather.start()
    await until(lambda: weather.log)
    with pytest.raises(TypeError, match="broken"):
        await weather.stop()
    assert up(cluster) == ALL_UP
    await weather.stop()


def test_events_are_read_from_json() -> None:
    text = json.dumps(
        [
            {"kind": "stop_store", "at_s": 3, "store_id": 2, "for_s": 60},
            {"kind": "shuffle_leaders", "every_s": 1, "until_s": 9.5, "times": 4},
            {"kind": "stop_pd", "member": 0},
            {"kind": "merge_some", "count": 3},
        ]
    )
    assert events_from_json(json.loads(text)) == (
        event("stop_store", at_s=3, store_id=2, for_s=60),
        event("shuffle_leaders", every_s=1, until_s=9.5, times=4),
        event("stop_pd", member=0),
        event("merge_some", count=3),
    )
    assert {kind.value for kind in Happening} == {
        e.kind.value for e in events_from_json([{"kind": k.value} for k in Happening])
    }


@pytest.mark.parametrize(
    ("fields", "times"),
    [
        ({}, [0]),
        ({"at_s": 2}, [2]),
        ({"every_s": 2, "times": 3}, [2, 4, 6]),
        ({"every_s": 2, "at_s": 0, "until_s": 5}, [0, 2, 4]),
        ({"every_s": 2, "until_s": 1}, []),
    ],
)
def test_when_things_happen(fields: dict[str, Any], times: list[float]) -> None:
    planned = event("scatter", **fields)
    found: list[float] = []
    while (at := planned.next_s(len(found))) is not None:
        found.append(at)
    assert found == times


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "events are a list of objects"),
        ([3], "event 0 is not an object"),
        ([{"kind": "scatter"}, {}], "event 1 has no kind"),
        ([{"kind": "rain"}], "kind='rain' is none of shuffle_leaders, "),
        ([{"kind": "scatter", "when": 3}], "event 0 has a field 'when'; known are kind, at_s"),
        ([{"kind": "scatter", "at_s": "3"}], "at_s='3' is not a number"),
        ([{"kind": "scatter", "at_s": -3}], "event 0: scatter: at_s is negative"),
        ([{"kind": "scatter", "every_s": 0}], "have to be more than 0"),
        ([{"kind": "scatter", "times": 1.5}], "times=1.5 is not a whole number"),
        ([{"kind": "scatter", "times": True}], "times=True is not a whole number"),
        ([{"kind": "scatter", "times": 0}], "have to be more than 0"),
        ([{"kind": "scatter", "store_id": 1}], "scatter: store_id has no meaning here"),
        ([{"kind": "kill_store", "for_s": 1}], "kill_store: for_s has no meaning here"),
        ([{"kind": "stop_store", "member": 1}], "stop_store: member has no meaning here"),
        ([{"kind": "stop_store", "count": 2}], "stop_store: count has no meaning here"),
    ],
)
def test_events_that_cannot_be(value: object, said: str) -> None:
    with pytest.raises(InvalidOptionError) as error:
        events_from_json(value)
    assert said in error.value.message


async def test_events_for_what_does_not_exist(cluster: EmbeddedCluster) -> None:
    with pytest.raises(InvalidOptionError, match="there is no store 9; there are 1, 2, 3, 4"):
        Weather(cluster, [event("stop_store", store_id=9)])
    with pytest.raises(InvalidOptionError, match="there is no member 3 of PD; the last one is 2"):
        Weather(cluster, [event("stop_pd", member=3)])
