"""Finds Airflow's connections, and takes from one what a storage needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.rawbr.parsing import parse_text
from airflow_provider_tikvbr.storage.factory import Credentials
from airflow_provider_tikvbr.storage.parameters import redact
from airflow_provider_tikvbr.storage.url import scheme_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageAccess:
    """What a connection says of a storage.

    :param credentials: the keys; None where it names none, and the worker's own are meant.
    :param parameters: what it adds to a storage URL that does not say otherwise, such as ``endpoint=...``.
    :param unread: fields of its extra that mean nothing here.
    """

    credentials: Credentials | None
    parameters: str = ""
    unread: tuple[str, ...] = ()

    def complete(self, url: str) -> str:
        """Add the parameters to the storage URL; those that it has already win, as they come first."""
        if not self.parameters:
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


def storage_access(conn_id: object, url: str) -> StorageAccess | None:
    """Read what a connection, such as one of Airflow's type ``aws``, says of a storage.

    :param url: the storage URL; its scheme tells what the connection has to be for.
    :return: None if no connection is named.
    :raises InvalidOptionError: the connection is of no use for that storage.
    """
    if conn_id is None or conn_id == "":
        return None
    conn = find_connection(conn_id, parameter="storage_conn_id")
    # Each of these knows the library of one cloud, and a task needs one at most.
    scheme = scheme_of(url)
    if scheme == "s3":
        from airflow_provider_tikvbr.connections import aws

        return aws.access(conn, str(conn_id))
    if scheme in ("gcs", "gs"):
        from airflow_provider_tikvbr.connections import google

        return google.access(conn, str(conn_id))
    if scheme in ("azure", "azblob"):
        from airflow_provider_tikvbr.connections import azure

        return azure.access(conn, str(conn_id))
    raise InvalidOptionError(
        f"storage_conn_id names connection {conn_id}, but the storage {redact(url)} takes no credentials:"
        " leave storage_conn_id out",
        parameter="storage_conn_id",
    )
