"""What the lock of a job says, and whether whoever wrote it is still there.

A process on this machine can be looked for; of any other only its heartbeat is known. Clocks of machines differ, so an old
heartbeat alone proves nothing: the record has to stay as it is while somebody watches, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any, Final

from airflow_provider_tikvbr.exceptions import StorageLockedError, StorageNotFoundError
from airflow_provider_tikvbr.storage.base import Storage

# In the place of a backup; tikv-br writes one of this name too.
BACKUP_LOCK: Final = "backup.lock"
# In the directory of a restore's checkpoint.
RESTORE_LOCK: Final = "restore.lock"

# How often a holder writes its record, in seconds.
HEARTBEAT_S: Final = 20.0
# A heartbeat older than this may be that of a job that is gone; a job that cannot write one for so long stops.
STALE_S: Final = 120.0
# For so long such a record has to stay unchanged: more than one heartbeat.
WATCH_S: Final = 30.0
LOOKS: Final = 6


class Verdict(Enum):
    """What can be said of the process that holds a lock."""

    LIVES = "it runs on this machine"
    DIED = "it ran on this machine and is gone"
    UNKNOWN = "it ran on another machine, or nobody knows where"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Which process of which machine, so that no other is taken for it.

    :param boot: id of the boot of the machine (``/proc/sys/kernel/random/boot_id``).
    :param pids: the namespace in which its process id counts (``/proc/self/ns/pid``): containers have their own.
    :param ticks: when the process began, in clock ticks since the boot (``/proc/<pid>/stat``, field 22).
    """

    boot: str
    pids: str
    ticks: int

    @classmethod
    def here(cls) -> Machine | None:
        """This process; None where there is no ``/proc``."""
        try:
            boot, pids = _this_machine()
            state = _process(os.getpid())
        except (OSError, ValueError, IndexError):
            return None
        return cls(boot=boot, pids=pids, ticks=state[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRecord:
    """What a lock says.

    :param owner: the run that writes; the same run may take over its own lock after a crash.
    :param holder: a random id, new for each job that takes a lock; empty if another tool wrote the lock.
    :param started: when the lock was taken, ISO 8601, UTC.
    :param heartbeat: when the holder last wrote it, ISO 8601, UTC.
    :param machine: which process that is; None if that is not known.
    """

    owner: str
    holder: str
    host: str
    pid: int
    started: str
    heartbeat: str
    machine: Machine | None = None

    @classmethod
    def of_this_process(cls, owner: str) -> LockRecord:
        """A new one.

        :param owner: the run; empty for one that nobody else is.
        """
        host, now = socket.gethostname(), now_text()
        return cls(
            owner=owner or f"{host}-{uuid.uuid4().hex[:12]}",
            holder=uuid.uuid4().hex,
            host=host,
            pid=os.getpid(),
            started=now,
            heartbeat=now,
            machine=Machine.here(),
        )

    @classmethod
    def parse(cls, data: bytes) -> LockRecord:
        """Read a lock; other tools leave other texts, which belong to an unknown owner."""
        try:
            found: Any = json.loads(data)
            return cls(
                owner=str(found["owner"]),
                holder=str(found["holder"]),
                host=str(found["host"]),
                pid=int(found["pid"]),
                started=str(found["started"]),
                heartbeat=str(found["heartbeat"]),
                machine=_machine(found.get("machine")),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls(owner="", holder="", host="", pid=0, started="", heartbeat="")

    def dump(self) -> bytes:
        """Its text."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        if self.machine is not None:
            fields["machine"] = {name: getattr(self.machine, name) for name in self.machine.__slots__}
        return (json.dumps(fields, indent=1) + "\n").encode()

    def beaten(self) -> LockRecord:
        """The same with the time of now as heartbeat."""
        return replace(self, heartbeat=now_text())

    @property
    def is_foreign(self) -> bool:
        """Whether another tool wrote it, or nobody can read it."""
        return not self.holder

    @property
    def age_s(self) -> float | None:
        """Seconds since the heartbeat, by the clock of this machine; None if it tells none."""
        try:
            beat = datetime.fromisoformat(self.heartbeat)
            return (datetime.now(timezone.utc) - beat).total_seconds()
        except (ValueError, TypeError):  # TypeError: a time without its zone
            return None

    def __str__(self) -> str:
        if self.is_foreign:
            return "another job"
        return (
            f"{self.owner or 'a job without a name'} (host {self.host}, pid {self.pid}, started {self.started}, last sign"
            f" of life {self.heartbeat})"
        )


def judge(record: LockRecord) -> Verdict:
    """Whether the process that wrote a lock is there; only a process of this machine can be looked for."""
    there = record.machine
    if there is None or record.pid <= 0:
        return Verdict.UNKNOWN
    try:
        if _this_machine() != (there.boot, there.pids):
            return Verdict.UNKNOWN
    except OSError:
        return Verdict.UNKNOWN
    try:
        # First: /proc may hide the processes of other users.
        os.kill(record.pid, 0)
    except (ProcessLookupError, OverflowError):
        return Verdict.DIED
    except PermissionError:
        pass
    try:
        state, ticks = _process(record.pid)
    except (OSError, ValueError, IndexError):
        return Verdict.UNKNOWN
    # Killed, though nobody has asked for its exit code yet; or another one that has got its id.
    return Verdict.DIED if state in "ZXx" or ticks != there.ticks else Verdict.LIVES


async def read_lock(storage: Storage, name: str) -> LockRecord | None:
    """What a lock says; None if there is none.

    :raises TikvBrError: the storage does not let us.
    """
    try:
        return LockRecord.parse(await storage.read(name))
    except StorageNotFoundError:
        return None


async def why_abandoned(
    storage: Storage, name: str, record: LockRecord, *, stale_s: float = STALE_S, watch_s: float = WATCH_S
) -> str:
    """Why nobody holds a lock any more, for people; empty if somebody does, or may.

    :param record: what the lock says now.
    :param stale_s: a heartbeat younger than this is a sign of life, in seconds.
    :param watch_s: for how long an older one is watched, in seconds. This takes so long.
    :raises TikvBrError: the storage does not let us.
    """
    if record.is_foreign:
        return ""
    if await asyncio.to_thread(judge, record) is Verdict.DIED:
        return "its process is gone"
    age = record.age_s
    if age is None or age <= stale_s:
        return ""
    for _ in range(LOOKS):
        await asyncio.sleep(watch_s / LOOKS)
        if await read_lock(storage, name) != record:
            return ""
    return f"it has shown no sign of life for {age + watch_s:.0f} s"


async def remove_lock(storage: Storage, name: str, record: LockRecord) -> bool:
    """Remove a lock that is abandoned.

    :param record: what it said when that was found out.
    :return: False if it says something else now, so that it is left alone.
    :raises TikvBrError: the storage does not let us.
    """
    found = await read_lock(storage, name)
    if found is not None and found != record:
        return False
    await storage.delete(name)
    return True


def refusal(
    storage: Storage,
    name: str,
    record: LockRecord,
    *,
    otherwise: str = "give another place",
    flag: str = "--storage",
) -> StorageLockedError:
    """Why a job cannot have a lock.

    :param record: what the lock says.
    :param otherwise: what the user can do instead of waiting.
    :param flag: of ``tikvbr repair``, for the storage.
    """
    if record.is_foreign:
        remedy = f"delete {name} in {storage.display_url} if no job is running there"
        who = f"another job, whose {name.rpartition('/')[2]} does not say who it is"
    else:
        remedy = f"if that job is gone, run `tikvbr repair {flag} {storage.display_url}`"
        who = str(record)
    return StorageLockedError(
        f"{lock_place(storage, name)} is being written by {who}: wait for it, {otherwise}, or {remedy}",
        url=storage.display_url,
        owner=record.owner or None,
    )


def lock_place(storage: Storage, name: str) -> str:
    """What a lock is of, for people."""
    directory = name.rpartition("/")[0]
    return f"{storage.display_url.rstrip('/')}/{directory}" if directory else storage.display_url


def now_text() -> str:
    """The time of now, as locks tell it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _machine(found: Any) -> Machine | None:
    try:
        return Machine(boot=str(found["boot"]), pids=str(found["pids"]), ticks=int(found["ticks"]))
    except (ValueError, TypeError, KeyError):
        return None


def _this_machine() -> tuple[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot, str(Path("/proc/self/ns/pid").readlink())


def _process(pid: int) -> tuple[str, int]:
    """State and start of a process (``man 5 proc``): fields 3 and 22, counted from behind a name that may hold anything."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[19])
