"""Single values as people type them, or as a template made them; an empty text and None mean the default."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.rawbr.humanize import parse_go_duration

MIB = 1 << 20
MAX_UINT64 = (1 << 64) - 1

Number = int | float | str
Duration = int | float | str | timedelta


def parse_text(value: object, *, parameter: str) -> str:
    """Take a text or a path as text; None means an empty one.

    :raises InvalidOptionError: it is something else, such as a number that a template made.
    """
    if value is None:
        return ""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    raise InvalidOptionError(f"{parameter} is {value!r}: give text", parameter=parameter)


def parse_duration(value: Duration | None, *, parameter: str, default: float = 0.0, minimum_s: float = 0.0) -> float:
    """Read a duration: ``5m``, ``1h30m``, ``300ms``, a number of seconds, or a timedelta.

    :param default: what an empty value means, in seconds.
    :param minimum_s: the shortest that makes sense.
    :return: seconds.
    :raises InvalidOptionError: it is no duration, or too short.
    """
    if value is None or value == "":
        return default
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, bool):
        raise InvalidOptionError(f"{parameter} {value!r} is not a duration", parameter=parameter)
    elif isinstance(value, (int, float)):
        seconds = float(value)
    elif (text := parse_text(value, parameter=parameter).strip()).isdecimal():
        # A template turns the number 300 into text.
        seconds = float(text)
    else:
        seconds = parse_go_duration(text, parameter=parameter)
    if not minimum_s <= seconds < float("inf"):
        least = f"at least {minimum_s:g}s" if minimum_s else "0 or more"
        raise InvalidOptionError(f"{parameter} is {value}: give {least}", parameter=parameter)
    return seconds


def parse_flag(value: bool | int | str | None, *, parameter: str, default: bool = False) -> bool:
    """Read yes or no: a bool, 1 or 0, or the words that Go and templates write for one.

    :param default: what an empty value means; a template writes ``None`` for it.
    :raises InvalidOptionError: it is neither.
    """
    if isinstance(value, bool):
        return value
    word = str("" if value is None else value).strip().lower()
    if word in {"", "none"}:
        return default
    if word in {"true", "t", "1", "yes", "on"}:
        return True
    if word in {"false", "f", "0", "no", "off"}:
        return False
    raise InvalidOptionError(f"{parameter} {value!r} is neither true nor false", parameter=parameter)


def parse_whole(
    value: Number | None, *, parameter: str, default: int, minimum: int = 0, maximum: int = MAX_UINT64
) -> int:
    """Read a whole number.

    :param default: what an empty value means.
    :raises InvalidOptionError: it is no whole number, or out of bounds.
    """
    if value is None or value == "":
        return default
    try:
        number = int(value)
        whole = not isinstance(value, bool) and (isinstance(value, str) or number == value)
    except (ValueError, OverflowError):
        whole = False
    if not whole or not minimum <= number <= maximum:
        raise InvalidOptionError(
            f"{parameter} is {value!r}: give a whole number from {minimum} to {maximum}",
            parameter=parameter,
        )
    return number


def parse_rate(limit: Number, unit: Number) -> int:
    """Read a rate limit as bytes per second: ``limit`` times ``unit``; 0 means no limit.

    :raises InvalidOptionError: one of them is no whole number, or their product is too large.
    """
    size = parse_whole(unit, parameter="ratelimit_unit", default=MIB, minimum=1)
    return size * parse_whole(limit, parameter="ratelimit", default=0, maximum=MAX_UINT64 // size)
