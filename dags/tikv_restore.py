"""Restore a backup into a TiKV cluster.

Trigger it and fill in the form. Pairs of the cluster that have the same keys as pairs of the backup are overwritten,
others stay. The cluster must have the API version of the backup.

**To use it**: add a connection of type *TiKV* for the cluster. A local storage must be the same directory on the worker
and on every store.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import conf
from airflow.sdk import DAG, Param

from airflow_provider_tikvbr.operators.restore import RestoreRawOperator

# Unless the form says otherwise.
DEFERRABLE = conf.getboolean("operators", "default_deferrable", fallback=False)

with DAG(
    dag_id="tikv_restore",
    dag_display_name="TiKV: restore",
    description="Restore a backup of raw pairs into a TiKV cluster.",
    doc_md=__doc__,
    schedule=None,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["tikv", "restore"],
    params={
        "storage": Param(
            type="string",
            minLength=1,
            title="Storage URL",
            description_md="The folder that holds *backupmeta*, such as *s3://bucket/tikv/20261122T000000* or "
            "*local:///mnt/backup/20261122T000000*.",
        ),
        "tikv_conn_id": Param(
            "tikv_default",
            type="string",
            minLength=1,
            title="TiKV connection",
            description_md="The cluster to restore into: the name of a connection of type *TiKV*.",
        ),
        "storage_conn_id": Param(
            None,
            type=["null", "string"],
            title="Storage connection",
            description_md="For a cloud: the name of a connection of its type, such as *AWS*, with the credentials. Empty: "
            "the worker's own.",
        ),
        "start": Param(
            None,
            type=["null", "string"],
            title="Start key",
            description_md="First key to restore. Empty: the backup's first.",
            section="Range",
        ),
        "end": Param(
            None,
            type=["null", "string"],
            title="End key",
            description_md="The key after the last one to restore. Empty: the backup's end.",
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
        "crypter_key_conn_id": Param(
            None,
            type=["null", "string"],
            title="Key connection",
            description_md="For an encrypted backup: the name of a connection whose password is the key, 64 hexadecimal "
            "digits for *aes256-ctr*. Empty: not encrypted.",
            section="How",
        ),
        "checksum": Param(
            True,
            type="boolean",
            title="Verify",
            description_md="Compare the cluster with the backup afterwards. Give it up where applications write.",
            section="How",
        ),
        "online": Param(
            False,
            type="boolean",
            title="Online",
            description_md="Leave the cluster in normal mode: slower, but kinder to applications that use it.",
            section="How",
        ),
        "ratelimit": Param(
            0,
            type="integer",
            minimum=0,
            title="Rate limit",
            description_md="MiB per second that each store may fetch; 0 = no limit.",
            section="How",
        ),
        "deferrable": Param(
            DEFERRABLE,
            type="boolean",
            title="Deferrable",
            description_md="Let the triggerer do the work: it takes no worker slot then, however long it lasts.",
            section="How",
        ),
        "verify_files": Param(
            "size",
            type="string",
            enum=["off", "size", "sha256"],
            title="Check the files",
            description_md="Before anything is restored: *size*: they are all there and as long as they should be. *sha256*: "
            "each is read. *off*: neither.",
            section="How",
        ),
        "checkpoint_storage": Param(
            None,
            type=["null", "string"],
            title="Checkpoint storage URL",
            description_md="Where to keep what is finished, for a retry to go on from there. Empty: beside the backup, "
            "which must not be read-only then.",
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
    RestoreRawOperator(
        task_id="restore",
        task_display_name="Restore",
        tikv_conn_id="{{ params.tikv_conn_id }}",
        storage="{{ params.storage }}",
        storage_conn_id="{{ params.storage_conn_id or '' }}",
        deferrable="{{ params.deferrable }}",
        start="{{ params.start or '' }}",
        end="{{ params.end or '' }}",
        format="{{ params.format }}",
        crypter_method="{{ 'aes256-ctr' if params.crypter_key_conn_id else 'plaintext' }}",
        crypter_key_conn_id="{{ params.crypter_key_conn_id or '' }}",
        checksum="{{ params.checksum }}",
        verify_files="{{ params.verify_files }}",
        checkpoint_storage="{{ params.checkpoint_storage or '' }}",
        online="{{ params.online }}",
        ratelimit="{{ params.ratelimit }}",
        merge_region_size_bytes="{{ params.merge_region_size_bytes or '' }}",
    )
