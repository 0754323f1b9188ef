"""Backups in a directory that this process and every store see at the same path.

The embedded stores write through the same class, so it keeps TiKV's rules: the directory itself must exist, directories
below it are made as needed, an older file of the same name is replaced (TiKV, ``components/external_storage/src/local.rs``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from airflow_provider_tikvbr.exceptions import (
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage, check_name

# Neither ends in .sst nor is called backupmeta, so no tool takes an unfinished file for a part of a backup.
TEMP_SUFFIX = ".tikvbr-tmp"

# Modes of the directories that are made here; those that are there already are left as they are.
STORES_WRITE = 0o777
STORES_PASS = 0o755

_TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EHOSTDOWN, errno.ENOTCONN})
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})


class LocalStorage(Storage):
    """A directory.

    :param path: absolute.
    """

    def __init__(self, *, path: Path) -> None:
        self.path = path

    @property
    def display_url(self) -> str:
        """The storage URL."""
        return f"local://{self.path}"

    def backend(self) -> brpb_pb2.StorageBackend:
        """What a store is told: the path, which has to mean the same place on every host."""
        return brpb_pb2.StorageBackend(local=brpb_pb2.Local(path=str(self.path)))

    async def prepare(self) -> None:
        """Make the directory so that the stores too can write into it, and check that it can be written to."""
        await asyncio.to_thread(self._prepare)

    async def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return await asyncio.to_thread(self._exists, check_name(name))

    async def read(self, name: str) -> bytes:
        """All of it."""
        return await asyncio.to_thread(self._read, check_name(name))

    async def write(self, name: str, data: bytes) -> None:
        """Write beside the target, then rename."""
        await asyncio.to_thread(self._put, check_name(name), data, only_new=False)

    async def create(self, name: str, data: bytes) -> bool:
        """Write beside the target, then link, which fails if the target exists."""
        return await asyncio.to_thread(self._put, check_name(name), data, only_new=True)

    async def delete(self, name: str) -> None:
        """Remove a file, and the directories below the storage that it leaves empty."""
        await asyncio.to_thread(self._delete, check_name(name))

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """The files whose name starts with ``prefix``, sorted by name; what a killed writer left is removed on the way."""
        for info in await asyncio.to_thread(self._list, prefix):
            yield info

    # --- blocking halves ---

    def _path(self, name: str) -> Path:
        return self.path / name

    def _prepare(self) -> None:
        made: tuple[Path, ...] = ()
        try:
            made = tuple(p for p in (self.path, *self.path.parents) if not p.exists())
            self.path.mkdir(parents=True, exist_ok=True)
            for directory in made:
                # Whatever this process's umask: the stores run as another user, and write into the last one.
                with contextlib.suppress(OSError):  # some network file systems know no modes
                    directory.chmod(STORES_WRITE if directory == self.path else STORES_PASS)
            for left in self.path.glob(f".*{TEMP_SUFFIX}"):
                _remove_if_abandoned(left)
            probe = self.path / _temp_name()
            try:
                _write_synced(probe, b"")
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            for directory in made:
                with contextlib.suppress(OSError):
                    directory.rmdir()
            reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            message = (
                f"cannot write to the directory {self.path}: {reason}: give one that this user and every TiKV store "
                f"can write to, under the same path on every host"
            )
            kind = StorageUnavailableError if error.errno in _TRANSIENT else StorageError
            raise kind(message, url=self.display_url) from error

    def _exists(self, name: str) -> bool:
        path = self._path(name)
        with self._mapped("look for", path):
            return path.is_file()

    def _read(self, name: str) -> bytes:
        path = self._path(name)
        with self._mapped("read", path):
            return path.read_bytes()

    def _put(self, name: str, data: bytes, *, only_new: bool) -> bool:
        target = self._path(name)
        with self._mapped("write", target):
            if not self.path.is_dir():
                raise self._no_directory()
            target.parent.mkdir(parents=True, exist_ok=True)
            temp = target.with_name(_temp_name())
            try:
                _write_synced(temp, data)
                if not only_new:
                    temp.replace(target)
                elif not _link_new(temp, target, data):
                    return False
            finally:
                temp.unlink(missing_ok=True)
            _sync_directory(target.parent)
            return True

    def _delete(self, name: str) -> None:
        path = self._path(name)
        with self._mapped("delete", path):
            path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self.path:
                return
            try:
                parent.rmdir()
            except OSError:  # not empty, or gone
                return

    def _list(self, prefix: str) -> tuple[ObjectInfo, ...]:
        found: dict[str, int] = {}
        with self._mapped("list", self.path):
            if not self.path.is_dir():
                raise self._no_directory()
            top, slash, _ = prefix.rpartition("/")
            base = self.path / check_name(top) if slash else self.path
            for folder, _, files in os.walk(base, onerror=_raise_unless_gone):
                for file in files:
                    path = Path(folder, file)
                    name = path.relative_to(self.path).as_posix()
                    if name.endswith(TEMP_SUFFIX):
                        _remove_if_abandoned(path)
                    elif name.startswith(prefix):
                        with contextlib.suppress(FileNotFoundError):
                            found[name] = path.stat().st_size
        return tuple(ObjectInfo(name, found[name]) for name in sorted(found))

    # --- errors ---

    def _no_directory(self) -> StorageNotFoundError:
        return StorageNotFoundError(
            f"the directory {self.path} does not exist: make it, under the same path on every host",
            url=self.display_url,
        )

    @contextlib.contextmanager
    def _mapped(self, doing: str, path: Path) -> Iterator[None]:
        try:
            yield
        except TikvBrError:
            raise
        except FileNotFoundError as error:
            raise StorageNotFoundError(f"{path} does not exist", url=self.display_url) from error
        except PermissionError as error:
            raise StorageError(
                f"cannot {doing} {path}: {error.strerror}: give this user access to it", url=self.display_url
            ) from error
        except OSError as error:
            message = f"cannot {doing} {path}: {error.strerror}"
            if error.errno in _TRANSIENT:
                raise StorageUnavailableError(message, url=self.display_url) from error
            if error.errno in _NO_SPACE:
                message += ": free some space there"
            raise StorageError(message, url=self.display_url) from error


def _temp_name() -> str:
    return f".{uuid.uuid4().hex}.{_machine()}-{os.getpid()}{TEMP_SUFFIX}"


@functools.cache
def _machine() -> str:
    """What tells apart those who would take the same number for different processes; empty if that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256((boot + str(Path("/proc/self/ns/pid").readlink())).encode()).hexdigest()[:16]
    except OSError:
        return ""


def _remove_if_abandoned(path: Path) -> None:
    """Remove an unfinished file whose writer was killed, as far as can be known: it ran here, and is gone."""
    machine, _, process = path.name.removesuffix(TEMP_SUFFIX).rpartition(".")[2].partition("-")
    if machine and machine == _machine() and process.isdigit() and not Path("/proc", process).exists():
        # Whoever may only read here has more important things to tell.
        with contextlib.suppress(OSError):
            path.unlink()


def _write_synced(path: Path, data: bytes) -> None:
    # Not tempfile: its files are private, and other users' TiKV or tools have to read these.
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link_new(temp: Path, target: Path, data: bytes) -> bool:
    """Give the finished file its name if no other file has it."""
    try:
        target.hardlink_to(temp)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    # Some network file systems know no hard links; exclusive creation keeps two writers apart there too, though a
    # reader may see the file while it grows.
    try:
        _write_synced(target, data)
    except FileExistsError:
        return False
    return True


def _sync_directory(path: Path) -> None:
    """Make the new name survive a power cut, where the file system can do so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
