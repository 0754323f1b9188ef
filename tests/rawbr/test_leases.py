from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import grpc
import pytest

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.exceptions import BudgetExceededError, ProtocolError, StoreUnavailableError
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.rawbr import leases
from airflow_provider_tikvbr.rawbr.events import Event
from airflow_provider_tikvbr.rawbr.leases import (
    ImportModeLease,
    Lease,
    SchedulerLease,
    SpeedLimitLease,
    hold,
    put_back,
    temporary_settings,
)
from airflow_provider_tikvbr.tikv.cluster import Cluster
from tests.support.target import is_as_before, target, warnings_in
from tests.support.waiting import until

# --- import mode and speed limit ---


async def test_import_mode_is_on_meanwhile_and_off_again(tmp_path: Path) -> None:
    async with target(tmp_path, stores=3) as (embedded, cluster):
        async with ImportModeLease(cluster, interval_s=300):
            assert all(e.import_mode.is_on for e in embedded.engines.values())
        assert is_as_before(embedded)


async def test_import_mode_is_asked_for_again_and_again(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2) as (embedded, cluster), ImportModeLease(cluster, interval_s=0.02):
        for engine in embedded.engines.values():
            engine.import_mode.switch(False)
        await until(lambda: all(e.import_mode.is_on for e in embedded.engines.values()))


async def test_a_store_that_is_down_gets_import_mode_when_it_is_back(tmp_path: Path) -> None:
    events: list[Event] = []
    async with target(tmp_path, stores=2) as (embedded, cluster):
        await embedded.stop_store(2)
        async with ImportModeLease(cluster, interval_s=0.05, listener=events.append):
            assert embedded.engines[1].import_mode.is_on
            assert len(warnings_in(events)) == 1
            assert "store 2" in warnings_in(events)[0]
            await embedded.start_store(2)
            await until(lambda: embedded.engines[2].import_mode.is_on)
        assert is_as_before(embedded)
        assert len(events) == 1


async def test_the_speed_is_limited_meanwhile(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2) as (embedded, cluster):
        async with SpeedLimitLease(cluster, bytes_per_s=12345):
            assert [e.download_limiter.rate for e in embedded.engines.values()] == [12345, 12345]
        assert is_as_before(embedded)


async def test_a_limit_that_a_crashed_job_left_behind_goes(tmp_path: Path) -> None:
    async with target(tmp_path) as (embedded, cluster):
        embedded.engines[1].download_limiter.set_rate(1)
        async with SpeedLimitLease(cluster, bytes_per_s=0):
            assert is_as_before(embedded)


async def test_a_store_that_refuses_for_good_ends_the_job_and_all_is_undone(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2) as (embedded, cluster):
        embedded.faults.fail(methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT, store_id=2, code=grpc.StatusCode.INVALID_ARGUMENT)
        with pytest.raises(ProtocolError):
            async with SpeedLimitLease(cluster, bytes_per_s=5):
                pytest.fail("the limit is not set")
        assert is_as_before(embedded)


# --- schedulers ---


@pytest.mark.parametrize("version", ["5.4.0", "8.5.0"])
async def test_schedulers_are_paused_meanwhile(version: str, tmp_path: Path) -> None:
    async with target(tmp_path, stores=3, version=version) as (embedded, cluster):
        config = embedded.pd.config.values()
        async with SchedulerLease(cluster):
            assert set(embedded.pd.schedulers.paused()) == {
                "balance-hot-region-scheduler",
                "balance-leader-scheduler",
                "balance-region-scheduler",
            }
            assert {name: str(value) for name, value in embedded.pd.config.ttl_values().items()} == {
                "schedule.max-merge-region-keys": "0",
                "schedule.max-merge-region-size": "0",
                "schedule.enable-location-replacement": "false",
                "schedule.max-pending-peer-count": "2147483647",
                "schedule.leader-schedule-limit": "12",
                "schedule.region-schedule-limit": "40",
                "schedule.max-snapshot-count": "40",
            }
            # What is permanent has not changed, so a crash leaves nothing behind.
            assert embedded.pd.config.values() == config
        assert is_as_before(embedded)
        assert embedded.pd.config.values() == config


async def test_without_renewal_the_pause_ends_by_itself(tmp_path: Path) -> None:
    now = 1_000_000.0
    async with target(tmp_path, clock=lambda: now) as (embedded, cluster):
        lease = SchedulerLease(cluster)
        await lease.arm()
        now += 299
        assert not is_as_before(embedded)
        now += 2
        assert is_as_before(embedded)


async def test_the_pause_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_PAUSE_S", 0.01)
    now = 1_000_000.0
    async with target(tmp_path, clock=lambda: now) as (embedded, cluster), SchedulerLease(cluster):
        first = embedded.pd.schedulers.paused()
        now += 100
        await until(lambda: all(embedded.pd.schedulers.paused()[name] == until + 100 for name, until in first.items()))


def test_settings_that_pd_does_not_know_are_left_out() -> None:
    assert temporary_settings({}, stores=3) == {}
    assert temporary_settings({"leader-schedule-limit": 4, "max-merge-region-size": 20, "other": 1}, stores=2) == {
        "leader-schedule-limit": 8,
        "max-merge-region-size": 0,
    }


# --- any lease ---


class Switch(Lease):
    """A lease that touches nothing, and fails as told."""

    name = "the switch"

    def __init__(self, *, arm: Exception | None = None, undo: Exception | None = None, renew_s: float = 0) -> None:
        self.events: list[Event] = []
        super().__init__(None, renew_s=renew_s, listener=self.events.append)  # type: ignore[arg-type]
        self.arm_error = arm
        self.undo_error = undo
        self.on = False
        self.armed = 0
        self.undone = 0

    async def arm(self) -> None:
        self.armed += 1
        self.on = True
        if self.arm_error is not None:
            raise self.arm_error

    def undo_steps(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        async def fail() -> None:
            self.undone += 1
            if self.undo_error is not None:
                raise self.undo_error

        async def off() -> None:
            await asyncio.sleep(0)
            self.on = False

        return {"here": fail, "there": off}


async def test_each_step_of_an_undo_is_tried_and_what_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "UNDO_S", 0.3)
    monkeypatch.setattr(leases, "UNDO_PAUSE_S", 0.01)
    switch = Switch(undo=StoreUnavailableError("it is down"))
    async with switch:
        assert switch.armed == 1
    assert not switch.on
    assert switch.undone > 1
    assert warnings_in(switch.events) == ["could not end the switch; it ends by itself: here: it is down"]


async def test_an_undo_that_breaks_does_not_keep_the_others_from_theirs() -> None:
    broken, whole = Switch(undo=RuntimeError("broken")), Switch()
    async with hold(broken, whole):
        pass
    assert not broken.on
    assert not whole.on
    assert warnings_in(broken.events) == ["could not end the switch; it ends by itself: here: RuntimeError: broken"]


async def test_an_undo_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "UNDO_S", 0.1)
    switch = Switch()

    async def hang() -> None:
        await asyncio.sleep(3600)

    switch.undo_steps = lambda: {"here": hang}  # type: ignore[method-assign]
    async with switch:
        pass
    assert warnings_in(switch.events) == ["could not end the switch; it ends by itself: here: no answer in time"]


async def test_what_fails_to_start_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "ARM_BUDGET_S", 0.01)
    first, second, third = Switch(), Switch(arm=StoreUnavailableError("it is down")), Switch()
    with pytest.raises(BudgetExceededError, match="it is down"):
        async with hold(first, second, third):
            pytest.fail("the second did not start")
    assert not first.on
    assert not second.on
    assert third.armed == 0


async def test_a_renewal_that_fails_is_told_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Switch(renew_s=0.01)
    async with switch:
        switch.arm_error = StoreUnavailableError("it is down")
        seen = switch.armed
        await until(lambda: switch.armed > seen + 3)
        assert warnings_in(switch.events) == ["could not renew the switch: it is down"]
        switch.arm_error = None
        seen = switch.armed
        await until(lambda: switch.armed > seen + 1)
    assert len(switch.events) == 1


async def test_everything_is_undone_when_the_job_is_cancelled(tmp_path: Path) -> None:
    async with target(tmp_path, stores=3) as (embedded, cluster):
        begun = asyncio.Event()

        async def job() -> None:
            async with hold(
                SpeedLimitLease(cluster, bytes_per_s=5),
                ImportModeLease(cluster, interval_s=300),
                SchedulerLease(cluster),
            ):
                begun.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(job())
        await begun.wait()
        assert not is_as_before(embedded)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_as_before(embedded)


async def test_one_store_that_is_down_does_not_keep_the_others_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "UNDO_S", 0.5)
    events: list[Event] = []
    async with target(tmp_path, stores=3) as (embedded, cluster):
        async with hold(
            SpeedLimitLease(cluster, bytes_per_s=5, listener=events.append),
            ImportModeLease(cluster, interval_s=300, listener=events.append),
            SchedulerLease(cluster, listener=events.append),
        ):
            await embedded.stop_store(2)
        for store_id in (1, 3):
            assert not embedded.engines[store_id].import_mode.is_on
            assert not embedded.engines[store_id].download_limiter.rate
        assert not embedded.pd.schedulers.paused()
        found = warnings_in(events)
        assert len(found) == 2
        assert all("; a store " in message and ": store 2 (" in message for message in found)


# --- what a killed job has left ---


async def leave_all(cluster: Cluster) -> None:
    """Change all that there is to change, as a job that is killed."""
    for lease in (
        ImportModeLease(cluster, interval_s=300),
        SpeedLimitLease(cluster, bytes_per_s=5),
        SchedulerLease(cluster),
    ):
        await lease.begin()
        await lease.pause()


async def test_what_a_killed_job_has_left_is_put_back(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2) as (embedded, cluster):
        config = embedded.pd.config.values()
        await leave_all(cluster)
        for made in (ImportModeLease(cluster, interval_s=300), SpeedLimitLease(cluster, bytes_per_s=0)):
            await put_back(made)
        assert not any(e.import_mode.is_on or e.download_limiter.rate for e in embedded.engines.values())
        assert not is_as_before(embedded)
        await put_back(SchedulerLease(cluster))
        assert is_as_before(embedded)
        assert embedded.pd.config.values() == config


async def test_what_cannot_be_put_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "UNDO_S", 0.3)
    events: list[Event] = []
    async with target(tmp_path, stores=2) as (embedded, cluster):
        await leave_all(cluster)
        embedded.faults.fail(methods.IMPORT_SWITCH_MODE, store_id=2, code=grpc.StatusCode.UNAVAILABLE, times=None)
        embedded.faults.add(Rule(kind=Kind.STATUS, method="GET /pd/api/v1/schedulers", status=403))
        await put_back(
            ImportModeLease(cluster, interval_s=300, listener=events.append),
            SchedulerLease(cluster, listener=events.append),
        )
        assert [e.import_mode.is_on for e in embedded.engines.values()] == [False, True]
    told = sorted(warnings_in(events))
    assert len(told) == 2
    assert "could not end import mode; a store leaves it by itself after ten minutes: store 2" in told[0]
    assert (
        "the pause of PD's schedulers may be left of an earlier try; it ends by itself after five minutes: " in told[1]
    )
