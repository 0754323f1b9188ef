"""The storage that keeps nothing: TiKV scans and counts, but no file is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import ClassVar

from airflow_provider_tikvbr.exceptions import StorageNotFoundError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage, check_name


class NoopStorage(Storage):
    """Takes everything, holds nothing."""

    keeps: ClassVar[bool] = False

    @property
    def display_url(self) -> str:
        """The storage URL."""
        return "noop://"

    def backend(self) -> brpb_pb2.StorageBackend:
        """What a store is told."""
        return brpb_pb2.StorageBackend(noop=brpb_pb2.Noop())

    async def prepare(self) -> None:
        """Nothing to make."""

    async def exists(self, name: str) -> bool:
        """Never."""
        check_name(name)
        return False

    async def read(self, name: str) -> bytes:
        """Always refused."""
        raise self._missing(name)

    async def write(self, name: str, data: bytes) -> None:
        """Forget the data."""
        check_name(name)

    async def create(self, name: str, data: bytes) -> bool:
        """Forget the data."""
        check_name(name)
        return True

    async def delete(self, name: str) -> None:
        """Nothing to remove."""
        check_name(name)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Nothing."""
        nothing: tuple[ObjectInfo, ...] = ()
        for info in nothing:
            yield info

    def _missing(self, name: str) -> StorageNotFoundError:
        return StorageNotFoundError(
            f"{check_name(name)} is not there: a noop storage keeps nothing, give a local or S3 storage URL",
            url=self.display_url,
        )
