"""The log of a job, as text or as JSON, written as tikv-br writes it.

::

    [2022/09/20 18:01:10.125 +08:00] [INFO] [jobs.py:67] ["Raw backup success summary"] [total-ranges=3] ...
    {"level":"INFO","time":"2022/09/20 18:01:10.125 +08:00","caller":"jobs.py:67","message":"Raw backup ...",...}

Every record is one line. In text, a part is quoted as JSON where it holds a blank, a quote, a backslash, ``[``, ``]``, ``=``
or a control character.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from airflow_provider_tikvbr.exceptions import InvalidOptionError

LOGGER = logging.getLogger("airflow_provider_tikvbr")

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "dpanic": logging.CRITICAL,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
FORMATS = ("text", "json")
_NAMES = {logging.WARNING: "WARN", logging.CRITICAL: "FATAL"}


def quote(text: str) -> str:
    """Quote a part of a text line where it needs it."""
    plain = all(c > " " and c not in '"\\[]=' for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def stamp(when: float) -> str:
    """Write a time, in seconds of the Unix clock, as local time with its offset."""
    local = datetime.fromtimestamp(when).astimezone()
    offset = local.strftime("%z")
    return f"{local:%Y/%m/%d %H:%M:%S}.{local.microsecond // 1000:03d} {offset[:3]}:{offset[3:5]}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class LineFormatter(logging.Formatter):
    """Writes each record as one line.

    A record may carry ``fields``, a mapping that becomes ``[name=value]`` parts, or members of the JSON object.

    :param log_format: ``text`` or ``json``.
    """

    def __init__(self, log_format: str = "text") -> None:
        super().__init__()
        self._json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; a traceback is its last part, ``stack``."""
        level = _NAMES.get(record.levelno, record.levelname)
        caller = f"{record.filename}:{record.lineno}"
        fields: dict[str, object] = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["stack"] = self.formatException(record.exc_info)
        if self._json:
            head = {"level": level, "time": stamp(record.created), "caller": caller, "message": record.getMessage()}
            values = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in fields.items()}
            return json.dumps({**head, **values}, ensure_ascii=False, separators=(",", ":"))
        parts = [f"[{stamp(record.created)}] [{level}] [{caller}] [{quote(record.getMessage())}]"]
        parts += (f"[{quote(name)}={quote(_text(value))}]" for name, value in fields.items())
        return " ".join(parts)


def parse_level(text: str) -> int:
    """Read the name of a level.

    :raises InvalidOptionError: there is no such level.
    """
    try:
        return LEVELS[text.strip().lower()]
    except KeyError:
        raise InvalidOptionError(
            f"log_level {text!r} is not known: give debug, info, warn, error or fatal", parameter="log_level"
        ) from None


def parse_log_format(text: str) -> str:
    """Read the name of a format; nothing means text.

    :raises InvalidOptionError: there is no such format.
    """
    if (name := text.strip().lower() or "text") in FORMATS:
        return name
    raise InvalidOptionError(f"log_format {text!r} is not known: give text or json", parameter="log_format")


@contextmanager
def logging_to(
    target: Path | TextIO,
    level: int,
    *,
    log_format: str = "text",
    logger: logging.Logger = LOGGER,
    alone: bool = True,
) -> Iterator[None]:
    """Let a log go to a file or a stream while the block runs.

    A file is added to, and made if it is missing, with its directory.

    :param target: the file or the stream.
    :param level: the lowest level that is written.
    :param log_format: ``text`` or ``json``.
    :param logger: whose log; everything that this package says if nothing is given.
    :param alone: whether it goes nowhere else meanwhile; if not, it also goes where it went before.
    :raises InvalidOptionError: the file cannot be written, or there is no such format.
    """
    formatter = LineFormatter(parse_log_format(log_format))
    handler: logging.Handler
    if isinstance(target, Path):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(target, encoding="utf-8", errors="backslashreplace")
        except OSError as err:
            raise InvalidOptionError(
                f"log_file {target} cannot be written ({err.strerror}): give another path", parameter="log_file"
            ) from err
    else:
        handler = logging.StreamHandler(target)
    handler.setFormatter(formatter)
    handler.setLevel(level)
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    if alone:
        logger.setLevel(level)
        logger.propagate = False
    else:
        logger.setLevel(min(level, logger.getEffectiveLevel()))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        handler.close()
