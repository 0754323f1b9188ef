from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, redact
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.execution_time.context import OutletEventAccessors
from structlog.testing import capture_logs

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.exceptions import (
    BackupExistsError,
    InvalidOptionError,
    JobCancelledError,
    TransientError,
)
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.proto.methods import BACKUP
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, UserKey
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from tests.support.front import Store, connect, fill, soon
from tests.support.golden import AES256_KEY


def operator(tmp_path: Path, **options: Any) -> BackupRawOperator:
    return BackupRawOperator(**{"task_id": "backup", "storage": f"local://{tmp_path / 'backup'}", **options})


def test_it_backs_up_and_returns_the_summary(source: ThreadedCluster, tmp_path: Path) -> None:
    with capture_logs() as logs:
        result = operator(tmp_path, checksum=True).execute({})
    assert json.loads(json.dumps(result)) == result
    counted = source.checksum()
    assert result["checksum"] == {
        "crc64xor": counted.crc64xor,
        "total_kvs": counted.kvs,
        "total_bytes": counted.bytes,
    }
    assert result["verified"] is True
    assert result["storage"] == f"local://{tmp_path / 'backup'}"
    assert (tmp_path / "backup" / "backupmeta").is_file()
    assert not (tmp_path / "backup" / "backup.lock").exists()
    lines = [entry["event"] for entry in logs]
    assert any(line.startswith('["Raw backup success summary"] [total-ranges=') for line in lines), lines
    assert any("Raw backup: " in line and "(100 %)" in line for line in lines), lines


def test_options_may_be_text_as_templates_make_it(source: ThreadedCluster, tmp_path: Path) -> None:
    result = operator(
        tmp_path,
        start="key/1",
        end="key/2",
        format="raw",
        dst_api_version="V2",
        compression="lz4",
        ratelimit="0",
        checksum="False",
        checksum_concurrency="4",
        gcttl=timedelta(minutes=1),
    ).execute({})
    keys = KeyRange(UserKey(b"key/1"), UserKey(b"key/2"))
    assert result["total_kv"] == len(source.pairs(keys)) == 100
    assert result["dst_api_version"] == "V2"


def test_options_that_xcoms_make_empty_mean_the_defaults(tmp_path: Path) -> None:
    names = "start end format dst_api_version compression ratelimit concurrency crypter_method crypter_key gcttl"
    names += " safe_interval checksum remove_schedulers budget send_credentials_to_tikv storage_conn_id"
    result = operator(tmp_path, storage=tmp_path / "backup", **dict.fromkeys(names.split())).execute({})
    assert (result["total_kv"], result["storage"]) == (300, f"local://{tmp_path / 'backup'}")


def test_the_key_is_rendered_at_the_end_and_hidden(tmp_path: Path) -> None:
    task = operator(tmp_path, crypter_method="aes256-ctr", crypter_key="{{ params.secret }}")
    context: Any = {"params": {"secret": AES256_KEY}}
    task.render_template_fields(context)
    task.execute(context)
    assert AES256_KEY not in str(vars(task))
    assert AES256_KEY not in str(redact(f"the key is {AES256_KEY}"))
    # Unreadable without it: an encrypted backupmeta begins with random bytes.
    assert b"airflow_provider_tikvbr" not in (tmp_path / "backup" / "backupmeta").read_bytes()


def test_asset_events_tell_the_result(source: ThreadedCluster, tmp_path: Path) -> None:
    asset = Asset("backups")
    events = OutletEventAccessors()
    events[asset].extra = {"mine": 1}
    context: Any = {"outlet_events": events}
    result = operator(tmp_path, outlets=[asset, AssetAlias("other")]).execute(context)
    assert events[asset].extra == {
        "mine": 1,
        "storage": result["storage"],
        "pairs": 300,
        "bytes": result["total_kv_size"],
        "checksum": result["checksum"],
        "backup_ts": None,
        "api_version": "V1",
        "cluster_id": source.topology.cluster_id,
    }


def test_progress_goes_to_the_state_store(tmp_path: Path) -> None:
    store = Store()
    context: Any = {"task_state_store": store}
    operator(tmp_path, checksum=True).execute(context)
    assert {key for key, _ in store.told} == {"progress"}
    assert [value["step"] for _, value in store.told] == ["Raw backup", "Raw backup checksum"]
    last = store.told[-1][1]
    assert (last["percent"], last["pairs"]) == (100, 300)
    assert json.loads(json.dumps(last)) == last


class BrokenStore:
    def set(self, key: str, value: Any) -> None:
        raise OSError("the database is away")


def test_a_state_store_that_fails_does_not_fail_the_task(tmp_path: Path) -> None:
    context: Any = {"task_state_store": BrokenStore()}
    with capture_logs() as logs:
        operator(tmp_path, checksum=True).execute(context)
    assert [entry["log_level"] for entry in logs].count("warning") == 1


# --- the key, the log, redaction ---


@pytest.mark.parametrize("field", ["password", "extra"])
def test_the_key_comes_from_a_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str) -> None:
    key = f"  {AES256_KEY.upper()}" if field == "password" else AES256_KEY
    conn = {"password": key} if field == "password" else {"extra": {"crypter_key": key}}
    monkeypatch.setenv("AIRFLOW_CONN_BACKUP_KEY", json.dumps({"conn_type": "generic", **conn}))
    task = operator(tmp_path, crypter_method="aes256-ctr", crypter_key_conn_id="backup_key")
    task.execute({})
    assert AES256_KEY not in str(vars(task)).lower()
    assert AES256_KEY not in str(redact(f"the key is {AES256_KEY} or {AES256_KEY.upper()}")).lower()
    again = operator(tmp_path, crypter_method="aes256-ctr", crypter_key=AES256_KEY, storage=f"{tmp_path / 'other'}")
    assert again.execute({})["checksum"]["total_kvs"] == 300
    assert b"airflow_provider_tikvbr" not in (tmp_path / "backup" / "backupmeta").read_bytes()


def test_the_log_goes_to_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "job.log"
    result = operator(tmp_path, log_file=str(file), start="00", end="01").execute({})
    lines = file.read_text().splitlines()
    assert all(re.match(r"\[\d{4}/\d\d/\d\d [\d:.]{12} [+-]\d\d:\d\d\] \[(INFO|WARN)\] \[", line) for line in lines)
    assert [line for line in lines if '["Raw backup success summary"] [total-ranges=' in line] == lines[-1:]
    assert any("[progress] [step=" in line for line in lines)
    assert any("[WARN]" in line and "there is no data in the range" in line for line in lines)
    assert result["total_kv"] == 0
    with pytest.raises(AirflowFailException):
        operator(tmp_path, log_file=str(file), log_format="json").execute({})
    last = json.loads(file.read_text().splitlines()[-1])
    assert (last["level"], last["message"]) == ("ERROR", "failed")
    assert "holds a backup already" in last["error"]


def test_the_level_bounds_the_file_and_the_tasks_log(tmp_path: Path) -> None:
    file = tmp_path / "job.log"
    with capture_logs() as logs:
        operator(tmp_path, log_file=str(file), log_level="WARN", start="00", end="01").execute({})
    assert [line.split("] [")[1] for line in file.read_text().splitlines()] == ["WARN"]
    told = [entry["event"] for entry in logs]
    assert any("there is no data in the range" in line for line in told)
    assert not any(line.startswith("Raw backup: ") for line in told)
    assert any("Raw backup success summary" in line for line in told)


def test_keys_are_hidden_if_asked(tmp_path: Path) -> None:
    file = tmp_path / "job.log"
    with capture_logs() as logs:
        result = operator(
            tmp_path, log_file=str(file), start="key/1", end="key/2", format="raw", redact_log="true"
        ).execute({})
        with pytest.raises(AirflowFailException) as caught:
            operator(tmp_path, start="key/2", end="key/1", format="raw", redact_log=True).execute({})
    assert (result["start"], result["end"], result["total_kv"]) == ("?", "?", 100)
    assert "start ? is not less than end ?" in str(caught.value)
    shown = f"{logs} {file.read_text()} {result} {caught.value}"
    assert "key/" not in shown
    assert b"key/".hex() not in shown


# --- errors ---


@contextmanager
def listening() -> Iterator[tuple[str, Callable[[], int]]]:
    """An address where a PD could be, and how many have called there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def calls() -> int:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                return 0
            return 1 + calls()

        yield f"127.0.0.1:{server.getsockname()[1]}", calls


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"storage": "ftp://x"}, "storage scheme 'ftp' is not supported"),
        ({"compression": "rar"}, "compression 'rar' is not known: give"),
        ({"start": "b", "end": "a", "format": "raw"}, "start 'b' is not less than end 'a'"),
        ({"start": 61}, "start is 61, but a key is text"),
        ({"storage": None}, "storage URL is empty"),
        ({"storage": 5}, "storage is 5: give text"),
        ({"tikv_conn_id": None}, "tikv_conn_id is empty: name a connection"),
        ({"crypter_method": "aes128-ctr", "crypter_key": "0g"}, "crypter_key: the key is not made of hex digits"),
        ({"send_credentials_to_tikv": "perhaps"}, "send_credentials_to_tikv 'perhaps' is neither"),
        ({"ratelimit": "fast"}, "ratelimit is 'fast': give"),
        ({"storage_conn_id": "tikv_default"}, "but the storage local:///.* takes no credentials"),
        (
            {"storage": "s3://bucket", "storage_conn_id": "tikv_default"},
            "storage_conn_id names connection tikv_default",
        ),
        ({"storage": "s3://bucket?colour=blue"}, "has no parameter 'colour'"),
        ({"storage": "s3://bucket", "storage_conn_id": "aws", "no_credentials": True}, "are both given"),
        ({"no_credentials": "perhaps"}, "no_credentials 'perhaps' is neither"),
        ({"gcttl": "soon"}, "gcttl 'soon' is not a duration"),
        ({"gcttl_from": "middle"}, "gcttl_from 'middle' is not known"),
        ({"safe_interval": "-1m"}, "safe_interval is -1m: give 0 or more"),
        ({"budget": "long"}, "budget 'long' is not a duration"),
        ({"ca": "/no/such/ca.pem"}, "ca file '/no/such/ca.pem' cannot be read"),
        ({"key": "nonsense"}, "key is neither PEM text nor a file"),
        ({"check_requirements": "perhaps"}, "check_requirements 'perhaps' is neither"),
        ({"grpc_keepalive_time": "soon"}, "grpc_keepalive_time 'soon' is not a duration"),
        ({"grpc_max_recv_msg_size": "big"}, "grpc_max_recv_msg_size is 'big': give"),
        ({"keyspace": "no name"}, "keyspace 'no name' is no name"),
        ({"address_map": "nonsense"}, "address_map: address map: 'nonsense' is no entry|address map: "),
        ({"crypter_method": "aes128-ctr", "crypter_key": "00", "crypter_key_conn_id": "x"}, "are both given: give one"),
        ({"crypter_method": "aes128-ctr", "crypter_key_file": "/x", "crypter_key_conn_id": "x"}, "are both given"),
        ({"crypter_method": "aes128-ctr", "crypter_key_conn_id": "keyless"}, "connection keyless, which holds no key"),
        ({"log_file": "/dev/null/log"}, "log_file /dev/null/log cannot be written"),
        ({"log_level": "loud"}, "log_level 'loud' is not known"),
        ({"log_format": "xml"}, "log_format 'xml' is not known"),
        ({"redact_log": "perhaps"}, "redact_log 'perhaps' is neither"),
    ],
)
def test_a_mistake_fails_for_good_in_one_sentence_and_touches_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_AWS", "aws://AKIA:topsecret@")
    monkeypatch.setenv("AIRFLOW_CONN_KEYLESS", "generic://host")
    with listening() as (address, calls):
        connect(monkeypatch, "tikv_default", address)
        with pytest.raises(AirflowFailException, match=says) as caught:
            operator(tmp_path, **options).execute({})
        assert calls() == 0
    assert list(tmp_path.iterdir()) == []
    assert isinstance(caught.value.__cause__, InvalidOptionError)
    assert str(caught.value).endswith(str(caught.value.__cause__))
    assert "\n" not in str(caught.value)


def test_a_connection_that_expects_another_cluster_fails_for_good(
    monkeypatch: pytest.MonkeyPatch, source: ThreadedCluster, tmp_path: Path
) -> None:
    connect(monkeypatch, "tikv_default", source, api_version="v2")
    with pytest.raises(AirflowFailException, match="V2 is expected"):
        operator(tmp_path).execute({})
    assert not (tmp_path / "backup").exists()


def test_an_existing_backup_fails_for_good(tmp_path: Path) -> None:
    operator(tmp_path).execute({})
    with pytest.raises(AirflowFailException) as caught:
        operator(tmp_path).execute({})
    assert isinstance(caught.value.__cause__, BackupExistsError)


def test_a_cluster_that_is_away_is_worth_a_retry(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:1"):
        operator(tmp_path, tikv_conn_id="tikv_nowhere").execute({})


def test_a_store_that_stays_away_is_worth_a_retry_and_leaves_no_backupmeta(
    source: ThreadedCluster, tmp_path: Path
) -> None:
    source.faults.fail(BACKUP, code=grpc.StatusCode.UNAVAILABLE, times=None)
    with pytest.raises(TransientError):
        operator(tmp_path, budget="500ms").execute({})
    assert not (tmp_path / "backup" / "backupmeta").exists()


def test_a_retry_takes_over_the_lock_of_its_first_try(source: ThreadedCluster, tmp_path: Path) -> None:
    class TaskInstance:
        dag_id, task_id, run_id, map_index = "dag", "task", "manual__1", -1

    context: Any = {"ti": TaskInstance()}
    source.faults.fail(BACKUP, code=grpc.StatusCode.UNAVAILABLE, times=None)
    with pytest.raises(TransientError):
        operator(tmp_path, budget="500ms").execute(context)
    source.faults.clear()
    assert operator(tmp_path).execute(context)["total_kv"] == 300


# --- being killed ---


def test_a_killed_backup_ends_at_once_and_cleans_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    with ThreadedCluster(data_dir=tmp_path_factory.mktemp("v2"), api_version=ApiVersion.V2, stores=3) as cluster:
        fill(cluster)
        connect(monkeypatch, "tikv_v2", cluster)
        stuck = cluster.faults.fail(BACKUP, delay_s=3600, times=None)
        held: list[int] = []
        task = operator(tmp_path, tikv_conn_id="tikv_v2", remove_schedulers=True)

        def kill() -> None:
            held.append(cluster.apply(lambda c: len(c.pd.safe_points.services())))
            task.on_kill()
            task.on_kill()

        with soon(lambda: stuck.hits >= 3, kill), pytest.raises(JobCancelledError):
            task.execute({})
        assert held == [cluster.apply(lambda c: len(c.pd.safe_points.services())) + 1]
        assert cluster.apply(lambda c: c.pd.schedulers.paused()) == {}
        assert not (tmp_path / "backup" / "backupmeta").exists()
        assert not (tmp_path / "backup" / "backup.lock").exists()


def test_a_task_that_is_killed_before_its_job_runs_never_connects(
    source: ThreadedCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = operator(tmp_path)
    read = TiKVHook.cluster_options

    def killed_meanwhile(hook: TiKVHook, **given: Any) -> ClusterOptions:
        task.on_kill()
        return read(hook, **given)

    monkeypatch.setattr(TiKVHook, "cluster_options", killed_meanwhile)
    with pytest.raises(JobCancelledError):
        task.execute({})
    assert not (tmp_path / "backup").exists()


def test_killing_a_task_that_does_not_run_does_nothing(tmp_path: Path) -> None:
    operator(tmp_path).on_kill()


@pytest.mark.parametrize("environment", [False, True])
def test_keys_of_the_url_that_are_passed_over_are_told(environment: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    if environment:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHEWORKER")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secretOfTheWorker")
    url = "s3://bucket/prefix?endpoint=http://127.0.0.1:1&access-key=AKIAOFTHEURL&secret-access-key=secretOfTheUrl"
    task = BackupRawOperator(task_id="backup", storage=url, tikv_conn_id="tikv_nowhere")
    with capture_logs() as logs, pytest.raises(TransientError):
        task.execute({})
    told = [entry["event"] for entry in logs if entry["log_level"] == "warning"]
    expected = "the storage URL s3://bucket/prefix has keys, but those of the environment go first and are used"
    assert (expected in told) is environment
