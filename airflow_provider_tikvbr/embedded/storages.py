"""How a store opens backup storage, and the words it finds when that fails.

TiKV tells storage failures as debug text of Rust's I/O errors, and tools look into that text for what to do next.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from airflow_provider_tikvbr.embedded.fault_storage import InjectedStorageError
from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import storage_of_backend

_NO_SUCH_FILE = "No such file or directory"


class NoDirectoryError(StorageNotFoundError):
    """A local directory is missing on the store's host."""


def open_for_store(backend: brpb_pb2.StorageBackend) -> Storage:
    """Open what a request names; a local directory has to be there already.

    :raises InvalidOptionError: the kind of storage is not known here.
    :raises NoDirectoryError: the directory is missing.
    """
    kind = backend.WhichOneof("backend")
    if kind is None:
        raise InvalidOptionError("bad storage backend ")
    if kind == "local" and not Path(backend.local.path).is_dir():
        raise NoDirectoryError(_NO_SUCH_FILE)
    return storage_of_backend(backend)


def io_error(error: TikvBrError) -> str:
    """What a backup response says of a storage failure."""
    if isinstance(error, NoDirectoryError):
        return f'Io(Os {{ code: 2, kind: NotFound, message: "{_NO_SUCH_FILE}" }})'
    if isinstance(error, InjectedStorageError):
        return error.message
    text = error.message.replace('"', "'")
    if isinstance(error, StorageNotFoundError):
        return f'Io(Custom {{ kind: NotFound, error: "{text}, code: Some(\\"NoSuchBucket\\")" }})'
    if isinstance(error, AuthenticationError):
        return f'Io(Custom {{ kind: PermissionDenied, error: "{text}" }})'
    if isinstance(error, StorageUnavailableError):
        return f'Io(Custom {{ kind: Other, error: "error during dispatch: {text}" }})'
    if isinstance(error, InvalidOptionError):
        return f'Io(Custom {{ kind: NotFound, error: "{text}" }})'
    return f'Io(Custom {{ kind: Other, error: "{text}" }})'


class SharedStorages:
    """Lets many requests that come together share one open storage: opening S3 costs more than reading a small file."""

    def __init__(self) -> None:
        self._open: dict[bytes, tuple[Storage, int]] = {}

    @contextlib.asynccontextmanager
    async def use(self, backend: brpb_pb2.StorageBackend) -> AsyncIterator[Storage]:
        """The storage of a backend; it is closed when the last one leaves.

        :raises InvalidOptionError: the kind of storage is not known here.
        :raises NoDirectoryError: the directory is missing.
        """
        name = backend.SerializeToString(deterministic=True)
        storage, users = self._open.get(name) or (open_for_store(backend), 0)
        self._open[name] = storage, users + 1
        try:
            yield storage
        finally:
            storage, users = self._open.pop(name)
            if users > 1:
                self._open[name] = storage, users - 1
            else:
                await storage.close()
