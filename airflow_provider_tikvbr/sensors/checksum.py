"""Wait until a cluster holds what a backup holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_tikvbr.deferral import DeferrableTask
from airflow_provider_tikvbr.engine_jobs import FAIL, WAIT, ChecksumJob
from airflow_provider_tikvbr.engine_task import SHARED_TEMPLATE_FIELDS, default_deferrable
from airflow_provider_tikvbr.exceptions import BackupNotFoundError, TikvBrError
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.rawbr.parsing import Duration, parse_flag

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_tikvbr.rawbr.summary import ChecksumSummary
    from airflow_provider_tikvbr.triggers.engine import EngineTrigger


class ChecksumSensor(DeferrableTask, BaseSensorOperator):
    """Compare a backup with a live cluster: the number of pairs, their bytes and their checksum.

    Each poke counts the whole range on the cluster, so poke seldom, and prefer ``deferrable=True`` or
    ``mode="reschedule"`` where the wait may be long. A backup that was converted to V2 may be compared with the V1 cluster it is of as well as with the V2
    cluster it was restored into. The result is the summary, as XCom and as one line in the log.

    :param storage: storage URL of the backup.
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
    :param start: first key of the range ``[start, end)``; without start and end, the backup's whole range.
    :param end: the key after the last of the range; empty for no bound.
    :param format: how start and end are written: ``hex``, ``raw`` or ``escaped``.
    :param on_mismatch: what it means that the two differ: ``wait`` pokes again until ``timeout``, ``fail`` fails the
        task at once, without a retry and with the numbers of both sides.
    :param on_missing: what it means that there is no backup: ``fail`` fails the task at once, ``wait`` pokes again until
        one is complete, for a backup that somebody else makes.
    :param crypter_method: how the backup is encrypted: ``plaintext``, ``aes128-ctr``, ``aes192-ctr`` or ``aes256-ctr``.
    :param crypter_key: the key of it, in hexadecimal digits. It is rendered as a template, such as
        ``{{ conn.backup_key.password }}``, but never shown among the rendered fields nor in the log.
    :param crypter_key_file: instead, a file on the worker that holds the key in hexadecimal digits.
    :param crypter_key_conn_id: instead, a connection whose password (or extra ``crypter_key``) is the key.
    :param checksum_concurrency: regions that are counted at a time.
    :param budget: how long one comparison goes on without any progress, such as ``10m``.
    :param log_file: a file on the worker that gets the job's log in ``tikv-br``'s form too; it is added to.
    :param log_level: the lowest level of what the job tells, there and in the task's log: ``debug``, ``info``, ``warn``,
        ``error`` or ``fatal``.
    :param log_format: form of the log file: ``text`` or ``json``.
    :param redact_log: show ``?`` instead of users' keys in logs, errors and the result.
    :param deferrable: let the triggerer poke, from the first time on, so that no worker slot is taken meanwhile; the
        sensor's ``mode`` does not matter then. By default as ``[operators] default_deferrable`` says. Files that parameters
        name must then be there as well.
    """

    template_fields: Sequence[str] = (
        *SHARED_TEMPLATE_FIELDS,
        "on_mismatch",
        "on_missing",
    )
    job_kind = ChecksumJob
    ui_color = "#e6e6fa"

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
        on_mismatch: str = WAIT,
        on_missing: str = FAIL,
        crypter_method: str = "plaintext",
        crypter_key: str = "",
        crypter_key_file: str = "",
        crypter_key_conn_id: str = "",
        checksum_concurrency: int | str = 512,
        budget: Duration = "10m",
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
        self.on_mismatch = on_mismatch
        self.on_missing = on_missing
        self.crypter_method = crypter_method
        self.crypter_key = crypter_key
        self.crypter_key_file = crypter_key_file
        self.crypter_key_conn_id = crypter_key_conn_id
        self.checksum_concurrency = checksum_concurrency
        self.budget = budget
        self.log_file = log_file
        self.log_level = log_level
        self.log_format = log_format
        self.redact_log = redact_log
        self.deferrable = deferrable

    def execute(self, context: Context) -> Any:
        """Poke until the two are equal, here or in the triggerer.

        :return: the summary's numbers by name.
        """
        with self.job():
            deferrable = parse_flag(self.deferrable, parameter="deferrable")
        if not deferrable:
            return super().execute(context)
        try:
            with self.job():
                # Without a poke here: it would hold the worker for as long as the whole comparison takes.
                self.hand_over(
                    context,
                    poke_interval_s=self.poke_interval,
                    backoff=bool(self.exponential_backoff),
                    max_wait_s=self.max_wait.total_seconds() if self.max_wait is not None else None,
                    started=time.time(),
                    timeout_s=self.timeout,
                    poke_again=self.silent_fail,
                )
        except AirflowFailException as err:
            # As the sensor of Airflow does, whose part this is when it pokes.
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(f"Skipping, as the sensor must not fail: {err}") from err
            raise

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None = None) -> Any:
        """Take what came of the comparison, in a worker again."""
        try:
            return super().execute_complete(context, event)
        except TikvBrError as err:
            if self.never_fail:
                raise AirflowSkipException("Skipping due to never_fail is set to True.") from err
            raise

    def trigger_kind(self) -> type[EngineTrigger]:
        """The trigger that does the same."""
        from airflow_provider_tikvbr.triggers.checksum import ChecksumTrigger

        return ChecksumTrigger

    def poke(self, context: Context) -> PokeReturnValue:
        """Compare once.

        :return: done with the summary's numbers by name, or not done.
        """
        with self.job():
            prepared = self.prepare(context)
            job = cast("ChecksumJob", prepared.job)
            try:
                summary = cast("ChecksumSummary", self.run_engine(context, prepared))
            except BackupNotFoundError as err:
                if job.on_missing == FAIL:
                    raise
                self.log.info("%s", err)
                return PokeReturnValue(is_done=False)
            matches = job.judge(summary)
        if not matches:
            self.log.warning("%s", summary.line())
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self.succeed(context, summary.line(), summary.as_dict()))
