"""What the command alone writes of a log: the temporary file's name, and the line for scripts."""

from __future__ import annotations

import logging
import tempfile
import traceback
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import click

from airflow_provider_tikvbr.logfile import LOGGER, LineFormatter


def temporary_log_file(when: datetime) -> Path:
    """Where the log goes when nobody said: a name in the temporary directory that tells the time."""
    offset = when.astimezone().strftime("%z")
    return (
        Path(tempfile.gettempdir())
        / f"br.log.{when.astimezone():%Y-%m-%dT%H.%M.%S}{'Z' if offset == '+0000' else offset}"
    )


def announce(message: str, fields: Mapping[str, object], *, to_stdout: bool, to_log: bool) -> None:
    """Write the one line that a script reads: to standard output as text, whatever the log's level and format.

    :param message: what the line says.
    :param fields: its ``[name=value]`` parts.
    :param to_stdout: whether it is written there; not if the log is there itself.
    :param to_log: whether it is to stand in the log as well.
    """
    # Not LOGGER.findCaller: Python 3.10 counts its levels in another way than later ones.
    caller = traceback.extract_stack(limit=2)[0]
    record = LOGGER.makeRecord(
        LOGGER.name, logging.INFO, caller.filename, caller.lineno or 0, message, (), None, extra={"fields": fields}
    )
    if to_stdout:
        click.echo(LineFormatter().format(record))
    if to_log and LOGGER.isEnabledFor(record.levelno):
        LOGGER.handle(record)
