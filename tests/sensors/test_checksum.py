from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowRescheduleException
from airflow.sdk.execution_time.context import OutletEventAccessors
from structlog.testing import capture_logs

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.exceptions import (
    BackupInvalidError,
    ChecksumMismatchError,
    InvalidOptionError,
    JobCancelledError,
    TransientError,
)
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.proto.methods import KV_RAW_CHECKSUM
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.support.front import connect, fill, soon


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedCluster]:
    """A V1 cluster with pairs."""
    with ThreadedCluster(data_dir=tmp_path_factory.mktemp("v1"), api_version=ApiVersion.V1, stores=2) as cluster:
        fill(cluster)
        yield cluster


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch, cluster: ThreadedCluster) -> Iterator[None]:
    connect(monkeypatch, "tikv_default", cluster)
    connect(monkeypatch, "tikv_nowhere", "127.0.0.1:1", connect_timeout="300ms")
    yield
    cluster.faults.clear()


@pytest.fixture
def backup(tmp_path: Path) -> str:
    """A backup of all pairs."""
    url = f"local://{tmp_path / 'backup'}"
    BackupRawOperator(task_id="backup", storage=url).execute({})
    return url


@pytest.fixture
def one_more(cluster: ThreadedCluster, backup: str) -> Iterator[None]:
    """A pair that the backup does not have."""
    cluster.put([(UserKey(b"key/000"), b"changed since")])
    yield
    cluster.put([(UserKey(b"key/000"), b"value 0")])


class TaskInstance:
    """What a rescheduled sensor asks its task instance."""

    dag_id, task_id, run_id, map_index = "dag", "task", "manual__1", -1

    def get_first_reschedule_date(self, context: Any) -> datetime | None:
        return None


def sensor(backup: str, **options: Any) -> ChecksumSensor:
    return ChecksumSensor(**{"task_id": "verify", "storage": backup, "poke_interval": 0.01, **options})


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
@pytest.mark.parametrize("on_mismatch", ["wait", "fail"])
def test_equal_sides_end_the_wait(cluster: ThreadedCluster, backup: str, mode: str, on_mismatch: str) -> None:
    context: Any = {"ti": TaskInstance()}
    with capture_logs() as logs:
        result = sensor(backup, mode=mode, on_mismatch=on_mismatch).execute(context)
    assert json.loads(json.dumps(result)) == result
    assert result["matches"] is True
    assert result["actual"] == result["expected"]
    assert result["actual"]["total_kvs"] == 300
    assert any(entry["event"].startswith('["Raw checksum success summary"]') for entry in logs)


def test_asset_events_tell_the_result(backup: str) -> None:
    asset = Asset("verified")
    events = OutletEventAccessors()
    context: Any = {"outlet_events": events}
    result = sensor(backup, outlets=[asset]).execute(context)
    assert events[asset].extra == {
        "storage": result["storage"],
        "pairs": 300,
        "bytes": result["actual"]["total_bytes"],
        "checksum": result["actual"],
        "cluster_id": result["cluster_id"],
    }


def test_a_range_is_compared_alone(backup: str, one_more: None) -> None:
    result = sensor(backup, start="key/1", end="key/2", format="raw", on_mismatch="fail").execute({})
    assert result["actual"]["total_kvs"] == 100


def test_a_mismatch_fails_with_the_numbers_of_both_sides(cluster: ThreadedCluster, backup: str, one_more: None) -> None:
    with pytest.raises(AirflowFailException) as caught:
        sensor(backup, on_mismatch="FAIL").execute({})
    cause = caught.value.__cause__
    assert isinstance(cause, ChecksumMismatchError)
    assert cause.expected != cause.actual
    assert cause.actual.crc64xor == cluster.checksum().crc64xor
    assert str(cause.expected) in str(caught.value)
    assert str(cause.actual) in str(caught.value)


def test_a_mismatch_may_skip_softly(backup: str, one_more: None) -> None:
    with pytest.raises(AirflowSkipException):
        sensor(backup, on_mismatch="fail", soft_fail=True).execute({})


def test_a_mismatch_waits_until_the_sides_are_equal(cluster: ThreadedCluster, backup: str, one_more: None) -> None:
    pokes: list[bool] = []

    class Watched(ChecksumSensor):
        def poke(self, context: Any) -> Any:
            found = super().poke(context)
            pokes.append(bool(found))
            cluster.put([(UserKey(b"key/000"), b"value 0")])
            return found

    result = Watched(task_id="verify", storage=backup, poke_interval=0.01).execute({})
    assert pokes == [False, True]
    assert result["matches"] is True


def test_a_mismatch_is_rescheduled(backup: str, one_more: None) -> None:
    context: Any = {"ti": TaskInstance()}
    with capture_logs() as logs, pytest.raises(AirflowRescheduleException) as caught:
        sensor(backup, mode="reschedule", poke_interval=600).execute(context)
    assert caught.value.reschedule_date > datetime.now(timezone.utc)
    assert any(entry["event"].startswith('["Raw checksum mismatch summary"]') for entry in logs)


def test_a_mismatch_times_out(backup: str, one_more: None) -> None:
    with pytest.raises(AirflowSensorTimeout):
        sensor(backup, timeout=0.001).execute({})


def test_a_converted_backup_is_compared_with_its_source(tmp_path: Path) -> None:
    url = f"local://{tmp_path / 'converted'}"
    BackupRawOperator(task_id="backup", storage=url, dst_api_version="v2").execute({})
    assert sensor(url, on_mismatch="fail").execute({})["actual"]["total_kvs"] == 300


def test_a_missing_backup_may_be_waited_for(backup: str, tmp_path: Path) -> None:
    path, aside = tmp_path / "backup" / "backupmeta", tmp_path / "aside"
    path.rename(aside)
    context: Any = {"ti": TaskInstance()}
    with capture_logs() as logs, pytest.raises(AirflowRescheduleException):
        sensor(backup, on_missing="wait", mode="reschedule", on_mismatch="fail").execute(context)
    assert any(entry["event"].startswith("there is no backup in") for entry in logs)
    path.write_bytes(b"torn")
    with pytest.raises(AirflowFailException, match="damaged"):
        sensor(backup, on_missing="wait").execute({})
    path.unlink()
    aside.rename(path)
    assert sensor(backup, on_missing="wait").execute({})["matches"] is True


def test_what_is_not_said_means_the_default(backup: str, one_more: None) -> None:
    assert not sensor(backup, on_mismatch=None, on_missing="").poke({})


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"on_mismatch": "shrug"}, InvalidOptionError),
        ({"on_mismatch": 1}, InvalidOptionError),
        ({"on_missing": "shrug"}, InvalidOptionError),
        ({"format": "octal"}, InvalidOptionError),
        ({"storage": "/no/such/backup"}, BackupInvalidError),
    ],
)
def test_what_cannot_be_compared_fails_for_good(backup: str, options: dict[str, Any], cause: type[Exception]) -> None:
    with pytest.raises(AirflowFailException) as caught:
        sensor(backup, **options).execute({})
    assert isinstance(caught.value.__cause__, cause)


def test_a_cluster_that_is_away_is_worth_a_retry(backup: str) -> None:
    with pytest.raises(TransientError):
        sensor(backup, tikv_conn_id="tikv_nowhere").execute({})


def test_a_killed_comparison_ends_at_once(cluster: ThreadedCluster, backup: str) -> None:
    stuck = cluster.faults.fail(KV_RAW_CHECKSUM, delay_s=3600, times=None)
    task = sensor(backup)
    with soon(lambda: stuck.hits >= 1, task.on_kill), pytest.raises(JobCancelledError):
        task.execute({})
