from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from airflow_provider_tikvbr.embedded.safepoints import ServiceSafePoint
from airflow_provider_tikvbr.exceptions import InvalidOptionError, PDUnavailableError
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.rawbr import safepoint
from airflow_provider_tikvbr.rawbr.options import GcTtlFrom
from airflow_provider_tikvbr.rawbr.safepoint import SafepointLease, backup_ts_of
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from tests.rawbr.jobs import Events, cluster, meanwhile
from tests.support.waiting import until

V2 = ApiVersion.V2


def test_backup_ts_keeps_the_logical_part() -> None:
    now = (1_700_000_000_000 << 18) + 5
    assert backup_ts_of(now, 60) == (1_699_999_940_000 << 18) + 5
    assert backup_ts_of(now, 0) == now
    assert backup_ts_of(5 << 18, 60) == 1


async def test_it_is_registered_and_removed(tmp_path: Path) -> None:
    async with cluster(tmp_path, V2, pairs=[]) as (embedded, client):
        before = await client.pd.tso()
        async with SafepointLease(client, gc_ttl_s=100, safe_interval_s=30) as lease:
            assert isinstance(lease, SafepointLease)
            (service,) = embedded.pd.safe_points.services().values()
            assert service.service_id == lease.service_id
            assert service.service_id.startswith("br-")
            assert service.safe_point == lease.backup_ts - 1
            assert 90 <= embedded.pd.safe_points.ttl_s(service) <= 100
            assert 0 <= lease.backup_ts - backup_ts_of(before, 30) < 60_000 << 18
            lease.check()
        assert not embedded.pd.safe_points.services()


async def test_it_is_kept_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safepoint, "LEAST_TTL_S", 3)
    async with cluster(tmp_path, V2, pairs=[]) as (embedded, client):
        async with SafepointLease(client, gc_ttl_s=0, safe_interval_s=0) as lease:
            assert isinstance(lease, SafepointLease)
            (first,) = embedded.pd.safe_points.services().values()

            def renewed() -> bool:
                return any(s.expires_at > first.expires_at + 1 for s in embedded.pd.safe_points.services().values())

            await until(renewed)
            assert list(embedded.pd.safe_points.services()) == [lease.service_id]
            lease.check()
        assert not embedded.pd.safe_points.services()


@pytest.mark.parametrize("version", ["8.5.0", "9.0.0"])
async def test_it_is_refused_when_gc_has_passed(version: str, tmp_path: Path) -> None:
    async with cluster(tmp_path, V2, pairs=[], version=version) as (embedded, client):
        embedded.pd.safe_points.update_gc(await client.pd.tso())
        lease = SafepointLease(client, safe_interval_s=90)
        with pytest.raises(InvalidOptionError, match=r"safe_interval \(1m30s\) has to be shorter") as caught:
            await lease.start()
        assert caught.value.parameter == "safe_interval"
        assert not embedded.pd.safe_points.services()


async def test_it_is_refused_when_only_the_services_tell_it(tmp_path: Path) -> None:
    """GC that is about to run has told its services first."""
    async with cluster(tmp_path, V2, pairs=[]) as (embedded, client):
        now = await client.pd.tso()
        embedded.pd.safe_points.update_service("gc_worker", (1 << 63) - 1, now)
        lease = SafepointLease(client, safe_interval_s=90)
        with pytest.raises(InvalidOptionError, match=f"it stands at {now}"):
            await lease.start()
        assert not embedded.pd.safe_points.services()


async def test_a_loss_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safepoint, "LEAST_TTL_S", 1)
    events = Events()
    async with cluster(tmp_path, V2, pairs=[]) as (embedded, client):
        async with SafepointLease(client, gc_ttl_s=1, safe_interval_s=0, listener=events) as lease:
            assert isinstance(lease, SafepointLease)
            safe_points = embedded.pd.safe_points
            safe_points.update_service(lease.service_id, 0, 0)
            safe_points.update_gc(await client.pd.tso())
            await until(lambda: events.notes)
            with pytest.raises(PDUnavailableError, match="expired because PD did not answer for 1s"):
                lease.check()
        assert "could not renew the GC safepoint of the backup" in events.notes[0]


async def test_a_pd_that_stumbles_is_asked_again(tmp_path: Path) -> None:
    events = Events()
    async with cluster(tmp_path, V2, pairs=[]) as (embedded, client):
        method = methods.PD_UPDATE_SERVICE_GC_SAFE_POINT
        embedded.faults.fail(method, code=grpc.StatusCode.UNAVAILABLE, times=2)
        async with SafepointLease(client, safe_interval_s=0, listener=events):
            assert len(embedded.pd.safe_points.services()) == 1
            embedded.faults.fail(method, code=grpc.StatusCode.UNAVAILABLE, times=2)
        assert not embedded.pd.safe_points.services()
    assert not events.notes


# --- what is left of it ---


class Clock:
    """A time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._passed = 0.0
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + self._passed)

    def pass_s(self, seconds: float) -> None:
        self._passed += seconds


@pytest.mark.parametrize(
    ("gc_ttl_s", "gcttl_from", "registered", "left"),
    [
        (300, GcTtlFrom.START, 300, 289),
        (300, GcTtlFrom.END, 300, 300),
        (12, GcTtlFrom.START, 30, 1),
        (12, GcTtlFrom.END, 30, 12),
        (11, GcTtlFrom.START, 30, None),
        (0, GcTtlFrom.START, 30, None),
        (0, GcTtlFrom.END, 30, None),
    ],
)
async def test_what_is_left_at_the_end_runs_out_by_itself(
    gc_ttl_s: int,
    gcttl_from: GcTtlFrom,
    registered: int,
    left: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cluster(tmp_path, V2, pairs=[]) as (embedded, client):
        points, told = embedded.pd.safe_points, []
        update = points.update_service

        def record(service_id: str, ttl_s: int, safe_point: int) -> ServiceSafePoint:
            told.append((service_id, ttl_s, safe_point))
            return update(service_id, ttl_s, safe_point)

        monkeypatch.setattr(points, "update_service", record)
        clock = Clock(monkeypatch)
        async with SafepointLease(client, safe_interval_s=0, gc_ttl_s=gc_ttl_s, gcttl_from=gcttl_from) as lease:
            assert isinstance(lease, SafepointLease)
            clock.pass_s(11)
            await lease.leave()
    name, point = lease.service_id, lease.backup_ts - 1
    assert told == [(name, registered, point), (name, left or 0, point)]
    assert list(points.services()) == ([name] if left else [])


async def test_a_pd_that_does_not_let_it_last_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events()
    async with cluster(tmp_path, V2, pairs=[]) as (embedded, client):
        async with SafepointLease(client, safe_interval_s=0, gc_ttl_s=100, listener=events) as lease:
            assert isinstance(lease, SafepointLease)
            method = methods.PD_UPDATE_SERVICE_GC_SAFE_POINT
            embedded.faults.fail(method, code=grpc.StatusCode.INTERNAL, times=None)
            await lease.leave()
        assert list(embedded.pd.safe_points.services()) == [lease.service_id]
    (note,) = events.notes
    assert note.startswith("could not let the GC safepoint of the backup last for another 1m40s: ")


async def test_a_job_that_is_stopped_at_its_very_end_leaves_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path, V2, pairs=[]) as (embedded, client):
        lease = SafepointLease(client, safe_interval_s=0, gc_ttl_s=100)
        slow = embedded.faults.fail(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT, delay_s=0.2, times=0)

        async def job() -> None:
            async with lease:
                slow.times = 1
                await lease.leave()

        task = asyncio.create_task(job())
        with pytest.raises(asyncio.CancelledError):
            await meanwhile(task, lambda: slow.hits == 1, task.cancel)
        assert not embedded.pd.safe_points.services()
