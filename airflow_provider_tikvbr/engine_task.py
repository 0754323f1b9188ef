"""What the operators and the sensor share: run one job of the engine inside an Airflow task, or hand it to the triggerer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowFailException, Asset, conf

from airflow_provider_tikvbr.engine_job import EngineJob
from airflow_provider_tikvbr.engine_jobs import Summary, TaskJob
from airflow_provider_tikvbr.engine_setup import JobSetup, PreparedJob
from airflow_provider_tikvbr.exceptions import InvalidOptionError, JobCancelledError, TerminalError
from airflow_provider_tikvbr.hooks.tikv import TiKVHook
from airflow_provider_tikvbr.masking import mask_pem, mask_url
from airflow_provider_tikvbr.rawbr.events import Listener
from airflow_provider_tikvbr.rawbr.parsing import parse_flag
from airflow_provider_tikvbr.task_report import TaskState, reporting, value_of
from airflow_provider_tikvbr.tikv.redaction import redacting

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import BaseOperator, Context

    Base = BaseOperator
else:
    Base = object

CONFIG_SECTION = "tikvbr"
DEFAULT_PROGRESS_INTERVAL_S = 10.0
# No core waits longer between two tries.
MOST_RETRY_DELAY_S = 24 * 3600.0

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
    "deferrable",
)
SECRET_FIELDS = ("key", "crypter_key")


def default_deferrable() -> bool:
    """Whether tasks that do not say so are deferred, as Airflow is configured."""
    return bool(conf.getboolean("operators", "default_deferrable", fallback=False))


class EngineTask(Base):
    """A mixin for operators: the class that uses it assigns an attribute for each parameter in its ``__init__``.

    They are what the operators and the sensor call so, as templates made it. ``key`` and ``crypter_key`` are no template
    fields on purpose, but rendered when the task runs: Airflow would store what they render to, and show it.
    """

    job_kind: ClassVar[type[TaskJob]]
    # What a task without such a parameter is understood to have said.
    resume: bool | str = True
    tikv_conn_id: str
    log_file: str
    log_level: str
    log_format: str
    redact_log: bool | str
    deferrable: bool | str
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

    def parameters(self) -> dict[str, Any]:
        """What the task was given, as templates made it; the secrets as their user wrote them."""
        return {name: getattr(self, name) for name in (*self.template_fields, *SECRET_FIELDS)}

    def prepare(self, context: Context) -> PreparedJob:
        """Read everything that the job needs, without touching the cluster or the storage.

        :raises InvalidOptionError: a parameter, or a field of a connection, cannot be right.
        :raises AirflowNotFoundException: there is no such connection.
        """

        def render(template: Any) -> Any:
            # Not ours, which is for what Airflow stores.
            return super(EngineTask, self).render_template(template, context)

        setup = JobSetup(self.parameters(), render=render, warn=lambda said: self.log.warning("%s", said))
        return setup.prepare(self.job_kind, owner=job_owner(context), retry_in_s=self.retry_in_s(context))

    def run_engine(self, context: Context, prepared: PreparedJob) -> Summary:
        """Connect the cluster, open the storage, and run the job to its end, telling its progress meanwhile.

        :raises TikvBrError: as the job does.
        """

        async def run(listener: Listener) -> Summary:
            return await prepared.run(listener)

        state = TaskState(context, self.log)
        self.tell_resume(context, state)
        logs: dict[str, Any] = {"log_file": self.log_file, "log_level": self.log_level, "log_format": self.log_format}
        with reporting(self.log, state, **logs) as report:
            self._job = job = EngineJob(run)
            if self._killed:  # before there was a job
                job.cancel()
            try:
                summary = job.run(
                    on_progress=report.progress,
                    on_note=report.note,
                    on_checkpoint=report.checkpoint,
                    interval_s=progress_interval_s(),
                )
            finally:
                self._job = None
            report.done(summary)
        return summary

    def tell_resume(self, context: Context, state: TaskState) -> None:
        """If this is another try, say what the one before has left to go on with."""
        tries = getattr(value_of(context, "ti"), "try_number", 1)
        if not isinstance(tries, int) or tries < 2:
            return
        left = state.checkpoint()
        if left is None:
            return
        where = f"{left['pieces']} finished pieces saved in {left['place']} at {left['at']}"
        if parse_flag(self.resume, parameter="resume", default=True):
            self.log.info("Try %d goes on from what the one before has left: %s.", tries, where)
        else:
            self.log.info("Try %d starts over, as resume is off; the one before has left %s.", tries, where)

    def succeed(self, context: Context, line: str, result: dict[str, Any]) -> dict[str, Any]:
        """Tell what came out in the log and in the events of the outlet assets.

        :return: the result, for XCom.
        """
        self.log.info("%s", line)
        self.tell_outlets(context, self.job_kind.event_extra(result))
        return result

    def retry_in_s(self, context: Context) -> float | None:
        """Seconds from a failure of this try until the next one at the latest; None if no other follows."""
        ti = value_of(context, "ti")
        tries, most = getattr(ti, "try_number", None), getattr(ti, "max_tries", None)
        if not isinstance(tries, int) or not isinstance(most, int) or tries > most:
            return None
        delay_s = _seconds(self.retry_delay)
        backoff = self.retry_exponential_backoff
        if backoff:
            # True, in older cores, means that it doubles; Airflow adds up to as much again, to spread retries.
            factor = 2.0 if backoff is True else float(backoff)
            delay_s = 2 * delay_s * factor ** min(tries - 1, 64)
        if self.max_retry_delay is not None:
            delay_s = min(delay_s, _seconds(self.max_retry_delay))
        return min(delay_s, MOST_RETRY_DELAY_S) if backoff else delay_s

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
    """Whose job it is, for its lock and its checkpoint: the same for every try of one task of one run."""
    ti = value_of(context, "ti")
    if ti is None:
        return ""
    mapped = f"[{ti.map_index}]" if getattr(ti, "map_index", -1) >= 0 else ""
    return f"Airflow {ti.dag_id}.{ti.task_id}{mapped} {ti.run_id}"


def _seconds(delay: timedelta | float) -> float:
    return delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
