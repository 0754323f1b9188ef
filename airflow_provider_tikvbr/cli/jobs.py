"""Runs one job of the engine in the foreground: its event loop, its signals, its log and its bar."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click

from airflow_provider_tikvbr import __version__
from airflow_provider_tikvbr.cli.failure import Tally
from airflow_provider_tikvbr.cli.logs import announce, temporary_log_file
from airflow_provider_tikvbr.cli.progress import BarProgress, LogProgress
from airflow_provider_tikvbr.exceptions import JobCancelledError, TikvBrError
from airflow_provider_tikvbr.logfile import LOGGER, logging_to, parse_level, parse_log_format
from airflow_provider_tikvbr.rawbr.events import Event, Listener
from airflow_provider_tikvbr.rawbr.tasks import Threads

# Set in the environment, it sends the log to the terminal, as with tikv-br.
LOG_TO_TERMINAL = "BR_LOG_TO_TERM"
STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
SHOW_CURSOR = "\x1b[?25h"

T = TypeVar("T")


class Summary(Protocol):
    """What a job returns: what its line says, and the fields of that line."""

    @property
    def title(self) -> str:
        """What the line says."""

    def parts(self) -> Mapping[str, object]:
        """The fields."""


S = TypeVar("S", bound=Summary)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where a job writes.

    :param log_level: name of the lowest level that is written.
    :param log_file: where the log goes; empty means a temporary file if a person watches, standard error if not.
    :param log_format: ``text`` or ``json``.
    :param arguments: what the user asked for, for the log; free of secrets.
    :param without_effect: flags that the user gave and that do nothing.
    """

    log_level: str = "info"
    log_file: str = ""
    log_format: str = "text"
    arguments: Mapping[str, object] = field(default_factory=dict)
    without_effect: Sequence[str] = ()


def run_job(
    title: str,
    job: Callable[[Listener], Coroutine[Any, Any, S]],
    *,
    output: Output,
) -> S:
    """Run a job to its end, show how it goes, and write its summary line to standard output and the log.

    The first signal to stop cancels the job, which then puts the cluster back; a second one quits at once.

    :param title: what the job is, such as ``Raw backup``.
    :param job: makes the job's coroutine; it is told where to send events.
    :raises TikvBrError: the job failed; a log file, if there is one, tells it already.
    """
    with _logs(output) as logs:
        start, end = (output.arguments.get(name, "") for name in ("start", "end"))
        tally = Tally(title, unit=f"range start:{start} end:{end}")
        try:
            with ExitStack() as stack:
                listeners: list[Listener] = [tally]
                if logs.file or not logs.watched:
                    listeners.append(LogProgress())
                if logs.watched:
                    listeners.append(stack.enter_context(BarProgress()))

                def listener(event: Event) -> None:
                    for each in listeners:
                        each(event)

                summary = asyncio.run(interruptible(job(listener)))
        except Exception as err:
            logs.failed(title, err)
            if said := tally.said_of_checksum(err):
                click.echo(said)
            announce(f"{title} failed summary", tally.summary(err), to_stdout=not logs.on_stdout, to_log=logs.kept)
            raise
        announce(summary.title, summary.parts(), to_stdout=not logs.on_stdout, to_log=logs.kept)
    return summary


def run_quietly(title: str, work: Callable[[], Coroutine[Any, Any, T]], *, output: Output) -> T:
    """Run something short, which has no progress and no summary; signals stop it as they stop a job.

    :param title: what it is.
    :raises TikvBrError: it failed; a log file, if there is one, tells it already.
    """
    with _logs(output) as logs:
        try:
            return asyncio.run(interruptible(work()))
        except Exception as err:
            logs.failed(title, err)
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Logs:
    """Where the log goes.

    :param file: the file; None if it goes to a stream.
    :param on_stdout: whether it goes to standard output.
    :param watched: whether a person looks at a terminal that can draw a bar.
    """

    file: Path | None
    on_stdout: bool
    watched: bool

    @property
    def kept(self) -> bool:
        """Whether everything is to be in the log; standard error alone says the result in another way."""
        return self.on_stdout or self.file is not None

    def failed(self, title: str, err: Exception) -> None:
        """Write an error, if it is not about to appear in the same place anyway."""
        if self.kept:
            known = isinstance(err, TikvBrError)
            fields = {"error": err, **(err.attrs() if isinstance(err, TikvBrError) else {})}
            LOGGER.error("%s failed", title, extra={"fields": fields}, exc_info=None if known else err)


@contextmanager
def _logs(output: Output) -> Iterator[_Logs]:
    """Let the log go where it is wanted, and begin it with what was asked for."""
    level = parse_level(output.log_level)
    log_format = parse_log_format(output.log_format)
    on_stdout = LOG_TO_TERMINAL in os.environ
    # A dumb terminal cannot redraw a line, so it gets log lines like a file.
    watched = sys.stderr.isatty() and not on_stdout and os.environ.get("TERM") != "dumb"
    logs = _Logs(
        file=None if on_stdout else _log_file(output.log_file, watched=watched), on_stdout=on_stdout, watched=watched
    )
    stream = sys.stdout if on_stdout else sys.stderr
    with logging_to(logs.file or stream, level, log_format=log_format):
        if logs.file:
            click.echo(f"Detail BR log in {logs.file}", err=True)
        if logs.kept:
            LOGGER.info("Welcome to tikvbr", extra={"fields": {"release-version": __version__}})
            LOGGER.info("arguments", extra={"fields": output.arguments})
        if output.without_effect:
            LOGGER.warning("%s: taken as tikv-br takes it, and without effect", ", ".join(output.without_effect))
        yield logs


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Await the work; the first signal to stop cancels it, a second one ends the process.

    :raises JobCancelledError: a signal stopped it.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    received: list[signal.Signals] = []
    threads = Threads()
    loop.set_default_executor(threads)

    def stop(sign: signal.Signals) -> None:
        if received:
            if sys.stderr.isatty():
                sys.stderr.write(SHOW_CURSOR)
                sys.stderr.flush()
            os._exit(1)
        received.append(sign)
        threads.stopped = True
        click.echo(f"\n{sign.name}: stopping and putting the cluster back; press ^C again to quit at once", err=True)
        LOGGER.warning("received signal to stop", extra={"fields": {"signal": sign.name}})
        task.cancel()

    # nohup asks to ignore SIGHUP; a shell ignores SIGINT for what it starts in the background, but does not mean it
    under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [sign for sign in STOP_SIGNALS if not (under_nohup and sign is signal.SIGHUP)]
    for sign in heard:
        loop.add_signal_handler(sign, stop, sign)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        raise JobCancelledError(f"{received[0].name} stopped the job before it was complete") from None
    finally:
        for sign in heard:
            loop.remove_signal_handler(sign)


def _log_file(asked: str, *, watched: bool) -> Path | None:
    if asked:
        return Path(asked)
    return temporary_log_file(datetime.now(timezone.utc)) if watched else None
