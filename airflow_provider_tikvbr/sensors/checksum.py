"""Wait until a cluster holds what a backup holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseSensorOperator, PokeReturnValue

from airflow_provider_tikvbr.engine_task import SHARED_TEMPLATE_FIELDS, EngineTask, key_text
from airflow_provider_tikvbr.exceptions import BackupNotFoundError, ChecksumMismatchError, InvalidOptionError
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.rawbr.options import checksum_options
from airflow_provider_tikvbr.rawbr.parsing import Duration, parse_text

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

WAIT = "wait"
FAIL = "fail"


class ChecksumSensor(EngineTask, BaseSensorOperator):
    """Compare a backup with a live cluster: the number of pairs, their bytes and their checksum.

    Each poke counts the whole range on the cluster, so poke seldom, and prefer ``mode="reschedule"`` where the wait may
    be long. A backup that was converted to V2 may be compared with the V1 cluster it is of as well as with the V2
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
    """

    template_fields: Sequence[str] = (
        *SHARED_TEMPLATE_FIELDS,
        "on_mismatch",
        "on_missing",
    )
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

    def poke(self, context: Context) -> PokeReturnValue:
        """Compare once.

        :return: done with the summary's numbers by name, or not done.
        """
        from airflow_provider_tikvbr.rawbr.checksum import verify_backup

        with self.job():
            on_mismatch = _choice(self.on_mismatch, parameter="on_mismatch", default=WAIT)
            on_missing = _choice(self.on_missing, parameter="on_missing", default=FAIL)
            options = checksum_options(
                start=key_text(self.start, parameter="start"),
                end=key_text(self.end, parameter="end"),
                format=self.format,
                crypter_method=self.crypter_method,
                crypter_key=self.rendered_crypter_key(context),
                crypter_key_file=self.crypter_key_file,
                checksum_concurrency=self.checksum_concurrency,
                budget=self.budget,
            )
            try:
                summary = self.run_engine(
                    context, lambda cluster, storage, listener: verify_backup(cluster, storage, options, listener)
                )
            except BackupNotFoundError as err:
                if on_missing == FAIL:
                    raise
                self.log.info("%s", err)
                return PokeReturnValue(is_done=False)
            if not summary.matches and on_mismatch == FAIL:
                raise ChecksumMismatchError(
                    f"the cluster does not hold what the backup at {summary.storage} holds:"
                    f" the backup has {summary.expected}, the cluster {summary.actual}",
                    expected=summary.expected,
                    actual=summary.actual,
                )
        if not summary.matches:
            self.log.warning("%s", summary.line())
            return PokeReturnValue(is_done=False)
        self.log.info("%s", summary.line())
        self.tell_outlets(
            context,
            {
                "storage": summary.storage,
                "pairs": summary.actual.total_kvs,
                "bytes": summary.actual.total_bytes,
                "checksum": summary.actual.as_dict(),
                "cluster_id": summary.cluster_id,
            },
        )
        return PokeReturnValue(is_done=True, xcom_value=summary.as_dict())


def _choice(value: object, *, parameter: str, default: str) -> str:
    word = parse_text(value, parameter=parameter).strip().lower() or default
    if word not in {WAIT, FAIL}:
        raise InvalidOptionError(f"{parameter} is {value!r}: give {WAIT} or {FAIL}", parameter=parameter)
    return word
