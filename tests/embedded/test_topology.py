from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.state import ClusterState
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, RegionKey, UserKey


def key(text: str) -> RegionKey:
    return RegionKey(text.encode())


def borders(topology: Topology) -> list[tuple[bytes, bytes]]:
    return [(r.start, r.end) for r in topology.regions]


def make(state: ClusterState, **options: Any) -> Topology:
    topology = Topology(state=state, **options)
    for store_id in topology.stores:
        topology.set_running(store_id, True)
    return topology


def test_a_new_cluster_tiles_the_key_space(state: ClusterState) -> None:
    topology = make(state, stores=3, replicas=3, split_keys=[UserKey(b"m"), UserKey(b"c")])

    assert borders(topology) == [(b"", b"c"), (b"c", b"m"), (b"m", b"")]
    assert [len(r.peers) for r in topology.regions] == [3, 3, 3]
    assert {r.leader_store_id for r in topology.regions} == {1, 2, 3}
    assert all(r.conf_ver == 5 for r in topology.regions)  # as three replicas came to be one by one


def test_v2_has_a_border_after_the_default_keyspace(state: ClusterState) -> None:
    topology = make(state, api_version=ApiVersion.V2, split_keys=[UserKey(b"m")])

    codec = topology.codec
    middle = codec.region_key(codec.api_key(UserKey(b"m")))
    assert borders(topology) == [
        (b"", middle),
        (middle, bytes.fromhex("7200000100000000fb")),
        (bytes.fromhex("7200000100000000fb"), b""),
    ]


def test_ids_are_unique(state: ClusterState) -> None:
    topology = make(state, stores=3, replicas=3, split_keys=[UserKey(b"m")])
    ids = [
        *topology.stores,
        *(r.id for r in topology.regions),
        *(p.id for r in topology.regions for p in r.peers),
    ]

    assert len(ids) == len(set(ids))


def test_the_rightmost_piece_keeps_the_id(state: ClusterState) -> None:
    topology = make(state, stores=2, replicas=2)
    region = topology.region_of(key("x"))
    region_id, conf_ver, version, leader = region.id, region.conf_ver, region.version, region.leader_store_id

    pieces = topology.split(region_id, [key("m"), key("c"), key("m")])

    assert [(p.start, p.end) for p in pieces] == [(b"", b"c"), (b"c", b"m"), (b"m", b"")]
    assert [p.id == region_id for p in pieces] == [False, False, True]
    assert {p.version for p in pieces} == {version + 2}
    assert {p.conf_ver for p in pieces} == {conf_ver}
    assert {p.leader_store_id for p in pieces} == {leader}
    assert topology.by_id(pieces[0].id) is pieces[0]
    assert pieces[0].message().region_epoch.version == version + 2


def test_keys_outside_or_at_the_border_do_not_split(state: ClusterState) -> None:
    topology = make(state, split_keys=[UserKey(b"c"), UserKey(b"m")])
    region = topology.region_of(key("d"))
    version = region.version

    assert topology.split(region.id, [key("c"), key("m"), key("a"), key("z")]) == [region]
    assert region.version == version


def test_look_ups(state: ClusterState) -> None:
    topology = make(state, split_keys=[UserKey(k) for k in (b"c", b"m", b"t")])

    def scan(start: str, end: str, limit: int = 0) -> list[bytes]:
        return [r.start for r in topology.scan(KeyRange(key(start), key(end)), limit)]

    assert topology.region_of(key("")).start == b""
    assert topology.region_of(key("c")).start == b"c"
    assert topology.region_of(key("lzz")).start == b"c"
    assert topology.region_of(key("zzz")).start == b"t"
    assert scan("", "") == [b"", b"c", b"m", b"t"]
    assert scan("d", "m") == [b"c"]
    assert scan("d", "m0") == [b"c", b"m"]
    assert scan("c", "", limit=2) == [b"c", b"m"]
    assert topology.before(topology.region_of(key("m"))) is topology.region_of(key("c"))
    assert topology.before(topology.region_of(key(""))) is None
    assert topology.by_id(10_000) is None


def test_a_peer_moves_with_its_data_and_its_leadership(state: ClusterState) -> None:
    moved: list[tuple[int, int, int]] = []
    topology = make(state, stores=3, replicas=2, move_data=lambda r, a, b: moved.append((r.id, a, b)))
    region = topology.region_of(key("a"))
    conf_ver = region.conf_ver

    topology.move_peer(region.id, 1, 3)

    assert moved == [(region.id, 1, 3)]
    assert sorted(region.store_ids) == [2, 3]
    assert region.leader_store_id == 3
    assert region.conf_ver == conf_ver + 2
    with pytest.raises(ValueError, match="cannot move a peer from store 1"):
        topology.move_peer(region.id, 1, 2)
    with pytest.raises(ValueError, match="cannot move a peer from store 2 to store 3"):
        topology.move_peer(region.id, 2, 3)
    with pytest.raises(ValueError, match="cannot move a peer from store 2 to store 9"):
        topology.move_peer(region.id, 2, 9)
    with topology.pinned(region.keys), pytest.raises(ValueError, match="is at work"):
        topology.move_peer(region.id, 2, 1)


def test_the_pieces_of_a_region_at_work_cannot_move_either(state: ClusterState) -> None:
    topology = make(state, stores=2)
    region = topology.region_of(key("a"))
    with topology.pinned(region.keys):
        for piece in topology.split(region.id, [key("m")]):
            with pytest.raises(ValueError, match="is at work"):
                topology.move_peer(piece.id, 1, 2)

    topology.move_peer(region.id, 1, 2)


def test_the_leader_goes_where_a_peer_is(state: ClusterState) -> None:
    topology = make(state, stores=3, replicas=2)
    region = topology.region_of(key("a"))

    topology.transfer_leader(region.id, 2)

    assert region.led_by(2)
    assert region.leader.store_id == 2
    with pytest.raises(ValueError, match="no peer on store 3"):
        topology.transfer_leader(region.id, 3)


def test_a_majority_elects_another_leader(state: ClusterState) -> None:
    topology = make(state, stores=3, replicas=3)
    region = topology.region_of(key("a"))

    topology.set_running(1, False)
    assert region.leader_store_id in (2, 3)
    last = region.leader_store_id
    topology.set_running(last, False)
    assert region.leader_store_id == last  # one of three peers elects nobody


def test_a_lonely_replica_waits_for_its_store(state: ClusterState) -> None:
    topology = make(state, stores=2, replicas=1)

    topology.set_running(1, False)

    assert topology.region_of(key("a")).leader_store_id == 1


def test_a_death_is_told_and_kept(tmp_path: Path) -> None:
    state = ClusterState(directory=tmp_path)
    topology = make(state, stores=2)
    told: list[int] = []
    topology.on_death.append(lambda store: told.append(store.id))
    topology.kill(2, "a file was missing")
    state.close()

    again = ClusterState(directory=tmp_path)
    assert told == [2]
    assert Topology(state=again, stores=2).stores[2].death == "a file was missing"
    again.close()


def test_everything_is_there_again(tmp_path: Path) -> None:
    def picture(topology: Topology) -> list[dict[str, Any]]:
        return [asdict(r) for r in topology.regions]

    state = ClusterState(directory=tmp_path)
    first = make(state, stores=3, replicas=2, split_keys=[UserKey(b"m")])
    first.split(first.region_of(key("a")).id, [key("c")])
    first.transfer_leader(first.region_of(key("a")).id, 2)
    first.move_peer(first.region_of(key("z")).id, first.region_of(key("z")).leader_store_id, 1)
    was, last_id = picture(first), first.new_id()
    state.close()

    state = ClusterState(directory=tmp_path)
    second = Topology(state=state, stores=3, replicas=2, split_keys=[UserKey(b"ignored")])
    assert picture(second) == was
    assert second.cluster_id == first.cluster_id
    assert second.new_id() > last_id
    state.close()


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"api_version": ApiVersion.V2}, "api_version"),
        ({"stores": 2}, "stores"),
        ({"replicas": 2}, "replicas"),
        ({"cluster_id": 7}, "cluster_id"),
    ],
)
def test_a_directory_keeps_its_kind_of_cluster(state: ClusterState, options: dict[str, Any], parameter: str) -> None:
    kind: dict[str, Any] = {"stores": 3, "replicas": 1, "cluster_id": 6}
    Topology(state=state, **kind)

    with pytest.raises(InvalidOptionError, match="data directory holds a cluster with") as error:
        Topology(state=state, **{**kind, **options})
    assert error.value.parameter == parameter


def test_replicas_must_fit_on_the_stores(state: ClusterState) -> None:
    with pytest.raises(InvalidOptionError, match="give a number from 1 to 2"):
        Topology(state=state, stores=2, replicas=3)


def test_one_cluster_at_a_time_in_a_directory(tmp_path: Path) -> None:
    first = ClusterState(directory=tmp_path)
    with pytest.raises(InvalidOptionError, match="in use by another embedded cluster"):
        ClusterState(directory=tmp_path)
    first.close()
    ClusterState(directory=tmp_path).close()


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidOptionError, match="cannot be used") as error:
        ClusterState(directory=tmp_path / "file" / "data")
    assert error.value.parameter == "data_dir"
