"""A run of every kind of secret in a real Airflow: none is found afterwards in anything that Airflow or a task keeps or says."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from tests.storage.conftest import S3Server, s3_server
from tests.support.canaries import Canaries, google_account
from tests.support.certs import Authority, KeyPair
from tests.support.front import fill

__all__ = ["s3_server"]

pytestmark = pytest.mark.timeout(240)

DAG = """
from airflow.sdk import DAG, Asset
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor

FOLDER, S3 = {folder!r}, {s3!r}
AES = {{"crypter_method": "aes256-ctr"}}
KEYS = {{"storage_conn_id": "canary_keys"}}
URL_KEYS = "access-key={{{{ conn.canary_url.login }}}}&secret-access-key={{{{ conn.canary_url.password | urlencode }}}}"

with DAG("canaries", schedule=None, default_args={{"retries": 0, "log_file": FOLDER + "/job.log", "log_level": "debug"}}):
    local = BackupRawOperator(
        task_id="local", storage=FOLDER + "/local", crypter_key="{{{{ conn.canary_backup.password }}}}", **AES,
        outlets=[Asset("canary-backups")],
    )
    local >> [
        RestoreRawOperator(task_id="restore", storage=FOLDER + "/local", crypter_key_conn_id="canary_backup", **AES),
        RestoreRawOperator(task_id="bad_key", storage=FOLDER + "/local", crypter_key_conn_id="canary_other", **AES),
        RestoreRawOperator(task_id="bad_hex", storage=FOLDER + "/local", crypter_key_conn_id="canary_url", **AES),
    ]
    s3 = BackupRawOperator(task_id="s3", storage="s3://canaries/a", checksum=True, **KEYS)
    s3 >> [
        RestoreRawOperator(task_id="s3_restore", storage="s3://canaries/a", **KEYS),
        ChecksumSensor(task_id="s3_verify", storage="s3://canaries/a", on_mismatch="fail", **KEYS),
        BackupRawOperator(task_id="bad_again", storage="s3://canaries/a", **KEYS),
    ]
    BackupRawOperator(
        task_id="later", storage="s3://canaries/later", crypter_key="{{{{ conn.canary_backup.password }}}}", deferrable=True,
        **AES, **KEYS,
    ) >> [
        ChecksumSensor(task_id="later_verify", storage="s3://canaries/later", crypter_key_conn_id="canary_backup",
            on_mismatch="fail", deferrable=True, **AES, **KEYS),
        RestoreRawOperator(task_id="bad_later_key", storage="s3://canaries/later", crypter_key_conn_id="canary_other",
            deferrable=True, **AES, **KEYS),
    ]
    BackupRawOperator(task_id="bad_later_text", storage=FOLDER + "/later", deferrable=True, **AES,
        crypter_key="0{{{{ conn.canary_backup.password[1:] }}}}")
    BackupRawOperator(task_id="bad_later_url", storage="s3://canaries/e?" + URL_KEYS, deferrable=True)
    BackupRawOperator(task_id="url", storage="s3://canaries/b?endpoint=" + S3 + "&" + URL_KEYS)
    BackupRawOperator(task_id="key", storage=FOLDER + "/key", tikv_conn_id="canary_plain",
        ca=FOLDER + "/ca", cert=FOLDER + "/cert", key="{{{{ conn.canary_tls.password }}}}")
    BackupRawOperator(task_id="bad_host", storage="s3://canaries/c?endpoint=http://127.0.0.1:1", **KEYS)
    BackupRawOperator(task_id="bad_bucket", storage="s3://nowhere/c", **KEYS)
    BackupRawOperator(task_id="bad_name", storage="s3://canaries/d?secret-access-kee={{{{ conn.canary_url.password }}}}")
    BackupRawOperator(task_id="bad_scheme", storage="s4://canaries/d?" + URL_KEYS)
    BackupRawOperator(task_id="bad_azure", storage="azure://c/d?endpoint=" + S3, storage_conn_id="canary_blobs")
    BackupRawOperator(task_id="bad_sas", storage="azure://c/d?endpoint=" + S3, storage_conn_id="canary_sas")
    BackupRawOperator(task_id="bad_google", storage="gcs://c/d?endpoint=" + S3, storage_conn_id="canary_google")
    ChecksumSensor(task_id="bad_sensor", storage="s3://canaries/none", **KEYS)
    RestoreRawOperator(task_id="bad_cluster", storage=FOLDER + "/local", tikv_conn_id="canary_broken")
"""
GOOD = {"local", "restore", "s3", "s3_restore", "s3_verify", "url", "key", "later", "later_verify"}
RUN = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
dag = DagBag(sys.argv[1]).dags["canaries"]
run = dag.test()
print("STATES " + json.dumps({ti.task_id: str(ti.state) for ti in run.get_task_instances()}))
"""


@pytest.fixture
def cluster(tmp_path: Path, authority: Authority, server_pair: KeyPair) -> Iterator[ThreadedCluster]:
    tls = ServerTls(cert=server_pair.cert, key=server_pair.key, ca=authority.ca)
    with ThreadedCluster(data_dir=tmp_path / "data", tls=tls, stores=2) as started:
        fill(started)
        yield started


@pytest.mark.usefixtures("database")
def test_no_canary_sings(
    tmp_path: Path, authority: Authority, client_pair: KeyPair, cluster: ThreadedCluster, s3_server: S3Server
) -> None:
    document, google_key = google_account(f"{s3_server.endpoint}/token")
    secrets = {
        "aws secret": "canaryOfAws/Secret+Key=4711",
        "aws token": "canaryOfAwsSessionToken0815/+",
        "url secret": "canaryOfUrl/Secret+Key=4712",
        "backup key": os.urandom(32).hex(),
        "other key": os.urandom(32).hex(),
        "azure key": base64.b64encode(b"canaryOfTheAccountKey" * 3).decode(),
        "azure signature": "canaryOfTheSignature5hV0%2Bq8",
        "google key": google_key,
        "client key": client_pair.key.decode(),
        "broken key": "canaryOfAKeyThatIsNoPem4713",
    }
    pem = {"ca": authority.ca.decode(), "cert": client_pair.cert.decode(), "private_key": client_pair.key.decode()}
    connections: dict[str, dict[str, Any]] = {
        "tikv_default": {"conn_type": "tikv", "host": cluster.pd_address, "extra": pem},
        "canary_plain": {"conn_type": "tikv", "host": cluster.pd_address},
        "canary_broken": {
            "conn_type": "tikv",
            "host": cluster.pd_address,
            "extra": {**pem, "private_key": secrets["broken key"]},
        },
        "canary_tls": {"conn_type": "generic", "password": secrets["client key"]},
        "canary_backup": {"conn_type": "generic", "password": secrets["backup key"]},
        "canary_other": {"conn_type": "generic", "password": secrets["other key"]},
        "canary_url": {"conn_type": "generic", "login": "AKIAURLURLURL", "password": secrets["url secret"]},
        "canary_keys": {
            "conn_type": "aws",
            "login": "AKIACANARYCANARY",
            "password": secrets["aws secret"],
            "extra": {"aws_session_token": secrets["aws token"], "endpoint_url": s3_server.endpoint},
        },
        "canary_blobs": {"conn_type": "wasb", "login": "account", "password": secrets["azure key"]},
        "canary_sas": {
            "conn_type": "wasb",
            "login": "account",
            "extra": {"sas_token": f"sv=2024-01-01&sig={secrets['azure signature']}"},
        },
        "canary_google": {"conn_type": "google_cloud_platform", "extra": {"keyfile_dict": document}},
    }
    for name in ("ca", "cert"):
        (tmp_path / name).write_text(pem[name])
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "canaries.py").write_text(DAG.format(folder=str(tmp_path), s3=s3_server.endpoint))
    client = s3_server.client
    client.create_bucket(Bucket="canaries")
    # Keeps whatever was there for a moment, such as locks.
    client.put_bucket_versioning(Bucket="canaries", VersioningConfiguration={"Status": "Enabled"})
    bundle = {
        "name": "canaries",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(tmp_path / "dags")},
    }
    environment = {
        **os.environ,
        **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(conn) for name, conn in connections.items()},
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "dags")],
        env=environment,
        capture_output=True,
        timeout=220,
        check=False,
    )
    told = done.stdout + done.stderr
    states = json.loads(told.partition(b"STATES ")[2].splitlines()[0])
    assert {name for name, state in states.items() if state == "success"} == GOOD
    assert {state for name, state in states.items() if name not in GOOD} == {"failed"}

    kept = [
        client.get_object(Bucket="canaries", Key=version["Key"], VersionId=version["VersionId"])["Body"].read()
        for version in client.list_object_versions(Bucket="canaries")["Versions"]
    ]
    assert any(b"heartbeat" in data for data in kept), "the lock is not among them"
    assert (tmp_path / "job.log").stat().st_size > 0
    canaries = Canaries(secrets)
    assert canaries.singing(secrets["azure key"]), "they can be heard"
    home = Path(os.environ["AIRFLOW_HOME"])
    places = [path for path in tmp_path.iterdir() if path.name != "data"]
    assert canaries.singing(told, home, *places, *kept) == []
