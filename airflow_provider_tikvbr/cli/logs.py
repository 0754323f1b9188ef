"""The log of a command, in the text format of tikv-br's.

::

    [2022/09/20 18:01:10.125 +08:00] [INFO] [raw.py:67] ["Raw backup success summary"] [total-ranges=3] ...

A part is quoted as JSON where it holds a blank, a quote, a backslash, ``[``, ``]`` or ``=``.
"""

from __future__ import annotations

import json
import logging
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

import click

from airflow_provider_tikvbr.exceptions import InvalidOptionError

LOGGER = logging.getLogger("airflow_provider_tikvbr")

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
}
_NAMES = {logging.WARNING: "WARN", logging.CRITICAL: "FATAL"}


def quote(text: str) -> str:
    """Quote a part of a line where it needs it."""
    plain = all(c > " " and c not in '"\\[]=' and c.isprintable() for c in text)
    return text if plain and text else json.dumps(text, ensure_ascii=False)


def stamp(when: float) -> str:
    """Write a time, in seconds of the Unix clock, as local time with its offset."""
    local = datetime.fromtimestamp(when).astimezone()
    offset = local.strftime("%z")
    return f"{local:%Y/%m/%d %H:%M:%S}.{local.microsecond // 1000:03d} {offset[:3]}:{offset[3:5]}"


class LineFormatter(logging.Formatter):
    """Writes records as lines of tikv-br's format.

    A record may carry ``fields``, a mapping that becomes ``[name=value]`` parts, or ``line``, the finished parts.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one record, with the traceback behind it if there is one."""
        head = (
            f"[{stamp(record.created)}] [{_NAMES.get(record.levelno, record.levelname)}]"
            f" [{record.filename}:{record.lineno}]"
        )
        parts = getattr(record, "line", None)
        if parts is None:
            fields: Mapping[str, object] = getattr(record, "fields", {})
            parts = " ".join(
                [f"[{quote(record.getMessage())}]", *(f"[{quote(k)}={quote(str(v))}]" for k, v in fields.items())]
            )
        text = f"{head} {parts}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def temporary_log_file(when: datetime) -> Path:
    """Where the log goes when nobody said: a name in the temporary directory that tells the time."""
    offset = when.astimezone().strftime("%z")
    return (
        Path(tempfile.gettempdir())
        / f"br.log.{when.astimezone():%Y-%m-%dT%H.%M.%S}{'Z' if offset == '+0000' else offset}"
    )


def parse_level(text: str) -> int:
    """Read the name of a level.

    :raises InvalidOptionError: there is no such level.
    """
    try:
        return LEVELS[text.strip().lower()]
    except KeyError:
        raise InvalidOptionError(
            f"log-level {text!r} is not known: give debug, info, warn, error or fatal", parameter="log-level"
        ) from None


@contextmanager
def logging_to(target: Path | TextIO, level: int) -> Iterator[None]:
    """Let this package's log go to a file or a stream, and nowhere else, while the block runs.

    :raises InvalidOptionError: the file cannot be written.
    """
    handler: logging.Handler
    if isinstance(target, Path):
        try:
            handler = logging.FileHandler(target, encoding="utf-8", errors="backslashreplace")
        except OSError as err:
            raise InvalidOptionError(
                f"log-file {target} cannot be written ({err.strerror}): give another path", parameter="log-file"
            ) from err
    else:
        handler = logging.StreamHandler(target)
    handler.setFormatter(LineFormatter())
    before = (LOGGER.level, LOGGER.propagate)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]
        handler.close()


def announce(parts: str, *, to_log: bool) -> None:
    """Write the one line that a script reads to standard output, whatever the log's level.

    :param parts: what follows time, level and place.
    :param to_log: whether it is to stand in the log as well.
    """
    # Not LOGGER.findCaller: Python 3.10 counts its levels in another way than later ones.
    caller = traceback.extract_stack(limit=2)[0]
    record = LOGGER.makeRecord(
        LOGGER.name, logging.INFO, caller.filename, caller.lineno or 0, "%s", (parts,), None, extra={"line": parts}
    )
    click.echo(LineFormatter().format(record))
    if to_log and LOGGER.isEnabledFor(record.levelno):
        LOGGER.handle(record)
