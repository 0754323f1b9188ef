"""Keeps secrets out of sentences: what a user gave where a path belongs, and what a server says back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

HIDDEN: Final = "***"
# Shorter lines of a key are its last one, which says little and may be anywhere in a text.
LEAST_LINE: Final = 16
# Shorter texts are in every other sentence, and no service gives out such secrets.
_LEAST_SECRET: Final = 4
_DOCUMENT: Final = re.compile(r'-----|[{}"\n\r]')
# Keys in hexadecimal digits have 32 of them at least. Those in base64, and the lines of a PEM text, are longer, and of
# letters of both cases and digits; so may the words of a path be, but with fewer of them between a dot or a dash.
_HEX: Final = re.compile(r"\b[0-9A-Fa-f]{32,}\b")
_BASE64: Final = re.compile(r"(?=[^\s]*[a-z])(?=[^\s]*[A-Z])(?=[^\s]*[0-9])[A-Za-z0-9+/]{40,}={0,2}")


def without_keys(text: str) -> str:
    """A sentence without the words that look like keys."""
    return _BASE64.sub(HIDDEN, _HEX.sub(HIDDEN, text))


def looks_secret(text: str) -> bool:
    """Whether a text may be a key, or a document that holds one, rather than the path of a file."""
    return any(kind.search(text) for kind in (_DOCUMENT, _HEX, _BASE64))


def show_path(path: str) -> str:
    """A path in quotes; nothing of it if it looks like what the file should hold."""
    return "(not shown: it looks like a key and not like a path)" if looks_secret(path) else repr(path)


def forms(secret: str) -> list[str]:
    """A secret as it is, and as others write it: in a URL, in JSON, line by line; the longest first."""
    lines = (line.strip() for line in secret.replace("\\n", "\n").splitlines())
    texts = {secret.strip(), json.dumps(secret)[1:-1], *(line for line in lines if len(line) >= LEAST_LINE)}
    texts = {text for text in texts if not text.startswith("-----")} | {secret}
    texts |= {form for text in texts for form in (quote(text), quote(text, safe=""), quote_plus(text))}
    return sorted(filter(None, texts), key=len, reverse=True)


def hide(text: str, secrets: Iterable[str]) -> str:
    """A text without these secrets, in whichever form they stand there."""
    for form in sorted(
        {form for secret in secrets if len(secret) >= _LEAST_SECRET for form in forms(secret)}, key=len, reverse=True
    ):
        text = text.replace(form, HIDDEN)
    return text
