"""What a connection such as one of Airflow's type ``aws`` says of S3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_provider_tikvbr.connections import StorageAccess
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.masking import mask
from airflow_provider_tikvbr.storage.s3_location import S3Credentials

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

# What Airflow's own hooks for AWS read from the extra of a connection, and storage URLs call otherwise.
_URL_PARAMETERS = {"endpoint_url": "endpoint", "region_name": "region"}


def access(conn: Connection, conn_id: str) -> StorageAccess:
    """Read the connection.

    :raises InvalidOptionError: it has no keys.
    """
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
