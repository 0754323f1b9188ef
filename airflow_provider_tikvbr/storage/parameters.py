"""What the readers of storage URLs share: parameters, endpoints, refusals, and URLs that are safe to show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote_plus, urlsplit

from airflow_provider_tikvbr.exceptions import InvalidOptionError

_TRUE = frozenset({"1", "t", "true"})
_FALSE = frozenset({"0", "f", "false"})
_NAME = re.compile(r"[\w.-]{1,40}")
# Parameters behind a path whose question mark somebody forgot.
_FORGOTTEN = re.compile(r"[&;]([\w-]+)=")


def refused(message: str) -> InvalidOptionError:
    """The error for a storage URL that cannot be right."""
    return InvalidOptionError(message, parameter="storage")


def read_parameters(query: str, scheme: str, known: frozenset[str]) -> dict[str, str]:
    """The parameters of a URL by name, ``-`` between the words; the first of several values counts.

    :param scheme: for errors.
    :param known: the names that there are.
    :raises InvalidOptionError: one that nobody knows.
    """
    given: dict[str, str] = {}
    alone = {unquote_plus(part) for part in query.split("&") if "=" not in part}
    for raw, value in parse_qsl(query, keep_blank_values=True):
        name = raw.lower().replace("_", "-")
        if name not in known and (raw in alone or not _NAME.fullmatch(raw)):
            # Not shown: it may be the rest of a value, such as a key.
            raise refused(
                f"a storage URL of {scheme}:// has a part that is not name=value: write & in a value as %26, and = behind"
                f" each name"
            )
        if name not in known:
            hint = f"known ones are {', '.join(sorted(known))}" if known else "it takes none"
            raise refused(f"a storage URL of {scheme}:// has no parameter {raw!r}: {hint}")
        given.setdefault(name, value)
    return given


def boolean(given: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Read a parameter that is true or false.

    :raises InvalidOptionError: it is neither.
    """
    text = given.get(name, "").lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if text:
        raise refused(f"the storage parameter {name} is {text!r}: give true or false")
    return default


def read_endpoint(given: Mapping[str, str], service: str) -> str:
    """Read the parameter ``endpoint``: scheme, host and port of a service, without a slash at the end.

    :param service: whose, for errors, such as ``S3``.
    :return: empty if none is given.
    :raises InvalidOptionError: it is no such URL.
    """
    endpoint = given.get("endpoint", "").rstrip("/")
    if not endpoint:
        return ""
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise refused(
            f"the {service} endpoint {redact(endpoint)!r} is not a URL: write http://host:port or https://host"
        )
    if "@" in parts.netloc or parts.query:
        raise refused(
            f"the {service} endpoint {redact(endpoint)!r} has a user part or a query: give scheme, host and port only"
        )
    return endpoint


def redact(url: str) -> str:
    """The URL without its query, fragment and user part: safe to show."""
    shown = _FORGOTTEN.split(url.partition("?")[0], maxsplit=1)[0]
    scheme, separator, rest = shown.partition("://")
    if not separator:
        return shown
    rest = rest.partition("#")[0]
    host, slash, path = rest.partition("/")
    if ":" in host and "@" in path:
        # Most likely a password with a slash.
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def lacks_question_mark(path: str, known: frozenset[str]) -> bool:
    """Whether parameters stand in the path of a URL, as no question mark goes before them.

    :param known: the names that there are.
    """
    return any(name.lower().replace("_", "-") in known for name in _FORGOTTEN.findall(path))


def display_url(scheme: str, bucket: str, prefix: str) -> str:
    """The URL of a bucket and a prefix, without any parameter."""
    return f"{scheme}://{bucket}/{prefix}" if prefix else f"{scheme}://{bucket}"


def object_key(prefix: str, name: str) -> str:
    """The object of a file: TiKV and tikv-br put the same slash between."""
    return f"{prefix}/{name}" if prefix else name
