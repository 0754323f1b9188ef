from __future__ import annotations

from collections import Counter

import pytest

from airflow_provider_tikvbr.embedded.operators import Operators
from airflow_provider_tikvbr.embedded.state import ClusterState
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.proto import pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import RegionKey
from tests.support.clock import Clock


def crowded(state: ClusterState, *, replicas: int) -> Topology:
    """Nine regions that come from splits, so that all are where the first one was."""
    topology = Topology(state=state, stores=3, replicas=replicas)
    for store_id in topology.stores:
        topology.set_running(store_id, True)
    topology.split(topology.regions[0].id, [RegionKey(bytes([c])) for c in b"abcdefgh"])
    return topology


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_scattering_spreads_peers_and_leaders(state: ClusterState, replicas: int) -> None:
    topology = crowded(state, replicas=replicas)
    operators = Operators(topology=topology, clock=Clock())

    assert operators.scatter([r.id for r in topology.regions]) == []

    peers = Counter(s for r in topology.regions for s in r.store_ids)
    leaders = Counter(r.leader_store_id for r in topology.regions)
    assert peers == Counter(dict.fromkeys([1, 2, 3], 3 * replicas))
    assert leaders == Counter(dict.fromkeys([1, 2, 3], 3))
    assert all(len(set(r.store_ids)) == replicas for r in topology.regions)
    assert all(r.leader_store_id in r.store_ids for r in topology.regions)


def test_scattering_keeps_off_stores_that_are_down_and_regions_at_work(state: ClusterState) -> None:
    topology = crowded(state, replicas=1)
    topology.set_running(3, False)
    pinned = topology.regions[4]
    with topology.pinned(pinned.keys):
        Operators(topology=topology, clock=Clock()).scatter([r.id for r in topology.regions])

    assert {r.leader_store_id for r in topology.regions} == {1, 2}
    assert pinned.leader_store_id == 1


def test_an_operator_runs_ends_and_is_forgotten(state: ClusterState) -> None:
    topology = crowded(state, replicas=1)
    clock = Clock()
    operators = Operators(topology=topology, clock=clock, delay_s=5)
    region = topology.regions[0].id

    assert operators.status(region) is None
    assert operators.scatter([region, 9999]) == [9999]

    found = []
    for wait in (0, 5, 600, 1):
        clock.now += wait
        status = operators.status(region)
        found.append(status and status[1])
    assert found == [pdpb_pb2.RUNNING, pdpb_pb2.SUCCESS, pdpb_pb2.SUCCESS, None]
