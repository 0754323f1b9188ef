"""Keeps secrets out of task logs and rendered fields, by telling Airflow what to hide."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

from airflow.sdk.log import mask_secret

# Words in the name of a storage URL's parameter that make its value a secret. An access key's id is not one, but it is
# half of the pair, and nobody needs it in a log.
_SECRET_WORDS = ("secret", "access-key", "account-key", "token", "password", "sas")


def mask(secret: str) -> None:
    """Show ``***`` instead of the text in the task's log and in its rendered fields."""
    if secret:
        mask_secret(secret)


def mask_url(url: str) -> None:
    """Hide the secrets that a storage URL carries, as they are and as they are written in the URL."""
    for secret in secrets_of_url(url):
        mask(secret)


def secrets_of_url(url: str) -> Iterator[str]:
    """The secret values in a URL: its password, and the parameters that are secrets by their name."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return
    values = [password] if password else []
    for name, value in parse_qsl(parts.query):
        if any(word in name.lower().replace("_", "-") for word in _SECRET_WORDS):
            values.append(value)
    for value in values:
        yield value
        for written in (quote(value, safe=""), quote_plus(value), quote(value)):
            if written != value:
                yield written
