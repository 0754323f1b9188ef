"""What a task hands to its trigger, and takes back."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, BaseHook
from airflow.sdk import Asset
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time.context import OutletEventAccessors
from structlog.testing import capture_logs

from airflow_provider_tikvbr import deferral, engine_task
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.exceptions import (
    BackupExistsError,
    BackupNotFoundError,
    InvalidOptionError,
    PDUnavailableError,
    TransientError,
)
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from tests.support.deferral import defer, fire, run_deferred
from tests.support.front import Store
from tests.support.golden import AES256_KEY

CLASSES = pytest.mark.parametrize("cls", [BackupRawOperator, RestoreRawOperator, ChecksumSensor])
PEM = "-----BEGIN PRIVATE KEY-----\nMIIcanary\n-----END PRIVATE KEY-----\n"


def backup(tmp_path: Path, **options: Any) -> BackupRawOperator:
    given = {"task_id": "backup", "storage": f"local://{tmp_path / 'backup'}", "deferrable": True, **options}
    return BackupRawOperator(**given)


# --- what is handed over ---


def test_a_deferred_task_returns_what_another_does(source: ThreadedCluster, tmp_path: Path) -> None:
    asset = Asset("backups")
    store, events = Store(), OutletEventAccessors()
    context: Any = {"outlet_events": events, "task_state_store": store}
    with capture_logs() as logs:
        result = run_deferred(backup(tmp_path, checksum=True, outlets=[asset]), context)
    at_once = backup(tmp_path, storage=str(tmp_path / "other"), checksum=True, deferrable=False).execute({})
    changing = {"total_take_s", "average_speed", "storage", "backup_data_size"}
    assert {k: v for k, v in result.items() if k not in changing} == {
        k: v for k, v in at_once.items() if k not in changing
    }
    assert events[asset].extra["pairs"] == 300
    assert dict(store.told)["progress"]["percent"] == 100
    lines = [entry["event"] for entry in logs]
    assert len([line for line in lines if line.startswith('["Raw backup success summary"] [total-ranges=')]) == 1


def test_options_keep_their_meaning_on_the_way(source: ThreadedCluster, tmp_path: Path) -> None:
    task = backup(
        tmp_path,
        storage=tmp_path / "backup",
        start="key/1",
        end="key/2",
        format="raw",
        dst_api_version="V2",
        gcttl=timedelta(minutes=1),
        checksum="False",
        address_map={"127.0.0.9:1": "127.0.0.9:2"},
    )
    result = run_deferred(task)
    assert (result["total_kv"], result["dst_api_version"]) == (100, "V2")


def test_the_task_has_as_long_as_its_timeout_says(tmp_path: Path) -> None:
    with pytest.raises(TaskDeferred) as caught:
        backup(tmp_path, execution_timeout=timedelta(minutes=3)).execute({})
    assert caught.value.timeout == timedelta(minutes=3)
    assert caught.value.method_name == "execute_complete"


def test_a_default_of_airflow_defers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BackupRawOperator(task_id="task", storage="/x").deferrable is False
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
    assert engine_task.default_deferrable() is True


@CLASSES
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"storage": 5}, "storage"),
        ({"crypter_method": "rot13"}, "rot13"),
        ({"start": "xyz"}, "start"),
        ({"grpc_max_recv_msg_size": "much"}, "much"),
        ({"deferrable": "perhaps"}, "deferrable"),
    ],
)
def test_mistakes_are_told_before_anything_is_deferred(cls: type[Any], options: dict[str, Any], cause: str) -> None:
    with pytest.raises(AirflowFailException, match=cause):
        cls(**{"task_id": "task", "storage": "/x", "deferrable": True, **options}).execute({})


# --- secrets ---


@CLASSES
@pytest.mark.parametrize(
    ("options", "parameter", "remedy"),
    [
        ({"crypter_key": "ca" * 32}, "crypter_key", "crypter_key_conn_id"),
        ({"crypter_key": "{{ params.secret }}"}, "crypter_key", "crypter_key_conn_id"),
        ({"crypter_key": "ca{{ conn.x.password }}"}, "crypter_key", "crypter_key_conn_id"),
        ({"storage": "s3://b?access-key=AK&secret-access-key=canarysecret"}, "storage", "storage_conn_id"),
        ({"storage": "s3://AK:canarysecret@b"}, "storage", "storage_conn_id"),
    ],
)
def test_no_secret_is_handed_over(
    monkeypatch: pytest.MonkeyPatch, cls: type[Any], options: dict[str, Any], parameter: str, remedy: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_X", json.dumps({"conn_type": "generic", "password": "ca" * 31}))
    given = {"storage": "s3://bucket/p", "crypter_method": "aes256-ctr" if "crypter_key" in options else "", **options}
    context: Any = {"params": {"secret": "ca" * 32}, "conn": Connections()}
    with pytest.raises(AirflowFailException) as caught:
        cls(task_id="task", deferrable=True, **given).execute(context)
    assert isinstance(caught.value.__cause__, InvalidOptionError)
    assert caught.value.__cause__.parameter == parameter
    assert remedy in str(caught.value)
    assert "canary" not in str(caught.value)
    assert "caca" not in str(caught.value)


class Connections:
    def __getattr__(self, name: str) -> Any:
        return BaseHook.get_connection(name)


def test_a_key_of_the_checkpoints_url_is_not_handed_over() -> None:
    url = "s3://b?access-key=AK&secret-access-key=canarysecret"
    task = RestoreRawOperator(task_id="task", storage="/x", checkpoint_storage=url, deferrable=True)
    with pytest.raises(AirflowFailException, match="checkpoint_storage holds keys"):
        task.execute({})


@pytest.mark.parametrize("parameter", ["key", "cert", "ca"])
def test_no_private_key_is_handed_over(tmp_path: Path, parameter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferral.DeferrableTask, "prepare", lambda task, context: None)
    with pytest.raises(AirflowFailException, match=f"^{parameter} .*connection") as caught:
        backup(tmp_path, **{parameter: PEM}).execute({})
    assert "canary" not in str(caught.value)


def test_the_path_of_a_private_key_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferral.DeferrableTask, "prepare", lambda task, context: None)
    context: Any = {"params": {"path": "/etc/tikv/client.key"}}
    trigger = defer(backup(tmp_path, key="{{ params.path }}"), context)
    assert trigger.parameters["key"] == "/etc/tikv/client.key"


@pytest.mark.parametrize(
    "options",
    [
        {"crypter_key": "{{ conn.backup_key.password }}"},
        {"crypter_key": "{{ conn.get('backup_key').password | trim }}"},
        {"crypter_key": "{{ conn.backup_key.extra_dejson.spare }}"},
        {"crypter_key": "{{ var.value.backup_key }}"},
        {"crypter_key_conn_id": "backup_key"},
        {"crypter_key_file": "the file"},
    ],
)
def test_a_key_that_is_named_is_found_by_the_triggerer(
    monkeypatch: pytest.MonkeyPatch, source: ThreadedCluster, tmp_path: Path, options: dict[str, Any]
) -> None:
    conn = {"conn_type": "generic", "password": AES256_KEY, "extra": {"spare": AES256_KEY}}
    monkeypatch.setenv("AIRFLOW_CONN_BACKUP_KEY", json.dumps(conn))
    monkeypatch.setenv("AIRFLOW_VAR_BACKUP_KEY", AES256_KEY)
    (tmp_path / "key").write_text(AES256_KEY)
    options = {name: str(tmp_path / "key") if value == "the file" else value for name, value in options.items()}
    from airflow.sdk.execution_time.context import ConnectionAccessor, VariableAccessor

    context: Any = {"conn": ConnectionAccessor(), "var": {"value": VariableAccessor(deserialize_json=False)}}
    task = backup(tmp_path, crypter_method="aes256-ctr", **options)
    trigger = defer(task, context)
    assert AES256_KEY not in repr(trigger)
    event = asyncio.run(fire(trigger))
    assert event["status"] == "success"
    # Unreadable without it: an encrypted backupmeta begins with random bytes.
    assert b"airflow_provider_tikvbr" not in (tmp_path / "backup" / "backupmeta").read_bytes()
    assert AES256_KEY not in repr(event)


# --- errors ---


def test_what_may_pass_is_worth_a_retry(tmp_path: Path) -> None:
    with pytest.raises(PDUnavailableError, match=r"127\.0\.0\.1:1") as caught:
        run_deferred(backup(tmp_path, tikv_conn_id="tikv_nowhere"))
    assert caught.value.store_id is None


def test_what_would_fail_again_is_not_retried(tmp_path: Path) -> None:
    backup(tmp_path, deferrable=False).execute({})
    with pytest.raises(AirflowFailException) as caught:
        run_deferred(backup(tmp_path))
    assert isinstance(caught.value.__cause__, BackupExistsError)
    with pytest.raises(AirflowFailException) as caught:
        run_deferred(RestoreRawOperator(task_id="restore", storage=str(tmp_path / "none"), deferrable=True))
    assert isinstance(caught.value.__cause__, BackupNotFoundError)


def test_a_connection_that_is_gone_meanwhile_is_worth_a_retry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = backup(tmp_path)
    trigger = defer(task)
    monkeypatch.delenv("AIRFLOW_CONN_TIKV_DEFAULT")
    event = asyncio.run(fire(trigger))
    with pytest.raises(TransientError, match="tikv_default"):
        task.execute_complete({}, event)


def test_a_triggerer_that_says_nothing_is_worth_a_retry(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="without a result"):
        backup(tmp_path).execute_complete({}, None)


@pytest.mark.parametrize("kind", ["", "NoSuchError", "Any"])
def test_what_nobody_knows_is_worth_a_retry(tmp_path: Path, kind: str) -> None:
    with pytest.raises(TransientError, match="a riddle"):
        backup(tmp_path).execute_complete({}, {"status": "error", "type": kind, "message": "a riddle"})
