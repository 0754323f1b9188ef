"""A canary in every place that holds a secret sings nowhere."""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import redact
from structlog.testing import capture_logs

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from tests.support.certs import Authority, KeyPair

CLASSES = pytest.mark.parametrize("cls", [BackupRawOperator, RestoreRawOperator, ChecksumSensor])
ACCOUNT_KEY = "Q2FuYXJ5T2ZUaGVBY2NvdW50S2V5IQ=="
CUSTOMER_KEY = "Q2FuYXJ5Q2FuYXJ5Q2FuYXJ5Q2FuYXJ5Q2FuYXJ5Q2E="
ACCOUNT = json.dumps(
    {
        "type": "service_account",
        "client_email": "me@x",
        "private_key_id": "canaryOfTheAccountsId",
        "private_key": "-----BEGIN PRIVATE KEY-----\nMIIcanaryOfTheAccount\n-----END PRIVATE KEY-----\n",
    }
)

URLS = {
    "s3": (
        "s3://bucket/p?endpoint=http://127.0.0.1:1&access-key=canaryAccessKey&secret-access-key=canarySecret%2Fkey"
        "&session-token=canaryToken&external-id=canaryExternal"
    ),
    "s3-user": "s3://canaryUser:canaryPassword@bucket/p?endpoint=http://127.0.0.1:1",
    "s3-unknown": "s3://bucket/p?secret-acess-key=canaryMisspelt",
    "azure": f"azure://container/p?account-name=me&account-key={quote(ACCOUNT_KEY)}&endpoint=http://127.0.0.1:1",
    "azure-sas": "azure://container/p?account-name=me&sas-token=sv%3D1%26sig%3DcanarySas&endpoint=http://127.0.0.1:1",
    "azure-key": f"azure://container/p?account-name=me&encryption-key={quote(CUSTOMER_KEY)}&encryption-scope=x",
    "gcs": f"gcs://bucket/p?credentials-file={quote(ACCOUNT)}&endpoint=http://127.0.0.1:1",
}


def sings(text: str) -> bool:
    return bool(re.search(f"canary|Q2FuYXJ5|{'ca' * 16}", text, re.IGNORECASE))


@CLASSES
@pytest.mark.parametrize("kind", URLS)
def test_secrets_of_storage_urls(cls: type[Any], kind: str, tmp_path: Path) -> None:
    file = tmp_path / "job.log"
    task = cls(task_id="task", storage="{{ params.url }}", log_file=str(file), tikv_conn_id="tikv_nowhere")
    context: Any = {"params": {"url": URLS[kind]}}
    with capture_logs() as logs, pytest.raises(Exception) as caught:  # noqa: PT011, PT012
        task.render_template_fields(context)
        task.execute(context)
    assert not sings("".join(traceback.format_exception_only(caught.value)))
    assert not sings(str(caught.value.__cause__))
    rendered = {name: getattr(task, name) for name in task.template_fields}
    assert not sings(str(redact(rendered)))
    assert not sings(str(redact(str(logs))))
    assert not sings(file.read_text() if file.exists() else "")


@pytest.fixture(scope="module")
def pair() -> KeyPair:
    return Authority().issue("canary")


@CLASSES
@pytest.mark.parametrize("where", ["parameter", "connection"])
def test_keys_of_certificates_and_backups(
    monkeypatch: pytest.MonkeyPatch, cls: type[Any], where: str, pair: KeyPair, tmp_path: Path
) -> None:
    key, secret = pair.key.decode(), "ca" * 32
    given: dict[str, Any] = {"ca": pair.cert.decode(), "cert": pair.cert.decode(), "crypter_method": "aes256-ctr"}
    if where == "parameter":
        given |= {"key": "{{ params.key }}", "crypter_key": "{{ params.secret }}"}
    else:
        given |= {"crypter_key_conn_id": "secret"}
        monkeypatch.setenv("AIRFLOW_CONN_SECRET", json.dumps({"conn_type": "generic", "password": secret}))
    extra = {} if where == "parameter" else {"private_key": key}
    conn = {"conn_type": "tikv", "host": "127.0.0.1:1", "extra": {**extra, "connect_timeout": "300ms"}}
    monkeypatch.setenv("AIRFLOW_CONN_TIKV_TLS", json.dumps(conn))
    file = tmp_path / "job.log"
    task = cls(task_id="task", storage=str(tmp_path / "b"), tikv_conn_id="tikv_tls", log_file=str(file), **given)
    context: Any = {"params": {"key": key, "secret": secret}}
    with capture_logs() as logs, pytest.raises(Exception) as caught:  # noqa: PT011, PT012
        task.render_template_fields(context)
        task.execute(context)
    lines = [line for line in key.splitlines() if len(line) > 20 and "-----" not in line]
    shown = f"{caught.value} {caught.value.__cause__} {file.read_text()} {vars(task)}"
    assert not any(part in shown for part in (*lines, secret))
    assert not any(part in str(redact(str(logs))) for part in (*lines, secret))
    assert "127.0.0.1:1" in file.read_text()
    # Whoever prints them after all prints nothing.
    assert not any(part in str(redact(f"a {part} b")) for part in (*lines, key, secret, secret.upper()))


def test_nothing_of_a_backup_that_works_tells_its_key(
    source: ThreadedCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "ca" * 16
    task = BackupRawOperator(
        task_id="task",
        storage=str(tmp_path / "b"),
        crypter_method="aes128-ctr",
        crypter_key=secret,
        log_file=str(tmp_path / "job.log"),
        log_level="debug",
    )
    with capture_logs() as logs:
        result = task.execute({})
    left = [path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()]
    shown = f"{result} {logs} {(tmp_path / 'job.log').read_text()}"
    assert result["total_kv"] == 300
    assert not sings(shown)
    assert not any(secret.encode() in data or bytes.fromhex(secret) in data for data in left)
