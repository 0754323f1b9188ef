"""The sensor's wait in the triggerer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow.sdk import Asset
from airflow.sdk.execution_time.context import OutletEventAccessors
from structlog.testing import capture_logs

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.exceptions import ChecksumMismatchError, TransientError
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.proto.methods import KV_RAW_CHECKSUM
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from airflow_provider_tikvbr.tikv.keys import UserKey
from airflow_provider_tikvbr.triggers.checksum import ChecksumTrigger
from tests.support.deferral import defer, fire, run_deferred
from tests.support.waiting import until


@pytest.fixture
def backup(tmp_path: Path) -> str:
    """A backup of all pairs."""
    url = f"local://{tmp_path / 'backup'}"
    BackupRawOperator(task_id="backup", storage=url).execute({})
    return url


@pytest.fixture
def one_more(source: ThreadedCluster, backup: str) -> Iterator[None]:
    """A pair that the backup does not have."""
    source.put([(UserKey(b"key/000"), b"changed since")])
    yield
    source.put([(UserKey(b"key/000"), b"value 0")])


def sensor(backup: str, **options: Any) -> ChecksumSensor:
    given = {"task_id": "verify", "storage": backup, "poke_interval": 0.01, "deferrable": True, **options}
    return ChecksumSensor(**given)


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
def test_equal_sides_end_the_wait(backup: str, mode: str) -> None:
    asset, events = Asset("verified"), OutletEventAccessors()
    context: Any = {"outlet_events": events}
    with capture_logs() as logs:
        result = run_deferred(sensor(backup, mode=mode, outlets=[asset]), context)
    assert json.loads(json.dumps(result)) == result
    assert result["matches"] is True
    assert events[asset].extra["pairs"] == 300
    assert any(entry["event"].startswith('["Raw checksum success summary"]') for entry in logs)


def test_the_sensors_own_options_are_handed_over(backup: str) -> None:
    before = time.time()
    task = sensor(backup, poke_interval=7, timeout=70, exponential_backoff=True, max_wait=timedelta(minutes=1))
    trigger = defer(task)
    _, kwargs = trigger.serialize()
    assert before <= kwargs["started"] <= time.time()
    assert {name: kwargs[name] for name in ("poke_interval_s", "timeout_s", "backoff", "max_wait_s", "poke_again")} == {
        "poke_interval_s": 7,
        "timeout_s": 70,
        "backoff": True,
        "max_wait_s": 60,
        "poke_again": False,
    }


@pytest.mark.parametrize(
    ("options", "intervals"),
    [
        ({}, [10, 10, 10, 10]),
        ({"backoff": True}, [10, 20, 40, 80]),
        ({"backoff": True, "max_wait_s": 30}, [10, 20, 30, 30]),
    ],
)
def test_pokes_are_as_far_apart_as_asked(options: dict[str, Any], intervals: list[float]) -> None:
    trigger = ChecksumTrigger(parameters={}, poke_interval_s=10, started=0, timeout_s=1, **options)
    assert [trigger._interval_s(at) for at in range(4)] == intervals


async def test_a_mismatch_waits_until_the_sides_are_equal(source: ThreadedCluster, backup: str, one_more: None) -> None:
    trigger = defer(sensor(backup))
    with capture_logs() as logs:
        running = asyncio.ensure_future(fire(trigger))
        await until(lambda: any(entry["event"].startswith('["Raw checksum mismatch summary"]') for entry in logs))
        await asyncio.to_thread(source.put, [(UserKey(b"key/000"), b"value 0")])
        event = await running
    assert event["result"]["matches"] is True


def test_a_mismatch_fails_with_the_numbers_of_both_sides(source: ThreadedCluster, backup: str, one_more: None) -> None:
    with pytest.raises(AirflowFailException, match="does not hold what the backup") as caught:
        run_deferred(sensor(backup, on_mismatch="fail"))
    assert isinstance(caught.value.__cause__, ChecksumMismatchError)
    assert str(source.checksum().crc64xor) in str(caught.value)


def test_a_mismatch_may_skip_softly(backup: str, one_more: None) -> None:
    with pytest.raises(AirflowSkipException):
        run_deferred(sensor(backup, on_mismatch="fail", soft_fail=True))
    with pytest.raises(AirflowSkipException):
        run_deferred(sensor(backup, on_mismatch="fail", never_fail=True))


@pytest.mark.parametrize(
    ("options", "raised"), [({}, AirflowSensorTimeout), ({"soft_fail": True}, AirflowSkipException)]
)
def test_a_wait_ends_with_the_sensors_timeout(
    backup: str, one_more: None, options: dict[str, Any], raised: type[Exception]
) -> None:
    with pytest.raises(raised):
        run_deferred(sensor(backup, timeout=0.05, **options))


async def test_the_timeout_counts_from_the_start_whichever_triggerer_it_is(backup: str, one_more: None) -> None:
    trigger = defer(sensor(backup, timeout=3600, poke_interval=600))
    path_and_kwargs = trigger.serialize()[1]
    late = ChecksumTrigger(**{**path_and_kwargs, "started": time.time() - 3601})
    assert (await fire(late))["status"] == "timeout"


async def test_a_missing_backup_may_be_waited_for(backup: str, tmp_path: Path) -> None:
    path, aside = tmp_path / "backup" / "backupmeta", tmp_path / "aside"
    path.rename(aside)
    with capture_logs() as logs:
        running = asyncio.ensure_future(fire(defer(sensor(backup, on_missing="wait"))))
        await until(lambda: any(entry["event"].startswith("there is no backup in") for entry in logs))
        aside.rename(path)
        assert (await running)["status"] == "success"


def test_a_missing_backup_fails_for_good(tmp_path: Path) -> None:
    with pytest.raises(AirflowFailException, match="there is no backup in"):
        run_deferred(sensor(str(tmp_path / "none")))


def test_a_mistake_may_skip_softly(backup: str) -> None:
    with pytest.raises(AirflowFailException, match="on_mismatch"):
        sensor(backup, on_mismatch="shrug").execute({})
    with pytest.raises(AirflowSkipException):
        sensor(backup, on_mismatch="shrug", soft_fail=True).execute({})


def test_a_cluster_that_is_away_is_worth_a_retry(backup: str) -> None:
    with pytest.raises(TransientError):
        run_deferred(sensor(backup, tikv_conn_id="tikv_nowhere"))
    with pytest.raises(AirflowSkipException):
        run_deferred(sensor(backup, tikv_conn_id="tikv_nowhere", never_fail=True))


def test_a_cluster_that_is_away_may_be_waited_for(backup: str) -> None:
    with capture_logs() as logs, pytest.raises(AirflowSensorTimeout):
        run_deferred(sensor(backup, tikv_conn_id="tikv_nowhere", silent_fail=True, timeout=0.1))
    assert any(entry["event"].startswith("Sensor poke failed") for entry in logs)


async def test_a_cancelled_wait_ends(source: ThreadedCluster, backup: str) -> None:
    stuck = source.faults.fail(KV_RAW_CHECKSUM, delay_s=3600, times=None)
    running = asyncio.ensure_future(fire(defer(sensor(backup))))
    await until(lambda: stuck.hits >= 1)
    running.cancel()
    await asyncio.wait((running,))
    assert running.cancelled()
