"""Runs ``hdfs dfs``, and tells what its complaints mean.

Found as TiKV and tikv-br find it: ``$HADOOP_HOME/bin/hdfs``, as the user of ``$HADOOP_LINUX_USER`` if that is set (TiKV,
``components/external_storage/src/hdfs.rs``); here also ``hdfs`` on the path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.timelimit import within

# Each is a Java machine of some hundred megabytes.
AT_ONCE = 4
LIMIT_S = 300.0
# The slowest line that is still worth waiting for.
BYTES_PER_S = 1 << 20
GRACE_S = 2.0
_SHOWN = 200

# The program writes "cat: what is wrong"; everything else is the log of its libraries.
_COMPLAINT = re.compile(r"^-?[a-z]+: (.+)$", re.MULTILINE)
_DENIED = re.compile(
    r"Permission denied|AccessControlException|GSS|Kerberos|not allowed to|No valid credentials"
    r"|SIMPLE authentication is not enabled|Client cannot authenticate"
)
_BUSY = re.compile(
    r"ConnectException|SocketTimeoutException|SocketException|NoRouteToHost|UnknownHost|EOFException|on local exception"
    r"|SafeMode|safe mode|StandbyException|RetriableException|Connection re(fused|set)|[Tt]imed? ?out"
    r"|could only be (written|replicated) to|Could not obtain block|BlockMissingException|All datanodes|No live nodes"
)
_MISSING = re.compile(r"No such file or directory|FileNotFoundException|does not exist")
_FULL = re.compile(r"[Qq]uota")
_ADVICE = re.compile(r";? *For more details see:.*")


class HdfsFailure(Exception):  # noqa: N818  it is not yet known whether it is an error
    """The program has ended with another code than 0.

    :param complaint: its own words on what is wrong; empty if it has none.
    :param command: such as ``-cat``.
    """

    def __init__(self, complaint: str, command: str, code: int) -> None:
        super().__init__(complaint)
        self.complaint = complaint
        self.command = command
        self.code = code

    @property
    def missing(self) -> bool:
        """Whether the file or the directory does not exist."""
        return _MISSING.search(self.complaint) is not None and not self.transient

    @property
    def transient(self) -> bool:
        """Whether another try may succeed."""
        return _BUSY.search(self.complaint) is not None

    def error(self, what: str, url: str) -> TikvBrError:
        """One of this package's errors.

        :param what: begins the sentence, such as ``cannot read hdfs://...``.
        :param url: the storage.
        """
        said = (
            " ".join(_ADVICE.sub("", self.complaint).split())[:_SHOWN] or f"its code is {self.code} and it says nothing"
        )
        if _DENIED.search(self.complaint):
            return AuthenticationError(
                f"{what}: HDFS refuses access: {said}: check the user, its ticket and its rights"
            )
        if self.transient:
            return StorageUnavailableError(f"{what}: HDFS cannot be reached or is not ready: {said}", url=url)
        if self.missing:
            return StorageNotFoundError(f"{what}: it does not exist", url=url)
        if _FULL.search(self.complaint):
            return StorageError(f"{what}: a quota of the directory is used up: raise it, or make room", url=url)
        return StorageError(f"{what}: hdfs dfs {self.command} failed: {said}", url=url)


def find_command() -> list[str]:
    """What to run before ``dfs``.

    :raises InvalidOptionError: there is no such program.
    """
    home = os.environ.get("HADOOP_HOME", "")
    program = str(Path(home, "bin", "hdfs")) if home else shutil.which("hdfs")
    if program is None or not os.access(program, os.X_OK):
        where = f"{program} cannot be run" if program else "there is no hdfs on the path"
        raise InvalidOptionError(
            f"storage hdfs:// needs the program hdfs, but {where}: install Hadoop's client and set HADOOP_HOME to it",
            parameter="storage",
        )
    user = os.environ.get("HADOOP_LINUX_USER", "")
    if user.startswith("-"):
        raise InvalidOptionError("HADOOP_LINUX_USER is not the name of a user", parameter="storage")
    # -n: nobody is there to type a password.
    return ["sudo", "-n", "-u", user, program] if user else [program]


class HdfsCommand:
    """Runs a few of them at once.

    :param shown: the storage, for errors.
    """

    def __init__(self, *, shown: str) -> None:
        self._shown = shown
        self._turns: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    async def run(self, command: str, *arguments: str, data: bytes = b"") -> bytes:
        """Run one and wait for its end; it is ended when the caller is cancelled.

        :param data: what it reads.
        :return: what it writes.
        :raises HdfsFailure: it has failed.
        :raises StorageUnavailableError: it takes too long.
        :raises InvalidOptionError: there is no such program.
        """
        words = [*find_command(), "dfs", command, *arguments]
        async with self._turn():
            limit = LIMIT_S + len(data) / BYTES_PER_S
            process = await self._start(words)
            try:
                out, err = await within(limit, process.communicate(data))
            except asyncio.TimeoutError:
                raise StorageUnavailableError(
                    f"hdfs dfs {command} on {self._shown} did not end in {limit:.0f} s", url=self._shown
                ) from None
            finally:
                await _end(process)
        if process.returncode:
            complaints = _COMPLAINT.findall(err.decode(errors="replace"))
            raise HdfsFailure("; ".join(complaints), command, process.returncode)
        return out

    async def _start(self, words: Sequence[str]) -> asyncio.subprocess.Process:
        try:
            # A group of its own, as the program is a script that starts others; and no signal of the terminal reaches it
            # before this process has decided what to do.
            return await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise InvalidOptionError(
                f"storage {self._shown} needs the program {words[0]}, which cannot be run: {error.strerror}",
                parameter="storage",
            ) from error

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        if self._turns is None or self._turns[0] is not loop:
            self._turns = loop, asyncio.Semaphore(AT_ONCE)
        async with self._turns[1]:
            yield


async def _end(process: asyncio.subprocess.Process) -> None:
    """End what still runs, politely first: sudo passes only that on to another user's program."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(asyncio.TimeoutError):
            await within(GRACE_S, process.wait())
