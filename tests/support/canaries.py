"""Secrets that are easy to find again, and where one of them sings."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

# Shorter lines of a PEM text are its last one.
LEAST_LINE = 16


def written(secret: str) -> Iterator[bytes]:
    """A secret in every form in which it may stand somewhere."""
    lines = [line for line in secret.splitlines() if len(line) >= LEAST_LINE and "-----" not in line]
    for text in (secret, *lines):
        data = text.encode()
        yield from (form.encode() for form in (text, quote(text), quote(text, safe=""), quote_plus(text)))
        yield json.dumps(text)[1:-1].encode()
        yield base64.b64encode(data).rstrip(b"=")
        yield from (data.hex().encode(), data.hex().upper().encode(), text.lower().encode(), text.upper().encode())
    try:
        yield bytes.fromhex(secret)
        yield base64.b64encode(bytes.fromhex(secret)).rstrip(b"=")
    except ValueError:
        return


class Canaries:
    """Secrets by name.

    :param secrets: each long enough not to be anywhere by chance.
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._forms = {name: set(written(secret)) for name, secret in secrets.items()}

    def singing(self, *places: str | bytes | Path) -> list[str]:
        """The secrets that are in a text, or in a file or a directory of files or in one of their names; and where."""
        return [
            f"{name} in {where}: {_around(data, form)!r}"
            for where, data in _read(places)
            for name, forms in self._forms.items()
            for form in forms
            if form in data
        ]


def _read(places: Iterable[str | bytes | Path]) -> Iterator[tuple[str, bytes]]:
    for place in places:
        if isinstance(place, Path):
            files = [place] if place.is_file() else sorted(place.rglob("*"))
            yield "names of files", "\n".join(map(str, files)).encode()
            yield from ((str(file), file.read_bytes()) for file in files if file.is_file())
        else:
            yield "a text", place.encode() if isinstance(place, str) else place


def _around(data: bytes, form: bytes) -> bytes:
    at = data.index(form)
    return data[max(0, at - 80) : at + len(form) + 20]


def google_account(token_uri: str) -> tuple[str, str]:
    """The JSON of a service account that works but for its server, and its private key."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    account = {
        "type": "service_account",
        "project_id": "project",
        "client_email": "me@project.iam",
        "private_key_id": "canaryOfThePrivateKeysId",
        "private_key": pem,
        "token_uri": token_uri,
    }
    return json.dumps(account), pem
