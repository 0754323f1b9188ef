"""Back up a TiKV cluster every day, and verify the backup.

Each run writes the raw pairs of the cluster into a folder of its own below the storage URL, named after the time of the
run, and then compares the backup with the cluster.

**To use it**: add a connection of type *TiKV* named `tikv_default`, set the variable `tikv_backup_storage` to the storage
URL (such as `s3://bucket/tikv` or `local:///mnt/backup`), and switch the DAG on. Or trigger it with other values.

A local storage must be the same directory on the worker and on every store. Applications that write all the time change
the cluster while it is compared: give up *Verify* for those.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import AirflowSkipException, conf
from airflow.sdk import DAG, Asset, Param

from airflow_provider_tikvbr.macros import below
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor

STORAGE = "{{ below(params.storage or var.value.get('tikv_backup_storage', ''), dag_run.run_after | ts_nodash) }}"


def skip_unless_wanted(context: Any) -> None:
    """Skip the comparison when the run's form says so.

    :raises AirflowSkipException: it does.
    """
    if not context["params"]["verify"]:
        raise AirflowSkipException("This run is not to be verified.")


# Unless the form says otherwise.
DEFERRABLE = conf.getboolean("operators", "default_deferrable", fallback=False)

with DAG(
    dag_id="tikv_backup_scheduled",
    dag_display_name="TiKV: daily backup",
    description="Back up the raw pairs of a TiKV cluster and verify the backup.",
    doc_md=__doc__,
    schedule="@daily",
    start_date=pendulum.datetime(2025, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["tikv", "backup"],
    user_defined_macros={"below": below},
    params={
        "tikv_conn_id": Param(
            "tikv_default",
            type="string",
            minLength=1,
            title="TiKV connection",
            description_md="The cluster to back up: the name of a connection of type *TiKV*.",
        ),
        "storage": Param(
            None,
            type=["null", "string"],
            title="Storage URL",
            description_md="Where backups go, such as *s3://bucket/tikv?region=eu-west-1* or *local:///mnt/backup*. "
            "Empty: the variable *tikv_backup_storage*. The run adds a folder named after its time.",
        ),
        "storage_conn_id": Param(
            None,
            type=["null", "string"],
            title="Storage connection",
            description_md="For a cloud: the name of a connection of its type, such as *AWS*, with the credentials. Empty: "
            "the worker's own.",
        ),
        "start": Param(
            None, type=["null", "string"], title="Start key", description_md="First key of the range.", section="Range"
        ),
        "end": Param(
            None,
            type=["null", "string"],
            title="End key",
            description_md="The key after the last one of the range.",
            section="Range",
        ),
        "format": Param(
            "hex",
            type="string",
            enum=["hex", "raw", "escaped"],
            title="Key format",
            description_md="How start and end are written.",
            section="Range",
        ),
        "compression": Param(
            "zstd", type="string", enum=["zstd", "lz4", "snappy"], title="Compression", section="Speed"
        ),
        "ratelimit": Param(
            0,
            type="integer",
            minimum=0,
            title="Rate limit",
            description_md="MiB per second that each store may write; 0 = no limit.",
            section="Speed",
        ),
        "deferrable": Param(
            DEFERRABLE,
            type="boolean",
            title="Deferrable",
            description_md="Let the triggerer do the work: it takes no worker slot then, however long it lasts.",
            section="Speed",
        ),
        "crypter_key_conn_id": Param(
            None,
            type=["null", "string"],
            title="Key connection",
            description_md="To encrypt the backup: the name of a connection whose password is the key, 64 hexadecimal "
            "digits for *aes256-ctr*. Empty: not encrypted.",
            section="Safety",
        ),
        "gcttl": Param(
            "5m",
            type="string",
            minLength=1,
            title="Hold GC for",
            description_md="API V2: how long from the start of the backup a changefeed can be made from its *backup_ts* "
            "on, such as *24h*.",
            section="Safety",
        ),
        "verify": Param(
            True,
            type="boolean",
            title="Verify",
            description_md="Compare the backup with the cluster. Nothing may be written or expire meanwhile.",
            section="Verification",
        ),
        "on_mismatch": Param(
            "fail",
            type="string",
            enum=["fail", "wait"],
            title="If they differ",
            description_md="*fail*: the task fails at once. *wait*: it compares again for an hour.",
            section="Verification",
        ),
    },
) as dag:
    backup = BackupRawOperator(
        task_id="backup",
        task_display_name="Back up",
        tikv_conn_id="{{ params.tikv_conn_id }}",
        storage=STORAGE,
        storage_conn_id="{{ params.storage_conn_id or '' }}",
        deferrable="{{ params.deferrable }}",
        start="{{ params.start or '' }}",
        end="{{ params.end or '' }}",
        format="{{ params.format }}",
        compression="{{ params.compression }}",
        ratelimit="{{ params.ratelimit }}",
        crypter_method="{{ 'aes256-ctr' if params.crypter_key_conn_id else 'plaintext' }}",
        crypter_key_conn_id="{{ params.crypter_key_conn_id or '' }}",
        gcttl="{{ params.gcttl }}",
        outlets=[Asset("tikv_backup")],
    )
    verify = ChecksumSensor(
        task_id="verify",
        task_display_name="Verify",
        tikv_conn_id="{{ params.tikv_conn_id }}",
        storage=STORAGE,
        storage_conn_id="{{ params.storage_conn_id or '' }}",
        deferrable="{{ params.deferrable }}",
        crypter_method="{{ 'aes256-ctr' if params.crypter_key_conn_id else 'plaintext' }}",
        crypter_key_conn_id="{{ params.crypter_key_conn_id or '' }}",
        on_mismatch="{{ params.on_mismatch }}",
        mode="reschedule",
        poke_interval=300,
        timeout=3600,
        pre_execute=skip_unless_wanted,
    )
    backup >> verify
