"""What a connection of Airflow's type ``google_cloud_platform`` says of Google Cloud Storage.

A key that is a JSON document is read here, so that the stores can be sent it. What only Google's own hook can make into
credentials, such as an impersonated account, needs ``apache-airflow-providers-google``; it serves the worker alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_tikvbr.connections import StorageAccess
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.masking import mask
from airflow_provider_tikvbr.storage.gcs_location import GcsCredentials

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

CONN_TYPE = "google_cloud_platform"
# Where Google's provider is not installed, the form offers no connection of its type.
_TYPES = (CONN_TYPE, "generic")

# Airflow of old put this before every field.
_PREFIX = f"extra__{CONN_TYPE}__"
_ANONYMOUS = "is_anonymous"
_DOCUMENTS = ("keyfile_dict", "key_path")
# What only the hook of Google's provider makes into credentials.
_BY_HOOK = ("impersonation_chain", "key_secret_name", "credential_config_file", "idp_issuer_url")
# Belong to those above, or mean nothing to a storage and are in every such connection.
_WITH_THEM = frozenset({"project", "scope", "num_retries", "key_secret_project_id", "idp_extra_parameters"})
# Fields of a document that are secrets.
_SECRETS = ("private_key", "client_secret", "refresh_token")


def access(conn: Connection, conn_id: str) -> StorageAccess:
    """Read the connection; one without any credentials means the worker's own.

    :raises InvalidOptionError: it is of another type, or its credentials cannot be read.
    """
    if conn.conn_type and conn.conn_type not in _TYPES:
        raise _refused(conn_id, f"is of type {conn.conn_type!r}: name one of type {CONN_TYPE}")
    fields = _fields(conn)
    credentials = None
    given = [name for name in _DOCUMENTS if fields.get(name)]
    if len(given) > 1:
        raise _refused(conn_id, "has both keyfile_dict and key_path: leave one of them")
    for name in given:
        # Also where the hook makes the credentials: they must not be seen in what it logs.
        credentials = GcsCredentials(blob=_document(name, fields[name], conn_id))
    if by_hook := [name for name in _BY_HOOK if fields.get(name)]:
        credentials = GcsCredentials(session=_session(conn_id, by_hook[0]))
    elif _is_true(fields.get(_ANONYMOUS)):
        credentials = GcsCredentials(session=_anonymous(conn_id))
    known = {_ANONYMOUS, *_DOCUMENTS, *_BY_HOOK, *_WITH_THEM}
    return StorageAccess(
        credentials=credentials, unread=tuple(sorted(str(name) for name in fields if name not in known))
    )


def _fields(conn: Connection) -> Mapping[str, Any]:
    """The extra, its fields by their short names; one with the long name goes second, as in Google's hook."""
    extra: Mapping[str, Any] = conn.extra_dejson if isinstance(conn.extra_dejson, dict) else {}
    fields: dict[str, Any] = {}
    for name in sorted(extra, key=lambda name: not str(name).startswith(_PREFIX)):
        short = str(name).removeprefix(_PREFIX)
        if extra[name] not in (None, "") or short not in fields:
            fields[short] = extra[name]
    return fields


def _document(name: str, value: Any, conn_id: str) -> str:
    """The text of a key; its secrets are masked."""
    if name == "key_path":
        try:
            value = Path(str(value)).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise _refused(
                conn_id, f"names the key_path {value}, which cannot be read on this worker ({reason}): correct it"
            ) from None
    text = value if isinstance(value, str) else json.dumps(value)
    mask(text)
    try:
        info = json.loads(text)
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise _refused(conn_id, f"has no JSON document in {name}: give the key of a service account")
    for field in _SECRETS:
        if isinstance(secret := info.get(field), str):
            mask(secret)
            # With its line ends as JSON writes them.
            mask(json.dumps(secret)[1:-1])
    return text


def _session(conn_id: str, field: str) -> Any:
    try:
        from airflow.providers.google.common.hooks.base_google import GoogleBaseHook
    except ImportError:
        raise _refused(
            conn_id,
            f"has the field {field}: install apache-airflow-providers-google, or give the key of a service account in"
            " keyfile_dict or key_path",
        ) from None
    try:
        return GoogleBaseHook(gcp_conn_id=conn_id).get_credentials()
    except Exception:  # of many kinds, and its text may quote the key
        raise _refused(
            conn_id, f"has the field {field}, from which Google's hook makes no credentials: try the connection itself"
        ) from None


def _anonymous(conn_id: str) -> Any:
    try:
        from google.auth.credentials import AnonymousCredentials
    except ImportError:
        raise _refused(
            conn_id, f"has the field {_ANONYMOUS}: pip install 'airflow-provider-tikvbr[gcs]' to use it"
        ) from None
    return AnonymousCredentials()  # type: ignore[no-untyped-call]


def _is_true(value: Any) -> bool:
    return str(value).strip().lower() in ("true", "1", "yes", "on")


def _refused(conn_id: str, what: str) -> InvalidOptionError:
    return InvalidOptionError(f"storage_conn_id names connection {conn_id}, which {what}", parameter="storage_conn_id")
