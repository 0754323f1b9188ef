"""Move the raw pairs of an API V1 (or V1TTL) cluster into an API V2 cluster.

1. **Back up** the V1 cluster; TiKV writes the pairs in the form of V2.
2. **Restore** the backup into the V2 cluster.
3. **Verify**: count the pairs of the V2 cluster, and compare number, bytes and checksum with the backup.

**To use it**: add two connections of type *TiKV*, `tikv_v1` and `tikv_v2`, and trigger the DAG. Applications must not
write to either cluster meanwhile; those that read and write go on with the V2 cluster afterwards.

The storage must be reached by both clusters and by the worker. The run adds a folder named after its time.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import DAG, Param

from airflow_provider_tikvbr.macros import below
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor

STORAGE = "{{ below(params.storage, dag_run.run_after | ts_nodash) }}"
STORAGE_CONN_ID = "{{ params.storage_conn_id or '' }}"

# Unless the form says otherwise.
DEFERRABLE = conf.getboolean("operators", "default_deferrable", fallback=False)

with DAG(
    dag_id="tikv_convert_v1_to_v2",
    dag_display_name="TiKV: convert API V1 to V2",
    description="Back up an API V1 cluster in the form of V2, restore it into a V2 cluster, and verify that one.",
    doc_md=__doc__,
    schedule=None,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["tikv", "backup", "restore", "api-v2"],
    user_defined_macros={"below": below},
    params={
        "storage": Param(
            type="string",
            minLength=1,
            title="Storage URL",
            description_md="Where the backup goes on its way, such as *s3://bucket/tikv* or *local:///mnt/backup*.",
        ),
        "source_conn_id": Param(
            "tikv_v1",
            type="string",
            minLength=1,
            title="From: TiKV connection",
            description_md="The cluster of API V1 or V1TTL: the name of a connection of type *TiKV*.",
        ),
        "target_conn_id": Param(
            "tikv_v2",
            type="string",
            minLength=1,
            title="To: TiKV connection",
            description_md="The cluster of API V2: the name of a connection of type *TiKV*.",
        ),
        "storage_conn_id": Param(
            None,
            type=["null", "string"],
            title="Storage connection",
            description_md="For a cloud: the name of a connection of its type, such as *AWS*, with the credentials. Empty: "
            "the worker's own.",
        ),
        "start": Param(
            None, type=["null", "string"], title="Start key", description_md="First key to move.", section="Range"
        ),
        "end": Param(
            None,
            type=["null", "string"],
            title="End key",
            description_md="The key after the last one to move.",
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
        "checksum": Param(
            True,
            type="boolean",
            title="Verify the backup too",
            description_md="Compare the backup with the V1 cluster before it is restored.",
            section="How",
        ),
        "ratelimit": Param(
            0,
            type="integer",
            minimum=0,
            title="Rate limit",
            description_md="MiB per second that each store may write or fetch; 0 = no limit.",
            section="How",
        ),
        "deferrable": Param(
            DEFERRABLE,
            type="boolean",
            title="Deferrable",
            description_md="Let the triggerer do the work: it takes no worker slot then, however long it lasts.",
            section="How",
        ),
        "merge_region_size_bytes": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Region size",
            description_md="Bytes up to which neighbouring backup files share a region. Empty: TiKV's region size.",
            section="How",
        ),
    },
) as dag:
    backup = BackupRawOperator(
        task_id="backup",
        task_display_name="Back up V1 in the form of V2",
        tikv_conn_id="{{ params.source_conn_id }}",
        storage=STORAGE,
        storage_conn_id=STORAGE_CONN_ID,
        deferrable="{{ params.deferrable }}",
        dst_api_version="v2",
        start="{{ params.start or '' }}",
        end="{{ params.end or '' }}",
        format="{{ params.format }}",
        checksum="{{ params.checksum }}",
        ratelimit="{{ params.ratelimit }}",
    )
    restore = RestoreRawOperator(
        task_id="restore",
        task_display_name="Restore into V2",
        tikv_conn_id="{{ params.target_conn_id }}",
        storage=STORAGE,
        storage_conn_id=STORAGE_CONN_ID,
        deferrable="{{ params.deferrable }}",
        start="{{ params.start or '' }}",
        end="{{ params.end or '' }}",
        format="{{ params.format }}",
        ratelimit="{{ params.ratelimit }}",
        merge_region_size_bytes="{{ params.merge_region_size_bytes or '' }}",
    )
    verify = ChecksumSensor(
        task_id="verify",
        task_display_name="Verify V2",
        tikv_conn_id="{{ params.target_conn_id }}",
        storage=STORAGE,
        storage_conn_id=STORAGE_CONN_ID,
        deferrable="{{ params.deferrable }}",
        on_mismatch="fail",
    )
    backup >> restore >> verify
