"""Finds Airflow's connections, and takes the keys of a storage from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.masking import mask
from airflow_provider_tikvbr.rawbr.parsing import parse_text
from airflow_provider_tikvbr.storage.url import S3Credentials

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

# What Airflow's own hooks for AWS read from the extra of a connection, and storage URLs call otherwise.
_URL_PARAMETERS = {"endpoint_url": "endpoint", "region_name": "region"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageAccess:
    """What a connection says of a storage.

    :param credentials: the keys.
    :param parameters: what it adds to a storage URL that does not say otherwise, such as ``endpoint=...``.
    :param unread: fields of its extra that mean nothing here.
    """

    credentials: S3Credentials
    parameters: str = ""
    unread: tuple[str, ...] = ()

    def complete(self, url: str) -> str:
        """Add the parameters to the URL of an S3 storage; those that it has already win, as they come first."""
        if not self.parameters or not url.strip().lower().startswith("s3://"):
            return url
        return f"{url.strip()}{'&' if '?' in url else '?'}{self.parameters}"


def find_connection(conn_id: object, *, parameter: str, hook: type[BaseHook] = BaseHook) -> Connection:
    """Look up a connection.

    :param parameter: the option that names it, for errors.
    :raises InvalidOptionError: no name is given.
    :raises AirflowNotFoundException: there is none of that name, or none that can be read. Another try may help: Airflow
        says the same where a secrets backend does not answer.
    """
    name = parse_text(conn_id, parameter=parameter).strip()
    if not name:
        raise InvalidOptionError(f"{parameter} is empty: name a connection", parameter=parameter)
    try:
        return hook.get_connection(name)
    except AirflowNotFoundException:
        raise AirflowNotFoundException(
            f"{parameter} names the connection {name}, which is not defined, or its URI or JSON cannot be read:"
            f" add it, mend it, or correct {parameter}"
        ) from None


def storage_access(conn_id: object) -> StorageAccess | None:
    """Read the keys for S3 from a connection, such as one of Airflow's type ``aws``.

    :return: None if no connection is named.
    :raises InvalidOptionError: the connection has no keys.
    """
    if conn_id is None or conn_id == "":
        return None
    conn = find_connection(conn_id, parameter="storage_conn_id")
    if not conn.login or not conn.password:
        raise InvalidOptionError(
            f"storage_conn_id names connection {conn_id}, which has no login and password: give the access key and the"
            " secret access key there, or name no connection to use the worker's own credentials",
            parameter="storage_conn_id",
        )
    extra: Mapping[str, Any] = conn.extra_dejson if isinstance(conn.extra_dejson, dict) else {}
    token = str(extra.get("aws_session_token") or "")
    for secret in (conn.login, conn.password, token):
        mask(secret)
    return StorageAccess(
        credentials=S3Credentials(access_key=conn.login, secret_access_key=conn.password, session_token=token),
        parameters="&".join(
            f"{name}={quote(str(extra[field]), safe='')}" for field, name in _URL_PARAMETERS.items() if extra.get(field)
        ),
        unread=tuple(sorted(str(field) for field in extra if field not in {*_URL_PARAMETERS, "aws_session_token"})),
    )
