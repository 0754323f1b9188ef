r"""Keys as people write them: ``hex``, ``raw`` or ``escaped``.

``escaped`` is what ``pd-ctl`` and ``tikv-br`` read: a backslash starts one of ``\a \b \f \n \r \t \v \\ \' \"``, two
hexadecimal digits after ``\x``, or three octal digits; every other byte stands for itself. Where ``tikv-br`` silently
reads something else out of a broken escape, this module refuses it.
"""

from __future__ import annotations

import binascii
import enum

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.keys import UserKey
from airflow_provider_tikvbr.tikv.redaction import show_typed_key


class KeyFormat(str, enum.Enum):
    """How a key is written."""

    HEX = "hex"
    RAW = "raw"
    ESCAPED = "escaped"

    @classmethod
    def parse(cls, text: str) -> KeyFormat:
        """Read the name of a format.

        :raises InvalidOptionError: there is no such format.
        """
        try:
            return cls(text.strip().lower())
        except ValueError:
            raise InvalidOptionError(
                f"{show_typed_key(text)} is not a key format: give hex, raw or escaped", parameter="format"
            ) from None


_ESCAPES = {
    ord("a"): 0x07,
    ord("b"): 0x08,
    ord("f"): 0x0C,
    ord("n"): 0x0A,
    ord("r"): 0x0D,
    ord("t"): 0x09,
    ord("v"): 0x0B,
    ord("\\"): 0x5C,
    ord("'"): 0x27,
    ord('"'): 0x22,
}


def parse_key(text: str, format: KeyFormat | str, *, parameter: str) -> UserKey:  # noqa: A002 - the option's own name
    """Read a key.

    :param text: the key as written; empty means no bound.
    :param format: how it is written.
    :param parameter: the option it was given for, for the error.
    :raises InvalidOptionError: it is not written in that format.
    """
    kind = format if isinstance(format, KeyFormat) else KeyFormat.parse(format)
    # A command line hands over bytes that are not UTF-8 as surrogates; they have to come out as those bytes again.
    data = text.encode("utf-8", "surrogateescape")
    if kind is KeyFormat.RAW:
        return UserKey(data)
    if kind is KeyFormat.ESCAPED:
        return UserKey(_unescape(data, text, parameter))
    try:
        return UserKey(binascii.unhexlify(data))
    except binascii.Error:
        raise InvalidOptionError(
            f"{parameter} {show_typed_key(text)} is not a key in format hex: give an even number of hexadecimal digits,"
            " or set format to raw or escaped",
            parameter=parameter,
        ) from None


def _unescape(data: bytes, text: str, parameter: str) -> bytes:
    out = bytearray()
    at = 0
    while at < len(data):
        byte = data[at]
        at += 1
        if byte != ord("\\"):
            out.append(byte)
            continue
        letter = data[at] if at < len(data) else -1
        if letter in _ESCAPES:
            out.append(_ESCAPES[letter])
            at += 1
            continue
        digits, base, size = (data[at + 1 : at + 3], 16, 2) if letter == ord("x") else (data[at : at + 3], 8, 3)
        value = _number(digits, base, size)
        if value is None:
            raise InvalidOptionError(
                f"{parameter} {show_typed_key(text)} is not a key in format escaped: after a backslash give one of"
                " a b f n r t v \\ ' \", or x and two hexadecimal digits, or three octal digits up to 377",
                parameter=parameter,
            )
        out.append(value)
        at += size + (base == 16)
    return bytes(out)


def _number(digits: bytes, base: int, size: int) -> int | None:
    """Read exactly ``size`` digits of a byte, without the signs, blanks and underscores that ``int`` takes."""
    allowed = b"0123456789abcdefABCDEF" if base == 16 else b"01234567"
    if len(digits) != size or any(d not in allowed for d in digits):
        return None
    value = int(digits, base)
    return value if value <= 0xFF else None
