"""What every backup storage can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar

from airflow_provider_tikvbr.exceptions import StorageError
from airflow_provider_tikvbr.proto import brpb_pb2


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored file.

    :param name: relative to the storage, ``/`` between its parts.
    :param size: in bytes.
    """

    name: str
    size: int


class Storage(ABC):
    """One place for backups: what TiKV is told about it, and how this process reads and writes there.

    Names are relative to the storage URL and use ``/``. Every call raises
    :class:`~airflow_provider_tikvbr.exceptions.StorageNotFoundError` for a missing file or place (where no other
    meaning is given), :class:`~airflow_provider_tikvbr.exceptions.AuthenticationError` for refused credentials,
    :class:`~airflow_provider_tikvbr.exceptions.StorageUnavailableError` where another try may succeed, and
    :class:`~airflow_provider_tikvbr.exceptions.StorageError` for every other refusal.
    """

    #: Whether what is written can be read again.
    keeps: ClassVar[bool] = True

    @property
    @abstractmethod
    def display_url(self) -> str:
        """The storage URL without query and user part, for people."""

    @property
    def caution(self) -> str:
        """What people should know of how it was opened, without secrets; empty for nothing."""
        return ""

    @abstractmethod
    def backend(self) -> brpb_pb2.StorageBackend:
        """What a store is told. May hold credentials: never log it. May ask for them first: not for the event loop."""

    @abstractmethod
    async def prepare(self) -> None:
        """Make the place, and check that it can be written to; nothing else is left behind."""

    @abstractmethod
    async def exists(self, name: str) -> bool:
        """Whether the file is there."""

    @abstractmethod
    async def read(self, name: str) -> bytes:
        """All of it."""

    @abstractmethod
    async def write(self, name: str, data: bytes) -> None:
        """Put a file there, over an older one; readers see all of it or nothing."""

    @abstractmethod
    async def create(self, name: str, data: bytes) -> bool:
        """Put a file there only if there is none.

        :return: False if there is one already.
        """

    @abstractmethod
    async def delete(self, name: str) -> None:
        """Remove a file; a missing one is fine."""

    @abstractmethod
    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """The files whose name starts with ``prefix``, sorted by name; unfinished ones are left out."""

    async def close(self) -> None:  # noqa: B027  most kinds hold nothing
        """Give back what is held. May be called twice."""

    async def __aenter__(self) -> Storage:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.display_url}>"


def check_name(name: str) -> str:
    """Refuse a name that would lead out of the storage: backupmeta files come from elsewhere.

    :raises StorageError: the name is empty, absolute, or climbs.
    """
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise StorageError(f"{name!r} is not the name of a file inside a backup")
    return name
