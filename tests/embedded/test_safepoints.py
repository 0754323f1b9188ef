from __future__ import annotations

import pytest

from airflow_provider_tikvbr.embedded.safepoints import FOREVER, GC_WORKER, SafePoints, ServiceSafePoint
from airflow_provider_tikvbr.embedded.state import ClusterState
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(state: ClusterState, clock: Clock, *, barriers: bool) -> SafePoints:
    return SafePoints(state=state, clock=clock, barriers=barriers)


@pytest.mark.parametrize("barriers", [False, True])
def test_a_service_holds_its_safe_point_until_it_expires(state: ClusterState, clock: Clock, barriers: bool) -> None:
    points = make(state, clock, barriers=barriers)

    least = points.update_service("br-1", 60, 500)

    assert least == ServiceSafePoint(GC_WORKER, 0, FOREVER)
    assert points.services() == {"br-1": ServiceSafePoint("br-1", 500, 1060)}
    clock.now += 59
    assert set(points.services()) == {"br-1"}
    clock.now += 1
    assert points.services() == {}


@pytest.mark.parametrize("barriers", [False, True])
def test_a_refresh_prolongs_and_zero_removes(state: ClusterState, clock: Clock, barriers: bool) -> None:
    points = make(state, clock, barriers=barriers)
    points.update_service("br-1", 60, 500)
    clock.now += 50
    points.update_service("br-1", 60, 501)
    clock.now += 50
    assert points.services()["br-1"].safe_point == 501

    points.update_service("br-1", 0, 501)

    assert points.services() == {}


@pytest.mark.parametrize("barriers", [False, True])
def test_a_safe_point_behind_gc_is_not_taken(state: ClusterState, clock: Clock, barriers: bool) -> None:
    points = make(state, clock, barriers=barriers)
    assert points.update_gc(1000) == 1000

    least = points.update_service("br-1", 60, 999)

    assert least.safe_point == 1000
    assert points.services() == {}


def test_up_to_version_8_the_smallest_service_is_told(state: ClusterState, clock: Clock) -> None:
    points = make(state, clock, barriers=False)
    points.update_service("br-1", 60, 500)
    assert points.update_service(GC_WORKER, FOREVER, 900).service_id == "br-1"

    least = points.update_service("br-2", 60, 499)  # below the smallest, so not taken

    assert (least.service_id, least.safe_point, points.ttl_s(least)) == ("br-1", 500, 60)
    assert set(points.services()) == {"br-1"}


def test_from_version_9_services_hold_gc_worker_back(state: ClusterState, clock: Clock) -> None:
    points = make(state, clock, barriers=True)
    points.update_service("br-1", 60, 500)

    assert points.update_service(GC_WORKER, FOREVER, 900).safe_point == 500
    clock.now += 60
    assert points.update_service(GC_WORKER, FOREVER, 900).safe_point == 900


def test_the_gc_safe_point_never_goes_back(state: ClusterState, clock: Clock) -> None:
    points = make(state, clock, barriers=False)

    assert points.update_gc(10) == 10
    assert points.update_gc(0) == 10
    assert points.gc_safe_point == 10


def test_safe_points_outlive_a_restart(state: ClusterState, clock: Clock) -> None:
    points = make(state, clock, barriers=False)
    points.update_gc(10)
    points.update_service("br-1", 60, 500)
    points.update_service("br-2", 60, 500)
    points.update_service("br-2", 0, 500)

    again = make(state, clock, barriers=False)

    assert again.gc_safe_point == 10
    assert set(again.services()) == {"br-1"}


def test_gc_worker_stays(state: ClusterState, clock: Clock) -> None:
    points = make(state, clock, barriers=False)
    with pytest.raises(ValueError, match="must be infinity"):
        points.update_service(GC_WORKER, 0, 5)
    with pytest.raises(ValueError, match="cannot be empty"):
        points.update_service("", 60, 5)
