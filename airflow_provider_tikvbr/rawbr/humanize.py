"""Sizes and durations, written the way the summary lines of ``tikv-br`` write them.

Durations are those of Go's ``time.Duration``, sizes those of ``HumanSize`` in docker's ``go-units``: decimal units and
four significant digits, trailing zeros left out.
"""

from __future__ import annotations

from airflow_provider_tikvbr.exceptions import InvalidOptionError

NANOSECONDS = 1_000_000_000
_SIZE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_DURATION_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, the micro sign
    "μs": 1_000,  # U+03BC, the Greek letter
    "ms": 1_000_000,
    "s": NANOSECONDS,
    "m": 60 * NANOSECONDS,
    "h": 3600 * NANOSECONDS,
}


def human_size(size: float) -> str:
    """Write a number of bytes.

    >>> human_size(108_700_000)
    '108.7MB'
    """
    unit = 0
    while size >= 1000.0 and unit < len(_SIZE_UNITS) - 1:
        size /= 1000.0
        unit += 1
    return f"{size:.4g}{_SIZE_UNITS[unit]}"


def human_rate(size: int, seconds: float) -> str:
    """Write a speed: bytes over seconds; no time at all counts as one nanosecond."""
    return human_size(size / max(seconds, 1 / NANOSECONDS)) + "/s"


def _fraction(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    digits = len(str(unit)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0") if rest else str(whole)


def human_duration(seconds: float) -> str:
    """Write a duration to the nanosecond.

    >>> human_duration(0.950460846)
    '950.460846ms'
    """
    ns = round(seconds * NANOSECONDS)
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    if ns == 0:
        return "0s"
    if ns < 1_000:
        return f"{sign}{ns}ns"
    if ns < 1_000_000:
        return f"{sign}{_fraction(ns, 1_000)}µs"
    if ns < NANOSECONDS:
        return f"{sign}{_fraction(ns, 1_000_000)}ms"
    minutes, ns = divmod(ns, 60 * NANOSECONDS)
    text = _fraction(ns, NANOSECONDS) + "s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = f"{minutes}m{text}"
        if hours:
            text = f"{hours}h{text}"
    return sign + text


def parse_go_duration(text: str, *, parameter: str) -> float:
    """Read what Go's ``time.ParseDuration`` reads, such as ``1h30m``, ``5m`` or ``300ms``.

    :return: seconds.
    :raises InvalidOptionError: the text is no such duration.
    """
    rest = text.strip()
    sign = -1 if rest.startswith("-") else 1
    rest = rest[1:] if rest[:1] in {"+", "-"} else rest
    if rest == "0":
        return 0.0
    total = 0.0
    if not rest:
        raise _bad_duration(text, parameter)
    while rest:
        at = 0
        while at < len(rest) and (rest[at] in "0123456789."):
            at += 1
        end = at
        while end < len(rest) and rest[end] not in "0123456789.":
            end += 1
        number, unit = rest[:at], rest[at:end]
        if unit not in _DURATION_UNITS or number.count(".") > 1 or number in {"", "."}:
            raise _bad_duration(text, parameter)
        total += float(number) * _DURATION_UNITS[unit]
        rest = rest[end:]
    return sign * total / NANOSECONDS


def _bad_duration(text: str, parameter: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"{parameter} {text!r} is not a duration: give a number and a unit, such as 300ms, 90s, 5m, 24h or 1h30m",
        parameter=parameter,
    )
