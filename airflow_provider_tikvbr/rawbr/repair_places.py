"""The places where a killed job has written, and what of a cluster is still wanted there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airflow_provider_tikvbr.exceptions import StorageNotFoundError
from airflow_provider_tikvbr.rawbr.checkpoint import HEAD_NAME
from airflow_provider_tikvbr.rawbr.checkpoint_format import Head
from airflow_provider_tikvbr.rawbr.takeover import DIRECTORY
from airflow_provider_tikvbr.storage.base import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where jobs have written.

    :param storage: of a backup.
    :param checkpoint_storage: of a restore's checkpoint.
    """

    storage: Storage | None = None
    checkpoint_storage: Storage | None = None

    async def wanted_safepoints(self) -> Mapping[str, str]:
        """The service that an unfinished backup goes on with, and where that backup is.

        :raises TikvBrError: the storage does not let us look.
        """
        if self.storage is None or not self.storage.keeps:
            return {}
        try:
            head = Head.parse(await self.storage.read(f"{DIRECTORY}/{HEAD_NAME}"))
        except StorageNotFoundError:
            return {}
        if head is None or "service_id" not in head.state:
            return {}
        return {str(head.state["service_id"]): self.storage.display_url}
