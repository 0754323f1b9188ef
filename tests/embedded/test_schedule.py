from __future__ import annotations

import pytest

from airflow_provider_tikvbr.embedded.schedule import SCHEDULERS, ScheduleConfig, Schedulers
from airflow_provider_tikvbr.embedded.state import ClusterState
from tests.support.clock import Clock


def test_a_paused_scheduler_goes_on_by_itself() -> None:
    clock = Clock()
    schedulers = Schedulers(clock=clock)

    schedulers.pause("balance-region-scheduler", 300)

    assert schedulers.paused() == {"balance-region-scheduler": 1300.0}
    clock.now += 300
    assert schedulers.paused() == {}


def test_a_delay_of_zero_resumes_and_all_means_all() -> None:
    schedulers = Schedulers(clock=Clock())
    schedulers.pause("all", 300)
    assert set(schedulers.paused()) == set(SCHEDULERS)
    schedulers.pause("balance-region-scheduler", 0)
    assert set(schedulers.paused()) == set(SCHEDULERS) - {"balance-region-scheduler"}
    with pytest.raises(KeyError):
        schedulers.pause("no-such-scheduler", 300)


def test_values_for_a_while_do_not_show_but_count(state: ClusterState) -> None:
    clock = Clock()
    config = ScheduleConfig(state=state, clock=clock)

    config.update_ttl({"schedule.max-snapshot-count": 40}, 300)

    assert config.values()["max-snapshot-count"] == 64
    assert config.effective("max-snapshot-count") == 40
    assert config.ttl_values() == {"schedule.max-snapshot-count": 40}
    with pytest.raises(ValueError, match="need to clean up TTL first"):
        config.update({"max-snapshot-count": 3})
    clock.now += 300
    assert config.effective("max-snapshot-count") == 64
    config.update({"max-snapshot-count": 3})
    assert config.effective("max-snapshot-count") == 3


def test_zero_seconds_removes_values_for_a_while(state: ClusterState) -> None:
    config = ScheduleConfig(state=state, clock=Clock())
    config.update_ttl({"schedule.max-snapshot-count": 40, "schedule.merge-schedule-limit": 0}, 300)

    config.update_ttl({"schedule.max-snapshot-count": 64}, 0)

    assert config.ttl_values() == {"schedule.merge-schedule-limit": 0}
    with pytest.raises(ValueError, match="unsupported ttl config max-snapshot-count"):
        config.update_ttl({"max-snapshot-count": 40}, 300)


def test_zero_seconds_are_for_good_before_6_1(state: ClusterState) -> None:
    config = ScheduleConfig(state=state, clock=Clock(), zero_is_for_good=True)
    config.update_ttl({"schedule.max-snapshot-count": 40}, 300)

    config.update_ttl({"schedule.max-snapshot-count": 41}, 0)

    assert config.values()["max-snapshot-count"] == 41
    assert config.ttl_values() == {"schedule.max-snapshot-count": 40}


def test_all_values_outlive_a_restart(state: ClusterState) -> None:
    clock = Clock()
    config = ScheduleConfig(state=state, clock=clock)
    config.update({"leader-schedule-limit": 9, "no-such-setting": 1})
    config.update_ttl({"schedule.max-snapshot-count": 40, "schedule.merge-schedule-limit": 1}, 300)
    config.update_ttl({"schedule.merge-schedule-limit": 1}, 0)

    again = ScheduleConfig(state=state, clock=clock)

    assert again.values()["leader-schedule-limit"] == 9
    assert "no-such-setting" not in again.values()
    assert again.ttl_values() == {"schedule.max-snapshot-count": 40}
    clock.now += 300
    assert again.ttl_values() == {}
