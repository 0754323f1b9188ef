"""How a task tells what its job does: in the task's log, in its state store, and in a log file if it is asked for one."""

from __future__ import annotations

import logging
import logging.handlers
import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import redact

from airflow_provider_tikvbr.engine_jobs import Summary
from airflow_provider_tikvbr.exceptions import JobCancelledError
from airflow_provider_tikvbr.logfile import logging_to, parse_level, parse_log_format
from airflow_provider_tikvbr.rawbr.events import CheckpointSaved, Note, Progress
from airflow_provider_tikvbr.rawbr.humanize import human_duration, human_size
from airflow_provider_tikvbr.rawbr.parsing import parse_text

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

PROGRESS_KEY = "progress"
CHECKPOINT_KEY = "checkpoint"


class TaskState:
    """What a task leaves for people and for its next try, in the state store that cores have from Airflow 3.3 on.

    :param context: the task's context.
    :param log: told once if the store does not work.
    """

    def __init__(self, context: Context, log: Any) -> None:
        self._store = value_of(context, "task_state_store")
        self._log = log

    def checkpoint(self) -> dict[str, Any] | None:
        """Where an earlier try has kept what it has finished: ``place``, ``pieces``, ``at``; None if nobody knows."""
        if self._store is None:
            return None
        try:
            found = self._store.get(CHECKPOINT_KEY)
        except Exception:
            # The job finds its checkpoint without; this is for people.
            return None
        if isinstance(found, dict) and {"place", "pieces", "at"} <= found.keys():
            return found
        return None

    def keep(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep something under a key."""
        if self._store is None:
            return
        try:
            self._store.set(key, dict(value))
        except Exception as err:
            # Nobody's backup should fail because a picture of it could not be stored.
            self._log.warning("Progress is told in the log only: the task state store does not take it (%s).", err)
            self._store = None

    def forget_checkpoint(self) -> None:
        """After a success, there is nothing to go on with."""
        if self._store is None or self.checkpoint() is None:
            return
        with suppress(Exception):
            self._store.delete(CHECKPOINT_KEY)


class TaskReport:
    """Tells what a job does.

    :param log: the task's log.
    :param state: keeps what another try, or somebody who looks, wants to know.
    :param level: the lowest level that is told, in the task's log and in the file.
    :param file: the log file, or None.
    """

    def __init__(self, log: Any, state: TaskState, *, level: int = logging.INFO, file: logging.Logger | None) -> None:
        self._log = log
        self._state = state
        self._level = level
        self._file = file
        self._saved: CheckpointSaved | None = None

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
        self._state.keep(PROGRESS_KEY, progress_numbers(progress))

    def checkpoint(self, saved: CheckpointSaved) -> None:
        """Keep where another try finds what is finished."""
        self._saved = saved
        self._state.keep(CHECKPOINT_KEY, checkpoint_numbers(saved))

    def done(self, summary: Summary) -> None:
        """Tell the file what came out; the task's own log tells it in any case."""
        self._state.forget_checkpoint()
        self._write(logging.INFO, summary.title, summary.parts())

    def failed(self, error: BaseException) -> None:
        """Tell where what is finished is kept, and tell the file why there is nothing more in it."""
        if self._saved is not None:
            self.tell(logging.INFO, f"What is finished is kept in {self._saved.place}: another try goes on from there.")
        stopped = isinstance(error, JobCancelledError) or not isinstance(error, Exception)
        fields = {"error": str(error) or type(error).__name__}
        self._write(logging.WARNING if stopped else logging.ERROR, "stopped" if stopped else "failed", fields)

    def _write(self, level: int, message: str, fields: Mapping[str, object] | None = None) -> None:
        if self._file is None:
            return
        # Airflow hides secrets in its own log alone.
        shown = {name: redact(str(value)) for name, value in (fields or {}).items()}
        self._file.log(level, "%s", redact(message), extra={"fields": shown}, stacklevel=3)


def progress_numbers(progress: Progress) -> dict[str, Any]:
    """The state of a step, as JSON can hold it."""
    return {
        "step": progress.step,
        "done": progress.done,
        "total": progress.total,
        "percent": round(progress.fraction * 100, 2),
        "pairs": progress.kvs,
        "bytes": progress.bytes,
        "elapsed_s": round(progress.elapsed_s, 3),
    }


def checkpoint_numbers(saved: CheckpointSaved) -> dict[str, Any]:
    """Where a job has kept what is finished, how much, and when, as JSON can hold it."""
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"place": saved.place, "pieces": saved.pieces, "at": at}


@contextmanager
def reporting(
    log: Any,
    state: TaskState,
    *,
    log_file: object = "",
    log_level: object = "",
    log_format: object = "",
    in_thread: bool = False,
) -> Iterator[TaskReport]:
    """Tell what a job does while the block runs, and in the log file how the block ended.

    :param log_file: a file on the worker, which is added to; empty for none.
    :param log_level: the lowest level that is told; empty for ``info``.
    :param log_format: ``text`` or ``json``; empty for text.
    :param in_thread: whether the file is written in a thread, so that whoever reports never waits for the disk.
    :raises InvalidOptionError: there is no such level or format, or the file cannot be written.
    """
    level = parse_level(parse_text(log_level, parameter="log_level").strip() or "info")
    form = parse_log_format(parse_text(log_format, parameter="log_format"))
    path = parse_text(log_file, parameter="log_file").strip()
    if not path:
        with _failures_told(TaskReport(log, state, level=level, file=None)) as report:
            yield report
        return
    # Nobody else's: another task in the same process has its own file.
    logger = logging.Logger("airflow_provider_tikvbr.task")
    with (
        logging_to(Path(path).expanduser(), level, log_format=form, logger=logger),
        _queued(logger) if in_thread else nullcontext(),
        _failures_told(TaskReport(log, state, level=level, file=logger)) as report,
    ):
        yield report


@contextmanager
def _failures_told(report: TaskReport) -> Iterator[TaskReport]:
    try:
        yield report
    except BaseException as err:
        report.failed(err)
        raise


@contextmanager
def _queued(logger: logging.Logger) -> Iterator[None]:
    """Let a thread do what the logger's handlers do."""
    handlers = list(logger.handlers)
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    writer = logging.handlers.QueueListener(waiting, *handlers, respect_handler_level=True)
    logger.handlers = [logging.handlers.QueueHandler(waiting)]
    writer.start()
    try:
        yield
    finally:
        writer.stop()
        logger.handlers = handlers


def value_of(context: Context, name: str) -> Any:
    """What a context has under a name, or None: its keys differ between the cores."""
    mapping: Mapping[str, Any] = context
    return mapping.get(name)
