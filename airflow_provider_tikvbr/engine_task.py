"""What the operators and the sensor share: run one job of the engine inside an Airflow task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException, Asset, conf

from airflow_provider_tikvbr.connections import find_connection, storage_access
from airflow_provider_tikvbr.engine_job import EngineJob
from airflow_provider_tikvbr.exceptions import InvalidOptionError, JobCancelledError, TerminalError
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.masking import mask_environment, mask_hex, mask_pem, mask_url
from airflow_provider_tikvbr.rawbr.events import Listener, Note
from airflow_provider_tikvbr.rawbr.parsing import Duration, parse_flag, parse_text
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.task_report import Summary, reporting, value_of
from airflow_provider_tikvbr.tikv.redaction import redacting

S = TypeVar("S", bound=Summary)

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import BaseOperator, Context

    from airflow_provider_tikvbr.tikv.cluster import Cluster
    from airflow_provider_tikvbr.tikv.options import ClusterOptions

    Base = BaseOperator
    Work = Callable[[Cluster, Storage, Listener], Awaitable[S]]
else:
    Base = object

CONFIG_SECTION = "tikvbr"
DEFAULT_PROGRESS_INTERVAL_S = 10.0

# What every operator and the sensor lets templates make; the secrets are rendered when the task runs, and kept nowhere.
SHARED_TEMPLATE_FIELDS = (
    "storage",
    "tikv_conn_id",
    "ca",
    "cert",
    "keyspace",
    "address_map",
    "check_requirements",
    "grpc_keepalive_time",
    "grpc_keepalive_timeout",
    "grpc_max_recv_msg_size",
    "storage_conn_id",
    "send_credentials_to_tikv",
    "no_credentials",
    "start",
    "end",
    "format",
    "crypter_method",
    "crypter_key_file",
    "crypter_key_conn_id",
    "checksum_concurrency",
    "budget",
    "log_file",
    "log_level",
    "log_format",
    "redact_log",
)


class EngineTask(Base):
    """A mixin for operators: the class that uses it assigns these attributes in its ``__init__``.

    They are what the operators and the sensor call so, as templates made it. ``key`` and ``crypter_key`` are no template
    fields on purpose, but rendered when the task runs: Airflow would store what they render to, and show it.
    """

    tikv_conn_id: str
    ca: str
    cert: str
    key: str
    keyspace: str | int
    address_map: str | Mapping[str, str]
    check_requirements: bool | str
    grpc_keepalive_time: Duration
    grpc_keepalive_timeout: Duration
    grpc_max_recv_msg_size: int | str
    storage: str
    storage_conn_id: str
    send_credentials_to_tikv: bool | str
    no_credentials: bool | str
    crypter_key: str
    crypter_key_file: str
    crypter_key_conn_id: str
    log_file: str
    log_level: str
    log_format: str
    redact_log: bool | str
    _job: EngineJob[Any] | None = None
    _killed = False

    @cached_property
    def hook(self) -> TiKVHook:
        """The hook of the cluster."""
        return TiKVHook(tikv_conn_id=self.tikv_conn_id)

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render as Airflow does, and hide the secrets of a storage URL before anything of it is stored or shown."""
        # Before, because Airflow shows a template that cannot be rendered.
        self._hide(content)
        value = super().render_template(content, context, jinja_env, seen_oids)
        self._hide(value)
        return value

    def _hide(self, value: Any) -> None:
        # Misspelt URLs have their secrets too.
        if isinstance(value, str) and ("://" in value or "?" in value):
            mask_url(value)
        # A file of certificates may hold a key as well.
        if isinstance(value, str) and "PRIVATE KEY-----" in value:
            mask_pem(value)

    @contextmanager
    def job(self) -> Iterator[None]:
        """Everything of a job, from its options on: what would fail again is not retried, keys are hidden if asked."""
        with no_retry_if_terminal(), redacting(parse_flag(self.redact_log, parameter="redact_log")):
            yield

    def rendered_crypter_key(self, context: Context) -> str:
        """The key of the backup, which nothing will show from now on; empty if a file holds it, or none is given.

        :raises InvalidOptionError: there are several, or the connection holds none.
        :raises AirflowNotFoundException: there is no such connection.
        """
        key = str(super().render_template(self.crypter_key, context) or "")
        mask_hex(key)
        conn_id = parse_text(self.crypter_key_conn_id, parameter="crypter_key_conn_id").strip()
        if not conn_id:
            return key
        if key or self.crypter_key_file:
            other = "crypter_key" if key else "crypter_key_file"
            raise InvalidOptionError(
                f"crypter_key_conn_id and {other} are both given: give one of them", parameter="crypter_key_conn_id"
            )
        conn = find_connection(conn_id, parameter="crypter_key_conn_id")
        extra = conn.extra_dejson if isinstance(conn.extra_dejson, dict) else {}
        key = str(conn.password or extra.get("crypter_key") or "")
        if not key:
            raise InvalidOptionError(
                f"crypter_key_conn_id names connection {conn_id}, which holds no key: give it there as the password, or"
                " as crypter_key of the extra",
                parameter="crypter_key_conn_id",
            )
        mask_hex(key)
        return key

    def _cluster_options(self, context: Context) -> ClusterOptions:
        key = str(super().render_template(self.key, context) or "")
        if "-----BEGIN" in key:
            mask_pem(key)
        return self.hook.cluster_options(
            ca=self.ca,
            cert=self.cert,
            key=key,
            check_requirements=self.check_requirements,
            grpc_keepalive_time=self.grpc_keepalive_time,
            grpc_keepalive_timeout=self.grpc_keepalive_timeout,
            grpc_max_recv_msg_size=self.grpc_max_recv_msg_size,
            keyspace=self.keyspace,
            address_map=self.address_map,
        )

    def _storage_opener(self) -> Callable[[], Storage]:
        url = parse_text(self.storage, parameter="storage")
        send = parse_flag(self.send_credentials_to_tikv, parameter="send_credentials_to_tikv", default=True)
        anonymous = parse_flag(self.no_credentials, parameter="no_credentials")
        credentials = None
        mask_environment()
        if access := storage_access(self.storage_conn_id, url):
            if anonymous:
                raise InvalidOptionError(
                    "no_credentials and storage_conn_id are both given: leave one of them out",
                    parameter="no_credentials",
                )
            url, credentials = access.complete(url), access.credentials
            if access.unread:
                self.log.warning(
                    "Of the connection %s (storage_conn_id), these fields are not heeded: %s",
                    self.storage_conn_id,
                    ", ".join(access.unread),
                )
        return lambda: open_storage(
            url,
            credentials=credentials,
            send_credentials=send,
            environment_first=True,
            no_credentials=anonymous,
        )

    def run_engine(self, context: Context, work: Work[S]) -> S:
        """Connect the cluster, open the storage, and run the work to its end, telling its progress meanwhile.

        :raises TikvBrError: as the work does.
        """
        # Airflow parses DAGs all the time, and no DAG needs gRPC before a task runs.
        from airflow_provider_tikvbr.tikv.cluster import Cluster

        options = self._cluster_options(context)
        open_it = self._storage_opener()

        async def run(listener: Listener) -> S:
            storage = open_it()
            if storage.caution:
                listener(Note(level="warning", message=storage.caution))
            try:
                async with await Cluster.connect(options) as cluster:
                    return await work(cluster, storage, listener)
            finally:
                await storage.close()

        logs = {"log_file": self.log_file, "log_level": self.log_level, "log_format": self.log_format}
        with reporting(self.log, context, **logs) as report:
            self._job = job = EngineJob(run)
            if self._killed:  # before there was a job
                job.cancel()
            try:
                summary = job.run(on_progress=report.progress, on_note=report.note, interval_s=progress_interval_s())
            finally:
                self._job = None
            report.done(summary)
        return summary

    def on_kill(self) -> None:
        """Ask the running job to stop; it puts the cluster back as it was, and ``execute`` raises soon."""
        # This runs in a signal handler, and Airflow ends the process five seconds later: no waiting, and no talking to
        # the supervisor, which may be in the middle of a message.
        self._killed = True
        if self._job is not None:
            self._job.cancel()

    def tell_outlets(self, context: Context, extra: Mapping[str, Any]) -> None:
        """Give the task's asset events what is worth keeping about the result."""
        events = value_of(context, "outlet_events")
        if events is None:
            return
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                event = events[outlet]
                event.extra = {**event.extra, **extra}


@contextmanager
def no_retry_if_terminal() -> Iterator[None]:
    """Tell Airflow not to retry what would fail again.

    A job that was asked to stop is left to the task's retries: whoever marked the task has set its state already, and a
    worker that is being shut down means no harm to the job.
    """
    try:
        yield
    except JobCancelledError:
        raise
    except TerminalError as err:
        parameter = err.parameter if isinstance(err, InvalidOptionError) else None
        named = not parameter or parameter in err.message
        raise AirflowFailException(err.message if named else f"{parameter}: {err.message}") from err


def progress_interval_s() -> float:
    """Seconds between two reports of progress, as configured."""
    interval = conf.getfloat(CONFIG_SECTION, "progress_interval", fallback=DEFAULT_PROGRESS_INTERVAL_S)
    return max(float(interval), 0.1)


def job_owner(context: Context) -> str:
    """Who writes a backup, for its lock: the same for every try of one task of one run."""
    ti = value_of(context, "ti")
    if ti is None:
        return ""
    mapped = f"[{ti.map_index}]" if getattr(ti, "map_index", -1) >= 0 else ""
    return f"Airflow {ti.dag_id}.{ti.task_id}{mapped} {ti.run_id}"


def key_text(value: object, *, parameter: str) -> str:
    """Take a key as a template made it.

    :raises InvalidOptionError: it is no text any more, so nobody can say which key was meant.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidOptionError(
            f"{parameter} is {value!r}, but a key is text: write it as such, or, if a template made it, turn"
            " render_template_as_native_obj off for this DAG",
            parameter=parameter,
        )
    return value
