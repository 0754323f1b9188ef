"""Keeps secrets out of task logs and rendered fields, by telling Airflow what to hide."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from airflow.sdk.log import mask_secret

# Words in the name of a storage URL's parameter that make its value a secret. An access key's id is not one, but it is
# half of the pair, and nobody needs it in a log.
_SECRET_WORDS = (
    *("secret", "access-key", "account-key", "token", "password", "sas"),
    *("encryption-key", "external-id", "signature", "private-key"),
)
# A parameter that names a file, but may be given what the file holds.
_FILE_OR_JSON = "credentials"
# Variables by which a worker's environment gives credentials to every task: the libraries of the clouds write what they
# find there into their own debug logs.
_VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_SECRET"),
)
# The secret part of a shared access signature.
_SIGNATURE = re.compile(r"(?:^|[?&])sig=([^&]+)")
# Shorter lines of a key are its last one, which says little and may be anywhere in a log.
_LEAST_LINE = 16


def mask(secret: str) -> None:
    """Show ``***`` instead of the text in the task's log and in its rendered fields."""
    if secret:
        mask_secret(secret)


def mask_hex(secret: str) -> None:
    """Hide hexadecimal digits, however somebody writes them again."""
    for text in {secret, secret.strip(), secret.lower().strip(), secret.upper().strip()}:
        mask(text)


def mask_pem(secret: str) -> None:
    """Hide PEM text, as it is, as JSON writes it, and each of its lines: a log may have them one by one."""
    for text in {secret, secret.strip(), json.dumps(secret)[1:-1]}:
        mask(text)
    for line in secret.replace("\\n", "\n").splitlines():
        if len(line.strip()) >= _LEAST_LINE and not line.startswith("-----"):
            mask(line.strip())


def mask_url(url: str) -> None:
    """Hide the secrets that a storage URL carries, as they are and as they are written in the URL."""
    for secret in secrets_of_url(url):
        mask(secret)


def mask_environment() -> None:
    """Hide the credentials for storages that this process's environment holds."""
    for name in _VARIABLES:
        value = os.environ.get(name, "")
        for secret in (value, *signatures(value)):
            mask(secret)


def signatures(sas: str) -> Iterator[str]:
    """The secret part of a shared access signature of Azure, as its URL has it and as it is."""
    for written in _SIGNATURE.findall(sas):
        secret = unquote(written)
        yield from {written, secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}


def secrets_of_url(url: str) -> Iterator[str]:
    """The secret values in a URL, as they stand there and decoded: its password, and parameters by their name."""
    path, _, query = url.partition("?")
    # Not by urlsplit, to which a slash ends the user part: secret keys of S3 have slashes.
    user, _, password = path.partition("://")[2].rpartition("@")[0].partition(":")
    written = [user, password] if password and "/" not in user else []
    if not query:
        # Somebody may have forgotten the question mark.
        query = "&".join(re.split("[&;]", url)[1:])
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        name = unquote(name).lower().replace("_", "-")
        if any(word in name for word in _SECRET_WORDS):
            written.append(value)
        elif _FILE_OR_JSON in name and unquote(value).lstrip().startswith("{"):
            written.append(value)
            yield from _secrets_of_json(unquote(value))
    for value in filter(None, written):
        yield value
        # In a storage URL a plus stands for itself. The libraries below may write the secret in their own way again.
        secret = unquote(value)
        yield from {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)} - {value}
        # Azure's library puts the parameters of a signature into an order of its own.
        yield from signatures(secret)


def _secrets_of_json(text: str) -> Iterator[str]:
    """The texts in a service account's JSON that let somebody in."""
    try:
        found: Any = json.loads(text)
    except ValueError:
        return
    for name, value in found.items() if isinstance(found, dict) else ():
        if isinstance(value, str) and ("key" in name or "secret" in name or "token" in name):
            yield from filter(None, (value, json.dumps(value)[1:-1]))
            yield from (line for line in value.splitlines() if len(line) >= _LEAST_LINE and "-----" not in line)
