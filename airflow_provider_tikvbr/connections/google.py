"""What a connection such as one of Airflow's type ``google_cloud_platform`` says of Google Cloud Storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_tikvbr.connections import StorageAccess

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection


def access(conn: Connection, conn_id: str) -> StorageAccess:
    """Read the connection."""
    raise NotImplementedError
