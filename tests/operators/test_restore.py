from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import Asset
from airflow.sdk.execution_time.context import OutletEventAccessors
from structlog.testing import capture_logs

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.exceptions import (
    ApiVersionError,
    BackupInvalidError,
    JobCancelledError,
    KeyRangeError,
    TransientError,
)
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.proto.methods import IMPORT_DOWNLOAD
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, UserKey
from tests.support.front import connect, soon
from tests.support.golden import Golden, truth

FULL = Golden("v1", "full")


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ThreadedCluster]:
    """An empty V1 cluster."""
    with ThreadedCluster(data_dir=tmp_path / "target", api_version=ApiVersion.V1, stores=2) as cluster:
        connect(monkeypatch, "tikv_target", cluster)
        yield cluster


def operator(**options: Any) -> RestoreRawOperator:
    return RestoreRawOperator(**{"task_id": "restore", "storage": FULL.url, "tikv_conn_id": "tikv_target", **options})


def test_it_restores_and_returns_the_summary(target: ThreadedCluster) -> None:
    asset = Asset("restored")
    events = OutletEventAccessors()
    context: Any = {"outlet_events": events}
    with capture_logs() as logs:
        result = operator(checksum=True, outlets=[asset]).execute(context)
    assert json.loads(json.dumps(result)) == result
    assert [(p.key, p.value) for p in target.pairs()] == [(p.key, p.value) for p in truth("v1")]
    assert (result["total_kv"], result["verified"]) == (2000, True)
    assert events[asset].extra["pairs"] == 2000
    assert events[asset].extra["checksum"] == result["checksum"]
    assert any(entry["event"].startswith('["Raw restore success summary"] [total-ranges=') for entry in logs)


def test_a_range_with_options_as_templates_make_them(target: ThreadedCluster) -> None:
    keys = KeyRange(UserKey(b"a"), UserKey(b"b"))
    expected = [p.key for p in truth("v1") if keys.contains(p.key)]
    operator(start="61", end="62", checksum="True", online="True", concurrency="4", ratelimit="100").execute({})
    assert [p.key for p in target.pairs()] == expected
    assert expected


def test_the_key_of_an_encrypted_backup_comes_from_a_template(target: ThreadedCluster) -> None:
    golden = Golden("v1", "aes256")
    context: Any = {"params": {"secret": golden.crypter["crypter_key"]}}
    task = operator(storage=golden.url, crypter_method="aes256-ctr", crypter_key="{{ params.secret }}")
    assert task.execute(context)["total_kv"] == 2000


def test_the_wrong_key_fails_for_good(target: ThreadedCluster) -> None:
    task = operator(storage=Golden("v1", "aes256").url, crypter_method="aes256-ctr", crypter_key="00" * 32)
    with pytest.raises(AirflowFailException) as caught:
        task.execute({})
    assert isinstance(caught.value.__cause__, BackupInvalidError)
    assert "00" * 32 not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"storage": "/no/such/backup"}, BackupInvalidError),
        ({"storage": Golden("v2", "full").url}, ApiVersionError),
        ({"storage": Golden("v1", "range").url, "start": "00", "end": "01"}, KeyRangeError),
    ],
)
def test_what_cannot_be_restored_fails_for_good(
    target: ThreadedCluster, options: dict[str, Any], cause: type[Exception]
) -> None:
    with pytest.raises(AirflowFailException) as caught:
        operator(**options).execute({})
    assert isinstance(caught.value.__cause__, cause)
    assert target.pairs() == []


def test_a_cluster_that_is_away_is_worth_a_retry() -> None:
    with pytest.raises(TransientError):
        operator(tikv_conn_id="tikv_nowhere").execute({})


def test_a_store_that_stays_away_is_worth_a_retry(target: ThreadedCluster) -> None:
    target.faults.fail(IMPORT_DOWNLOAD, code=grpc.StatusCode.UNAVAILABLE, times=None)
    with pytest.raises(TransientError):
        operator(budget="500ms").execute({})
    assert target.apply(lambda c: c.pd.schedulers.paused()) == {}


def test_a_killed_restore_ends_at_once_and_puts_the_cluster_back(target: ThreadedCluster) -> None:
    stuck = target.faults.fail(IMPORT_DOWNLOAD, delay_s=3600, times=None)
    paused: list[bool] = []
    task = operator()

    def kill() -> None:
        paused.append(bool(target.apply(lambda c: c.pd.schedulers.paused())))
        task.on_kill()

    with soon(lambda: stuck.hits >= 1, kill), pytest.raises(JobCancelledError):
        task.execute({})
    assert paused == [True]
    assert target.apply(lambda c: c.pd.schedulers.paused()) == {}
    assert target.apply(lambda c: c.pd.config.ttl_values(after_s=1)) == {}
