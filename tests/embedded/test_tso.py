from __future__ import annotations

import pytest

from airflow_provider_tikvbr.embedded.state import ClusterState
from airflow_provider_tikvbr.embedded.tso import MAX_LOGICAL, TimestampOracle


def test_the_largest_of_a_batch_is_told(state: ClusterState) -> None:
    oracle = TimestampOracle(state=state, clock=lambda: 1000.0)

    assert oracle.allocate() == (1_000_000, 1)
    assert oracle.allocate(10) == (1_000_000, 11)
    assert oracle.next() == 1_000_000 << 18 | 12


def test_batches_never_overlap(state: ClusterState) -> None:
    now = [1000.0]
    oracle = TimestampOracle(state=state, clock=lambda: now[0])
    last = 0
    for step, count in [(0.0, 1), (0.0, MAX_LOGICAL - 1), (0.0, 5), (-50.0, 7), (100.0, 3), (0.0, 1)]:
        now[0] += step
        physical, logical = oracle.allocate(count)
        assert logical < MAX_LOGICAL
        largest = physical << 18 | logical
        assert largest - count >= last
        last = largest


def test_time_does_not_go_back_over_a_restart(state: ClusterState) -> None:
    now = [1000.0]
    last = TimestampOracle(state=state, clock=lambda: now[0]).next()
    now[0] = 900.0

    assert TimestampOracle(state=state, clock=lambda: now[0]).next() > last


def test_a_batch_has_a_size(state: ClusterState) -> None:
    oracle = TimestampOracle(state=state, clock=lambda: 1000.0)
    for count in (0, -1, MAX_LOGICAL):
        with pytest.raises(ValueError, match="cannot allocate"):
            oracle.allocate(count)
