"""Runs one job of the engine in the foreground: its event loop, its signals, its log and its bar."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
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
    """

    log_level: str = "info"
    log_file: str = ""
    log_format: str = "text"


def run_job(
    title: str,
    job: Callable[[Listener], Coroutine[Any, Any, S]],
    *,
    output: Output,
    arguments: Mapping[str, object],
) -> S:
    """Run a job to its end, show how it goes, and write its summary line to standard output and the log.

    The first signal to stop cancels the job, which then puts the cluster back; a second one quits at once.

    :param title: what the job is, such as ``Raw backup``.
    :param job: makes the job's coroutine; it is told where to send events.
    :param arguments: what the user asked for, for the log; free of secrets.
    :raises TikvBrError: the job failed; a log file, if there is one, tells it already.
    """
    level = parse_level(output.log_level)
    log_format = parse_log_format(output.log_format)
    to_terminal = LOG_TO_TERMINAL in os.environ
    # A dumb terminal cannot redraw a line, so it gets log lines like a file.
    watched = sys.stderr.isatty() and not to_terminal and os.environ.get("TERM") != "dumb"
    file = None if to_terminal else _log_file(output.log_file, watched=watched)
    with logging_to(file or (sys.stdout if to_terminal else sys.stderr), level, log_format=log_format):
        if file:
            click.echo(f"Detail BR log in {file}", err=True)
        if file or to_terminal:
            LOGGER.info("Welcome to tikvbr", extra={"fields": {"release-version": __version__}})
            LOGGER.info("arguments", extra={"fields": arguments})
        tally = Tally(title)
        # On standard output the log holds the line already.
        to_stdout, to_log = not to_terminal, to_terminal or file is not None
        try:
            with ExitStack() as stack:
                listeners: list[Listener] = [tally]
                if file or not watched:
                    listeners.append(LogProgress())
                if watched:
                    listeners.append(stack.enter_context(BarProgress()))

                def listener(event: Event) -> None:
                    for each in listeners:
                        each(event)

                summary = asyncio.run(interruptible(job(listener)))
        except Exception as err:
            if to_log:  # without a log of its own, the same sentence appears on standard error anyway
                known = isinstance(err, TikvBrError)
                fields = {"error": err, **(err.attrs() if isinstance(err, TikvBrError) else {})}
                LOGGER.error("%s failed", title, extra={"fields": fields}, exc_info=None if known else err)
            if said := tally.said_of_checksum(err):
                click.echo(said)
            announce(f"{title} failed summary", tally.summary(err), to_stdout=to_stdout, to_log=to_log)
            raise
        announce(summary.title, summary.parts(), to_stdout=to_stdout, to_log=to_log)
    return summary


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Await the work; the first signal to stop cancels it, a second one ends the process.

    :raises JobCancelledError: a signal stopped it.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    received: list[signal.Signals] = []

    def stop(sign: signal.Signals) -> None:
        if received:
            if sys.stderr.isatty():
                sys.stderr.write(SHOW_CURSOR)
                sys.stderr.flush()
            os._exit(1)
        received.append(sign)
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
