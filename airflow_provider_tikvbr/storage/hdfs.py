"""Backups in HDFS, by the ``hdfs`` command, as TiKV and tikv-br write there; readable too."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Iterator

from airflow_provider_tikvbr.exceptions import StorageError, StorageNotFoundError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage, check_name
from airflow_provider_tikvbr.storage.hdfs_command import HdfsCommand, HdfsFailure
from airflow_provider_tikvbr.storage.hdfs_location import HdfsLocation, is_plain

TEMP_SUFFIX = ".tikvbr-tmp"
# What the command calls a file until all of it is there.
_COPYING = "._COPYING_"
# -rw-r--r--   3 owner some group   1234 2026-11-23 21:50 /directory/file. Names of groups may have spaces.
_ROW = re.compile(r"([-d])[-rwxsStT]{9}[+.@]?\s+(?:\d+|-)\s.*?\s(\d+) \d{4}-\d\d-\d\d \d\d:\d\d (\S.*)")


class HdfsStorage(Storage):
    """A directory of HDFS. Every call starts the command once or twice, about a second each."""

    def __init__(self, *, location: HdfsLocation) -> None:
        self.location = location
        self._command = HdfsCommand(shown=location.display_url)

    @property
    def display_url(self) -> str:
        """The storage URL."""
        return self.location.display_url

    def backend(self) -> brpb_pb2.StorageBackend:
        """What a store is told; which user it is there, its own environment says."""
        return brpb_pb2.StorageBackend(hdfs=brpb_pb2.HDFS(remote=self.location.remote))

    async def prepare(self) -> None:
        """Make the directory, and check that it can be written to."""
        with self._mapped("write to"):
            await self._command.run("-mkdir", "-p", self.location.directory)
            probe = self._temp()
            await self._command.run("-put", "-", probe)
            await self._command.run("-rm", "-skipTrash", probe)

    async def exists(self, name: str) -> bool:
        """Whether the file is there."""
        path = self._path(name)
        with self._mapped("look for", name):
            return await self._is_file(path)

    async def read(self, name: str) -> bytes:
        """All of it."""
        path = self._path(name)
        with self._mapped("read", name):
            return await self._command.run("-cat", path)

    async def write(self, name: str, data: bytes) -> None:
        """Put a file; readers see all of it, or none for the moment in which an older one is replaced."""
        path = self._path(name)
        with self._mapped("write", name):
            # The command writes beside the target and renames.
            await self._command.run("-put", "-f", "-", path, data=data)

    async def create(self, name: str, data: bytes) -> bool:
        """Put a file beside the target, then rename it, which HDFS refuses if the target exists.

        ``-put`` alone is no safe way: all writers of a file write beside it under one name.
        """
        path, temp = self._path(name), self._temp()
        with self._mapped("write", name):
            await self._command.run("-put", "-", temp, data=data)
            moved = False
            try:
                await self._command.run("-mv", temp, path)
                moved = True
            except HdfsFailure:
                # A target that came at the last moment makes it fail with nothing but "Input/output error".
                if not await self._is_file(path):
                    raise
            finally:
                if not moved:
                    with contextlib.suppress(HdfsFailure):
                        await self._command.run("-rm", "-f", "-skipTrash", temp)
        return moved

    async def delete(self, name: str) -> None:
        """Remove a file for good; a missing one is fine."""
        path = self._path(name)
        with self._mapped("delete", name):
            await self._command.run("-rm", "-f", "-skipTrash", path)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """The files whose name starts with ``prefix``, sorted by name."""
        with self._mapped("list"):
            rows = await self._command.run("-ls", "-R", self.location.directory)
        for info in sorted(self._read_rows(rows), key=lambda i: i.name):
            if info.name.startswith(prefix):
                yield info

    def _read_rows(self, rows: bytes) -> Iterator[ObjectInfo]:
        base = f"{self.location.directory}/"
        for line in rows.decode(errors="replace").splitlines():
            found = _ROW.fullmatch(line)
            if found is None or found[1] == "d":
                continue
            if not found[3].startswith(base):
                raise StorageError(f"cannot list {self.display_url}: hdfs names files elsewhere", url=self.display_url)
            name = found[3].removeprefix(base)
            if not name.endswith((TEMP_SUFFIX, _COPYING)):
                yield ObjectInfo(name, int(found[2]))

    async def _is_file(self, path: str) -> bool:
        try:
            await self._command.run("-test", "-f", path)
        except HdfsFailure as failure:
            # A plain "no" has no words.
            if failure.code == 1 and not failure.complaint:
                return False
            raise
        return True

    def _path(self, name: str) -> str:
        check_name(name)
        if not is_plain(name):
            raise StorageError(f"{name!r} cannot be the name of a file in {self.display_url}", url=self.display_url)
        return f"{self.location.directory}/{name}"

    def _temp(self) -> str:
        return f"{self.location.directory}/.{uuid.uuid4().hex}{TEMP_SUFFIX}"

    @contextlib.contextmanager
    def _mapped(self, doing: str, name: str = "") -> Iterator[None]:
        url = f"{self.display_url}/{name}" if name else self.display_url
        try:
            yield
        except HdfsFailure as failure:
            if failure.missing:
                raise StorageNotFoundError(f"{url} does not exist", url=self.display_url) from None
            raise failure.error(f"cannot {doing} {url}", self.display_url) from None
