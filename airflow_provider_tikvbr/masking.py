"""Keeps secrets out of task logs and rendered fields, by telling Airflow what to hide."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote, quote_plus, unquote

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
    """The secret values in a URL, as they stand there and decoded: its password, and parameters by their name."""
    path, _, query = url.partition("?")
    # Not by urlsplit, to which a slash ends the user part: secret keys of S3 have slashes.
    user, _, password = path.partition("://")[2].rpartition("@")[0].partition(":")
    written = [user, password] if password and "/" not in user else []
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        if any(word in unquote(name).lower().replace("_", "-") for word in _SECRET_WORDS):
            written.append(value)
    for value in filter(None, written):
        yield value
        # In a storage URL a plus stands for itself. The libraries below may write the secret in their own way again.
        secret = unquote(value)
        yield from {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)} - {value}
