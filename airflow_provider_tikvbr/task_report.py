"""How a task tells what its job does: in the task's log, in its state store, and in a log file if it is asked for one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from airflow.providers.common.compat.sdk import redact

from airflow_provider_tikvbr.exceptions import JobCancelledError
from airflow_provider_tikvbr.logfile import logging_to, parse_level, parse_log_format
from airflow_provider_tikvbr.rawbr.events import Note, Progress
from airflow_provider_tikvbr.rawbr.humanize import human_duration, human_size
from airflow_provider_tikvbr.rawbr.parsing import parse_text

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

PROGRESS_KEY = "progress"


class Summary(Protocol):
    """What a job returns: it can say itself in one line."""

    @property
    def title(self) -> str:
        """What the line is called."""

    def parts(self) -> Mapping[str, object]:
        """The parts of the line by name."""

    def line(self) -> str:
        """The whole line."""


class TaskReport:
    """Tells what a job does.

    :param log: the task's log.
    :param context: the task's context; ``task_state_store`` is in it from Airflow 3.3 on.
    :param level: the lowest level that is told, in the task's log and in the file.
    :param file: the log file, or None.
    """

    def __init__(self, log: Any, context: Context, *, level: int = logging.INFO, file: logging.Logger | None) -> None:
        self._log = log
        self._store = value_of(context, "task_state_store")
        self._level = level
        self._file = file

    def note(self, note: Note) -> None:
        """Tell a note."""
        self.tell(logging.WARNING if note.level == "warning" else logging.INFO, note.message)

    def tell(self, level: int, message: str) -> None:
        """Tell one sentence."""
        if level >= self._level:
            self._log.log(level, "%s", message)
        self._write(level, message)

    def progress(self, progress: Progress) -> None:
        """Tell the state of a step."""
        left = f"{human_duration(round(progress.remaining_s))} left" if progress.remaining_s else ""
        elapsed = human_duration(round(progress.elapsed_s, 1))
        if self._level <= logging.INFO:
            self._log.info(
                "%s: %d/%d (%.0f %%), %d pairs, %s, %s/s, %s elapsed%s",
                progress.step,
                progress.done,
                progress.total,
                progress.fraction * 100,
                progress.kvs,
                human_size(progress.bytes),
                human_size(progress.speed),
                elapsed,
                f", {left}" if left else "",
            )
        self._write(
            logging.INFO,
            "progress",
            {
                "step": progress.step,
                "progress": f"{progress.fraction:.2%}",
                "count": f"{progress.done} / {progress.total}",
                "speed": f"{human_size(progress.speed)}/s",
                "elapsed": elapsed,
                "remaining": left.removesuffix(" left") or "unknown",
            },
        )
        self._keep(progress)

    def done(self, summary: Summary) -> None:
        """Tell the file what came out; the task's own log tells it in any case."""
        self._write(logging.INFO, summary.title, summary.parts())

    def failed(self, error: BaseException) -> None:
        """Tell the file why there is nothing more in it."""
        stopped = isinstance(error, JobCancelledError) or not isinstance(error, Exception)
        fields = {"error": str(error) or type(error).__name__}
        self._write(logging.WARNING if stopped else logging.ERROR, "stopped" if stopped else "failed", fields)

    def _write(self, level: int, message: str, fields: Mapping[str, object] | None = None) -> None:
        if self._file is None:
            return
        # Airflow hides secrets in its own log alone.
        shown = {name: redact(str(value)) for name, value in (fields or {}).items()}
        self._file.log(level, "%s", redact(message), extra={"fields": shown}, stacklevel=3)

    def _keep(self, progress: Progress) -> None:
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
def reporting(
    log: Any, context: Context, *, log_file: object = "", log_level: object = "", log_format: object = ""
) -> Iterator[TaskReport]:
    """Tell what a job does while the block runs, and in the log file how the block ended.

    :param log_file: a file on the worker, which is added to; empty for none.
    :param log_level: the lowest level that is told; empty for ``info``.
    :param log_format: ``text`` or ``json``; empty for text.
    :raises InvalidOptionError: there is no such level or format, or the file cannot be written.
    """
    level = parse_level(parse_text(log_level, parameter="log_level").strip() or "info")
    form = parse_log_format(parse_text(log_format, parameter="log_format"))
    path = parse_text(log_file, parameter="log_file").strip()
    if not path:
        yield TaskReport(log, context, level=level, file=None)
        return
    # Nobody else's: another task in the same process has its own file.
    logger = logging.Logger("airflow_provider_tikvbr.task")
    with logging_to(Path(path).expanduser(), level, log_format=form, logger=logger):
        report = TaskReport(log, context, level=level, file=logger)
        try:
            yield report
        except BaseException as err:
            report.failed(err)
            raise


def value_of(context: Context, name: str) -> Any:
    """What a context has under a name, or None: its keys differ between the cores."""
    mapping: Mapping[str, Any] = context
    return mapping.get(name)
