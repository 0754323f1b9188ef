"""Back up raw data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_tikvbr.deferral import DeferrableTask
from airflow_provider_tikvbr.engine_jobs import BackupJob
from airflow_provider_tikvbr.engine_task import SHARED_TEMPLATE_FIELDS, default_deferrable
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.rawbr.parsing import Duration

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_tikvbr.triggers.engine import EngineTrigger


class BackupRawOperator(DeferrableTask, BaseOperator):
    """Back up the raw pairs of a TiKV cluster, all of them or a key range.

    The stores write the files to the storage themselves; a local storage must be the same directory on every store and
    on the worker. Every option is a template, and is named after the flag of ``tikv-br`` that does the same. The result
    is the summary: as XCom, as one line in the log, and in short in the events of the task's outlet assets.

    A mistake in the options, an existing backup and the like fail the task without a retry; what may pass is retried as
    the task's ``retries`` say, by a job that takes over the lock of the one before.

    :param storage: storage URL, such as ``s3://bucket/prefix`` or ``local:///mnt/backup``; it must not hold a backup.
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
    :param dst_api_version: API version of the backup: ``v1``, ``v1ttl`` or ``v2``; empty for the cluster's. Backups of
        V1 and V1TTL clusters can be converted to V2.
    :param compression: ``zstd``, ``lz4`` or ``snappy``.
    :param compression_level: level of the compression; 0 for TiKV's default.
    :param ratelimit: most that each store writes, in MiB per second; 0 for no limit.
    :param ratelimit_unit: bytes that one unit of ``ratelimit`` stands for.
    :param concurrency: handed on to TiKV, which goes by its own configuration.
    :param crypter_method: how the files are encrypted: ``plaintext``, ``aes128-ctr``, ``aes192-ctr`` or ``aes256-ctr``.
    :param crypter_key: the key of it, in hexadecimal digits. It is rendered as a template, such as
        ``{{ conn.backup_key.password }}``, but never shown among the rendered fields nor in the log.
    :param crypter_key_file: instead, a file on the worker that holds the key in hexadecimal digits.
    :param crypter_key_conn_id: instead, a connection whose password (or extra ``crypter_key``) is the key.
    :param gcttl: in API V2, how long GC is held back if the job succeeds, such as ``24h``: until then a changefeed can be
        made from backup-ts on. While the job runs GC is held in any case; a job that fails ends the hold.
    :param gcttl_from: ``start`` or ``end``: from when on ``gcttl`` counts.
    :param safe_interval: in API V2, how far backup-ts lies in the past, such as ``1m``.
    :param checksum: compare the backup with the cluster afterwards; nothing may be written or expire meanwhile.
    :param checksum_concurrency: regions that are counted at a time.
    :param remove_schedulers: pause PD's balancing meanwhile.
    :param budget: how long the job goes on without any progress, such as ``10m``.
    :param resume: go on with what an earlier try of this task has finished; otherwise start over.
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
        "dst_api_version",
        "compression",
        "compression_level",
        "ratelimit",
        "ratelimit_unit",
        "concurrency",
        "gcttl",
        "gcttl_from",
        "safe_interval",
        "checksum",
        "remove_schedulers",
        "resume",
    )
    job_kind = BackupJob
    ui_color = "#d9f2e6"

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
        dst_api_version: str = "",
        compression: str = "zstd",
        compression_level: int | str = 0,
        ratelimit: int | str = 0,
        ratelimit_unit: int | str = 1 << 20,
        concurrency: int | str = 0,
        crypter_method: str = "plaintext",
        crypter_key: str = "",
        crypter_key_file: str = "",
        crypter_key_conn_id: str = "",
        gcttl: Duration = "5m",
        gcttl_from: str = "start",
        safe_interval: Duration = "1m",
        checksum: bool | str = False,
        checksum_concurrency: int | str = 512,
        remove_schedulers: bool | str = False,
        budget: Duration = "10m",
        resume: bool | str = True,
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
        self.dst_api_version = dst_api_version
        self.compression = compression
        self.compression_level = compression_level
        self.ratelimit = ratelimit
        self.ratelimit_unit = ratelimit_unit
        self.concurrency = concurrency
        self.crypter_method = crypter_method
        self.crypter_key = crypter_key
        self.crypter_key_file = crypter_key_file
        self.crypter_key_conn_id = crypter_key_conn_id
        self.gcttl = gcttl
        self.gcttl_from = gcttl_from
        self.safe_interval = safe_interval
        self.checksum = checksum
        self.checksum_concurrency = checksum_concurrency
        self.remove_schedulers = remove_schedulers
        self.budget = budget
        self.resume = resume
        self.log_file = log_file
        self.log_level = log_level
        self.log_format = log_format
        self.redact_log = redact_log
        self.deferrable = deferrable

    def execute(self, context: Context) -> dict[str, Any]:
        """Back up, or let the triggerer do it.

        :return: the summary's numbers by name.
        """
        return self.run_or_defer(context)

    def trigger_kind(self) -> type[EngineTrigger]:
        """The trigger that does the same."""
        from airflow_provider_tikvbr.triggers.backup import BackupRawTrigger

        return BackupRawTrigger
