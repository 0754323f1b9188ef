"""Restore raw data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_tikvbr.deferral import DeferrableTask
from airflow_provider_tikvbr.engine_jobs import RestoreJob
from airflow_provider_tikvbr.engine_task import SHARED_TEMPLATE_FIELDS, default_deferrable
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.rawbr.parsing import Duration

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_tikvbr.triggers.engine import EngineTrigger


class RestoreRawOperator(DeferrableTask, BaseOperator):
    """Restore a backup of raw pairs, all of it or a key range, into a TiKV cluster of the backup's API version.

    The stores fetch the files from the storage themselves; a local storage must be the same directory on every store
    and on the worker. Every option is a template, and is named after the flag of ``tikv-br`` that does the same. The
    result is the summary: as XCom, as one line in the log, and in short in the events of the task's outlet assets.

    Pairs of the cluster that have the same keys are overwritten, others stay. The job may be repeated.

    :param storage: storage URL of the backup, such as ``s3://bucket/prefix`` or ``local:///mnt/backup``.
    :param tikv_conn_id: the connection of the cluster. The parameters from ``ca`` to ``grpc_max_recv_msg_size`` count
        instead of its fields; empty ones leave it to the connection.
    :param ca: TLS: path on the worker, or PEM text, of the authority that signed the servers' certificates.
    :param cert: TLS: path or PEM text of the worker's certificate.
    :param key: TLS: path or PEM text of its private key. It is rendered as a template, but never shown.
    :param keyspace: in API V2, the keyspace by name or number.
    :param address_map: where to reach the addresses that the cluster tells, such as ``tikv-0:20160=10.0.0.5:30160``,
        several by commas; or a dictionary.
    :param check_requirements: refuse stores older than 5.0.0 and clusters with TiFlash.
    :param grpc_keepalive_time: silence after which a connection in use is probed, such as ``10s``.
    :param grpc_keepalive_timeout: how long such a probe may go unanswered, such as ``3s``.
    :param grpc_max_recv_msg_size: largest message to accept, in bytes.
    :param storage_conn_id: a connection of the cloud that the storage is in (type ``aws``, ``google_cloud_platform``,
        ``wasb``), whose credentials are used. Empty for those of the worker's environment, then those of the URL.
    :param send_credentials_to_tikv: send these credentials to the stores; otherwise they use their own.
    :param no_credentials: use no credentials at all, as public storages let one.
    :param start: first key of the range ``[start, end)``; empty for no bound.
    :param end: the key after the last of the range; empty for no bound.
    :param format: how start and end are written: ``hex``, ``raw`` or ``escaped``.
    :param ratelimit: most that each store fetches, in MiB per second; 0 for no limit.
    :param ratelimit_unit: bytes that one unit of ``ratelimit`` stands for.
    :param concurrency: files at a time; 0 for the default of 512.
    :param crypter_method: how the backup is encrypted: ``plaintext``, ``aes128-ctr``, ``aes192-ctr`` or ``aes256-ctr``.
    :param crypter_key: the key of it, in hexadecimal digits. It is rendered as a template, such as
        ``{{ conn.backup_key.password }}``, but never shown among the rendered fields nor in the log.
    :param crypter_key_file: instead, a file on the worker that holds the key in hexadecimal digits.
    :param crypter_key_conn_id: instead, a connection whose password (or extra ``crypter_key``) is the key.
    :param checksum: compare the cluster with the backup afterwards; nothing may be written or expire meanwhile.
    :param checksum_concurrency: regions that are counted at a time.
    :param online: leave the cluster in normal mode and PD's balancing running: slower, kinder to other users.
    :param merge_region_size_bytes: bytes up to which neighbouring files share a region; empty for the default.
    :param merge_region_key_count: pairs up to which neighbouring files share a region; empty for the default.
    :param split_region_max_keys: split keys of one request.
    :param switch_mode_interval: how often import mode is asked for again, such as ``5m``.
    :param budget: how long the job goes on without any progress, such as ``10m``.
    :param verify_files: how thoroughly the backup's files are looked at before anything is restored: ``off``, ``size``
        (they are all there, with their size) or ``sha256`` (each is read).
    :param resume: go on with what an earlier try of this task has finished; otherwise start over.
    :param checkpoint_storage: storage URL of a place to keep what is finished, such as where the backup is read-only;
        empty for beside the backup. ``storage_conn_id`` counts for it if it is in the same kind of storage.
    :param log_file: a file on the worker that gets the job's log in ``tikv-br``'s form too; it is added to.
    :param log_level: the lowest level of what the job tells, there and in the task's log: ``debug``, ``info``, ``warn``,
        ``error`` or ``fatal``.
    :param log_format: form of the log file: ``text`` or ``json``.
    :param redact_log: show ``?`` instead of users' keys in logs, errors and the result.
    :param deferrable: let the triggerer do the job, so that no worker slot is taken meanwhile. By default as
        ``[operators] default_deferrable`` says. Files that parameters name must then be there as well.
    """

    template_fields: Sequence[str] = (
        *SHARED_TEMPLATE_FIELDS,
        "ratelimit",
        "ratelimit_unit",
        "concurrency",
        "checksum",
        "online",
        "merge_region_size_bytes",
        "merge_region_key_count",
        "split_region_max_keys",
        "switch_mode_interval",
        "verify_files",
        "resume",
        "checkpoint_storage",
    )
    job_kind = RestoreJob
    ui_color = "#fde8d7"

    def __init__(
        self,
        *,
        storage: str,
        tikv_conn_id: str = TiKVHook.default_conn_name,
        ca: str = "",
        cert: str = "",
        key: str = "",
        keyspace: str | int = "",
        address_map: str | Mapping[str, str] = "",
        check_requirements: bool | str = "",
        grpc_keepalive_time: Duration = "",
        grpc_keepalive_timeout: Duration = "",
        grpc_max_recv_msg_size: int | str = "",
        storage_conn_id: str = "",
        send_credentials_to_tikv: bool | str = True,
        no_credentials: bool | str = False,
        start: str = "",
        end: str = "",
        format: str = "hex",  # noqa: A002 - the option's own name
        ratelimit: int | str = 0,
        ratelimit_unit: int | str = 1 << 20,
        concurrency: int | str = 0,
        crypter_method: str = "plaintext",
        crypter_key: str = "",
        crypter_key_file: str = "",
        crypter_key_conn_id: str = "",
        checksum: bool | str = False,
        checksum_concurrency: int | str = 512,
        online: bool | str = False,
        merge_region_size_bytes: int | str = "",
        merge_region_key_count: int | str = "",
        split_region_max_keys: int | str = 1024,
        switch_mode_interval: Duration = "5m",
        budget: Duration = "10m",
        verify_files: str = "size",
        resume: bool | str = True,
        checkpoint_storage: str = "",
        log_file: str = "",
        log_level: str = "info",
        log_format: str = "text",
        redact_log: bool | str = False,
        deferrable: bool | str = default_deferrable(),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.storage = storage
        self.tikv_conn_id = tikv_conn_id
        self.ca = ca
        self.cert = cert
        self.key = key
        self.keyspace = keyspace
        self.address_map = address_map
        self.check_requirements = check_requirements
        self.grpc_keepalive_time = grpc_keepalive_time
        self.grpc_keepalive_timeout = grpc_keepalive_timeout
        self.grpc_max_recv_msg_size = grpc_max_recv_msg_size
        self.storage_conn_id = storage_conn_id
        self.send_credentials_to_tikv = send_credentials_to_tikv
        self.no_credentials = no_credentials
        self.start = start
        self.end = end
        self.format = format
        self.ratelimit = ratelimit
        self.ratelimit_unit = ratelimit_unit
        self.concurrency = concurrency
        self.crypter_method = crypter_method
        self.crypter_key = crypter_key
        self.crypter_key_file = crypter_key_file
        self.crypter_key_conn_id = crypter_key_conn_id
        self.checksum = checksum
        self.checksum_concurrency = checksum_concurrency
        self.online = online
        self.merge_region_size_bytes = merge_region_size_bytes
        self.merge_region_key_count = merge_region_key_count
        self.split_region_max_keys = split_region_max_keys
        self.switch_mode_interval = switch_mode_interval
        self.budget = budget
        self.verify_files = verify_files
        self.resume = resume
        self.checkpoint_storage = checkpoint_storage
        self.log_file = log_file
        self.log_level = log_level
        self.log_format = log_format
        self.redact_log = redact_log
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, Any]:
        """Restore, or let the triggerer do it.

        :return: the summary's numbers by name.
        """
        return self.run_or_defer(context)

    def trigger_kind(self) -> type[EngineTrigger]:
        """The trigger that does the same."""
        from airflow_provider_tikvbr.triggers.restore import RestoreRawTrigger

        return RestoreRawTrigger
