"""What the operators and the sensor share: run one job of the engine inside an Airflow task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException, Asset, conf

from airflow_provider_tikvbr.connections import storage_access
from airflow_provider_tikvbr.engine_job import EngineJob
from airflow_provider_tikvbr.exceptions import InvalidOptionError, JobCancelledError, TerminalError
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.masking import mask, mask_url
from airflow_provider_tikvbr.rawbr.events import Listener, Note, Progress
from airflow_provider_tikvbr.rawbr.humanize import human_duration, human_size
from airflow_provider_tikvbr.rawbr.parsing import parse_flag, parse_text
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import open_storage

S = TypeVar("S")

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import BaseOperator, Context

    from airflow_provider_tikvbr.tikv.cluster import Cluster

    Base = BaseOperator
    Work = Callable[[Cluster, Storage, Listener], Awaitable[S]]
else:
    Base = object

CONFIG_SECTION = "tikvbr"
DEFAULT_PROGRESS_INTERVAL_S = 10.0
PROGRESS_KEY = "progress"


class EngineTask(Base):
    """A mixin for operators: the class that uses it assigns these attributes in its ``__init__``.

    :param tikv_conn_id: the connection of the cluster.
    :param storage: storage URL of the backup.
    :param storage_conn_id: a connection whose login and password are the keys for S3; empty for the worker's own.
    :param send_credentials_to_tikv: whether the stores are sent the keys for S3, or use their own.
    :param crypter_key: the key that encrypts the backup, or a template of it. It is no template field on purpose:
        Airflow would store what it renders to and show it.
    """

    tikv_conn_id: str
    storage: str
    storage_conn_id: str
    send_credentials_to_tikv: bool | str
    crypter_key: str
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

    def rendered_crypter_key(self, context: Context) -> str:
        """The key of the backup, which nothing will show from now on."""
        key = str(super().render_template(self.crypter_key, context) or "")
        mask(key)
        return key

    def run_engine(self, context: Context, work: Work[S]) -> S:
        """Connect the cluster, open the storage, and run the work to its end, telling its progress meanwhile.

        :raises TikvBrError: as the work does.
        """
        # Airflow parses DAGs all the time, and no DAG needs gRPC before a task runs.
        from airflow_provider_tikvbr.tikv.cluster import Cluster

        options = self.hook.cluster_options()
        url = parse_text(self.storage, parameter="storage")
        credentials = None
        if access := storage_access(self.storage_conn_id, url):
            url, credentials = access.complete(url), access.credentials
            if access.unread:
                self.log.warning(
                    "Of the connection %s (storage_conn_id), these fields are not heeded: %s",
                    self.storage_conn_id,
                    ", ".join(access.unread),
                )
        send = parse_flag(self.send_credentials_to_tikv, parameter="send_credentials_to_tikv", default=True)

        async def run(listener: Listener) -> S:
            storage = open_storage(url, credentials=credentials, send_credentials=send, environment_first=True)
            try:
                async with await Cluster.connect(options) as cluster:
                    return await work(cluster, storage, listener)
            finally:
                await storage.close()

        self._job = job = EngineJob(run)
        if self._killed:  # before there was a job
            job.cancel()
        try:
            return job.run(
                on_progress=ProgressReport(self.log, context), on_note=self._note, interval_s=progress_interval_s()
            )
        finally:
            self._job = None

    def on_kill(self) -> None:
        """Ask the running job to stop; it puts the cluster back as it was, and ``execute`` raises soon."""
        # This runs in a signal handler, and Airflow ends the process five seconds later: no waiting, and no talking to
        # the supervisor, which may be in the middle of a message.
        self._killed = True
        if self._job is not None:
            self._job.cancel()

    def tell_outlets(self, context: Context, extra: Mapping[str, Any]) -> None:
        """Give the task's asset events what is worth keeping about the result."""
        events = _of(context, "outlet_events")
        if events is None:
            return
        for outlet in self.outlets:
            if isinstance(outlet, Asset):
                event = events[outlet]
                event.extra = {**event.extra, **extra}

    def _note(self, note: Note) -> None:
        if note.level == "warning":
            self.log.warning("%s", note.message)
        else:
            self.log.info("%s", note.message)


class ProgressReport:
    """Tells progress in the task's log and, where the core keeps state for tasks, there.

    :param log: the task's log.
    :param context: the task's context; ``task_state_store`` is in it from Airflow 3.3 on.
    """

    def __init__(self, log: Any, context: Context) -> None:
        self._log = log
        self._store = _of(context, "task_state_store")

    def __call__(self, progress: Progress) -> None:
        """Tell the state of a step."""
        left = progress.remaining_s
        self._log.info(
            "%s: %d/%d (%.0f %%), %d pairs, %s, %s/s, %s elapsed%s",
            progress.step,
            progress.done,
            progress.total,
            progress.fraction * 100,
            progress.kvs,
            human_size(progress.bytes),
            human_size(progress.speed),
            human_duration(round(progress.elapsed_s, 1)),
            f", {human_duration(round(left))} left" if left else "",
        )
        if self._store is None:
            return
        try:
            self._store.set(
                PROGRESS_KEY,
                {
                    "step": progress.step,
                    "done": progress.done,
                    "total": progress.total,
                    "percent": round(progress.fraction * 100, 2),
                    "pairs": progress.kvs,
                    "bytes": progress.bytes,
                    "elapsed_s": round(progress.elapsed_s, 3),
                },
            )
        except Exception as err:
            # Nobody's backup should fail because a picture of it could not be stored.
            self._log.warning("Progress is told in the log only: the task state store does not take it (%s).", err)
            self._store = None


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
    ti = _of(context, "ti")
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


def _of(context: Context, name: str) -> Any:
    # The keys of a context differ between the cores.
    mapping: Mapping[str, Any] = context
    return mapping.get(name)
