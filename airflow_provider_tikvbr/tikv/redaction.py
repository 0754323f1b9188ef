"""Keeps the keys of users out of everything that people read: logs, notes, errors, progress, summaries.

Keys may hold names or numbers of persons. Where a job is told to redact, each key appears as ``?`` instead of its digits.
The choice belongs to the context of the job (:mod:`contextvars`), so that jobs side by side do not disturb each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

HIDDEN: Final = "?"

_redacting: ContextVar[bool] = ContextVar("tikvbr_redacting", default=False)

# How servers write keys in their texts: hexadecimal digits, byte strings in quotes, lists of bytes.
_KEYS_IN_TEXT: Final = re.compile(
    r"""\b(?=[0-9A-Fa-f]*[0-9])(?:[0-9A-Fa-f]{2}){4,}\b|\\?"(?:[^"\\]|\\.)*?\\?"|\[\s*\d+(?:\s*,\s*\d+)*\s*\]"""
)


@contextmanager
def redacting(on: bool) -> Iterator[None]:
    """Show keys, or hide them, while the block and what it starts run.

    :param on: whether to hide them.
    """
    before = _redacting.set(on)
    try:
        yield
    finally:
        _redacting.reset(before)


def is_redacting() -> bool:
    """Whether keys are hidden here."""
    return _redacting.get()


def show_key(data: bytes, *, empty: str = "") -> str:
    """A key of any form, for people: its hexadecimal digits.

    :param empty: what the empty key means, which is never hidden: it is the bound of everything.
    """
    if not data:
        return empty
    return HIDDEN if is_redacting() else data.hex()


def show_typed_key(text: str) -> str:
    """A key as its user wrote it, in quotes."""
    return HIDDEN if is_redacting() and text else repr(text)


def show_answer(text: str) -> str:
    """What a server says, without what may be a key in it."""
    return _KEYS_IN_TEXT.sub(HIDDEN, text) if is_redacting() else text
