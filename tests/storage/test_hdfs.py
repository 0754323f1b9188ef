"""HDFS: against a program that says what Hadoop's own says."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    InvalidOptionError,
    StorageError,
    StorageNotFoundError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage import hdfs_command
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage
from airflow_provider_tikvbr.storage.factory import open_storage, storage_of_backend
from airflow_provider_tikvbr.storage.hdfs_location import HdfsLocation
from airflow_provider_tikvbr.storage.url import parse_url
from tests.support.hdfs import Hadoop
from tests.support.waiting import until

URL = "hdfs://namenode:8020/backups/monday"


def opened(url: str = URL) -> Storage:
    return open_storage(url)


# --- places ---


@pytest.mark.parametrize(
    ("url", "remote", "directory"),
    [
        (URL, URL, URL),
        ("HDFS://namenode:8020/a/", "hdfs://namenode:8020/a", "hdfs://namenode:8020/a"),
        # TiKV leaves the scheme out where no host is named, and so it means the file system of Hadoop's settings.
        ("hdfs:///a/b+c=d/", "hdfs:///a/b+c=d", "/a/b+c=d"),
        ("hdfs://[::1]:8020/a", "hdfs://[::1]:8020/a", "hdfs://[::1]:8020/a"),
    ],
)
def test_where_files_lie(url: str, remote: str, directory: str) -> None:
    location = parse_url(url)
    assert isinstance(location, HdfsLocation)
    assert (location.remote, location.display_url, location.directory) == (remote, remote, directory)
    storage = opened(url)
    assert storage.backend() == brpb_pb2.StorageBackend(hdfs=brpb_pb2.HDFS(remote=remote))
    assert storage_of_backend(storage.backend()).display_url == remote


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("hdfs://namenode:8020", "names no directory"),
        ("hdfs:///", "names no directory"),
        ("hdfs://me:secret@namenode/a", "has a user part: set HADOOP_LINUX_USER"),
        ("hdfs://name node/a", "names no host that can be"),
        ("hdfs://namenode:port/a", "names no host that can be"),
        ("hdfs://namenode/a?user=secret", "has no parameter 'user'"),
        ("hdfs://namenode/a#b", "has a query or a fragment"),
        ("hdfs://namenode/a/../b", "hdfs and TiKV read differently"),
        ("hdfs://namenode/a//b", "hdfs and TiKV read differently"),
        ("hdfs://namenode/a b", "hdfs and TiKV read differently"),
        ("hdfs://namenode/a*", "hdfs and TiKV read differently"),
        ("hdfs://namenode/100%25", "hdfs and TiKV read differently"),
        ("hdfs://namenode/ä", "hdfs and TiKV read differently"),
    ],
)
def test_places_that_cannot_be(url: str, says: str) -> None:
    with pytest.raises(InvalidOptionError, match=says) as caught:
        parse_url(url)
    assert caught.value.parameter == "storage"
    assert "secret" not in str(caught.value)


async def test_names_that_are_patterns(hadoop: Hadoop) -> None:
    for name in ("a*", "{a,b}", "a b", "a\\b", "a\nb"):
        with pytest.raises(StorageError, match="cannot be the name of a file"):
            await opened().read(name)
    assert not (hadoop.home / "calls").exists()


# --- what is run ---


async def test_the_words_that_are_run(hadoop: Hadoop) -> None:
    storage = opened()
    await storage.prepare()
    await storage.write("a.sst", b"x")
    made, put, removed, written = hadoop.calls
    assert made == f"dfs -mkdir -p {URL}"
    probe = put.removeprefix(f"dfs -put - {URL}/")
    assert removed == f"dfs -rm -skipTrash {URL}/{probe}"
    assert written == f"dfs -put -f - {URL}/a.sst"
    assert (hadoop.root / "backups/monday/a.sst").read_bytes() == b"x"


async def test_another_user_runs_it(hadoop: Hadoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sudo = tmp_path / "bin" / "sudo"
    sudo.parent.mkdir()
    sudo.write_text(f'#!/bin/sh\necho args "$@" > {tmp_path}/sudo\nshift 3\nexec "$@"\n')
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sudo.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HADOOP_LINUX_USER", "hadoop")
    assert not await opened().exists("a")
    assert (tmp_path / "sudo").read_text() == f"args -n -u hadoop {hadoop.home}/bin/hdfs dfs -test -f {URL}/a\n"
    monkeypatch.setenv("HADOOP_LINUX_USER", "-i")
    with pytest.raises(InvalidOptionError, match="HADOOP_LINUX_USER is not the name of a user"):
        await opened().exists("a")


async def test_it_is_found_on_the_path_too(hadoop: Hadoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HADOOP_HOME")
    monkeypatch.setenv("PATH", f"{hadoop.home}/bin:{os.environ['PATH']}")
    assert not await opened().exists("a")
    monkeypatch.setenv("PATH", str(hadoop.root))
    with pytest.raises(InvalidOptionError, match="there is no hdfs on the path: install Hadoop's client"):
        await opened().exists("a")
    monkeypatch.setenv("HADOOP_HOME", str(hadoop.root))
    with pytest.raises(InvalidOptionError, match=r"root/bin/hdfs cannot be run"):
        await opened().exists("a")


async def test_a_program_that_is_none(hadoop: Hadoop) -> None:
    (hadoop.home / "bin" / "hdfs").write_text("#!/no/such/interpreter\n")
    with pytest.raises(InvalidOptionError, match="cannot be run: No such file or directory"):
        await opened().exists("a")


async def test_few_run_at_once(hadoop: Hadoop, monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0
    start = hdfs_command.HdfsCommand._start
    end = hdfs_command._end

    async def started(self: hdfs_command.HdfsCommand, words: list[str]) -> asyncio.subprocess.Process:
        nonlocal running, most
        running += 1
        most = max(most, running)
        return await start(self, words)

    async def ended(process: asyncio.subprocess.Process) -> None:
        nonlocal running
        await end(process)
        running -= 1

    monkeypatch.setattr(hdfs_command.HdfsCommand, "_start", started)
    monkeypatch.setattr(hdfs_command, "_end", ended)
    monkeypatch.setattr(hdfs_command, "AT_ONCE", 2)
    storage = opened()
    await asyncio.gather(*(storage.exists("a") for _ in range(6)))
    assert most == 2


async def test_one_that_does_not_end_is_ended(hadoop: Hadoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdfs_command, "LIMIT_S", 0.5)
    hadoop.tell("", wait_s=100)
    with pytest.raises(StorageUnavailableError, match=f"hdfs dfs -cat on {URL} did not end in"):
        await opened().read("a")
    if hadoop.pid is not None:
        with pytest.raises(ProcessLookupError):
            os.kill(hadoop.pid, 0)


async def test_whoever_gives_up_leaves_none_behind(hadoop: Hadoop) -> None:
    hadoop.tell("", wait_s=100)
    reading = asyncio.ensure_future(opened().read("a"))
    await until(lambda: hadoop.pid is not None)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert hadoop.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(hadoop.pid, 0)


# --- what it says ---

CONNECTION = (
    "Call From vm/127.0.0.1 to localhost:8020 failed on connection exception: java.net.ConnectException: Connection"
    " refused; For more details see:  http://wiki.apache.org/hadoop/ConnectionRefused"
)


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (f"cat: {CONNECTION}", StorageUnavailableError, "cannot be reached or is not ready: Call From"),
        ("-cat: java.net.UnknownHostException: nohost\nUsage: hadoop fs", StorageUnavailableError, "UnknownHost"),
        ("cat: Name node is in safe mode.", StorageUnavailableError, "is not ready"),
        (
            "cat: Operation category READ is not supported in state standby. StandbyException",
            StorageUnavailableError,
            "",
        ),
        ("cat: Could not obtain block: BP-1:blk_1", StorageUnavailableError, "is not ready"),
        ("put: File /a._COPYING_ could only be written to 0 of the 1 minReplication", StorageUnavailableError, ""),
        ('put: Permission denied: user=me, access=WRITE, inode="/":root', AuthenticationError, "refuses access: Perm"),
        ("cat: DestHost:destPort nn:8020 , Failed on local exception: GSS initiate failed", AuthenticationError, ""),
        ("cat: `/backups/a': No such file or directory", StorageNotFoundError, "/a does not exist"),
        ("put: The DiskSpace quota of /b is exceeded", StorageError, "a quota of the directory is used up"),
        ("cat: `/a': Is a directory", StorageError, "hdfs dfs -cat failed: `/a': Is a directory"),
        ("ERROR: JAVA_HOME is not set and could not be found.", StorageError, "its code is 1 and it says nothing"),
    ],
)
async def test_complaints(hadoop: Hadoop, words: str, kind: type[TikvBrError], says: str) -> None:
    hadoop.tell(f"WARN util.NativeCodeLoader: Unable to load native-hadoop library\n{words}\n")
    with pytest.raises(TikvBrError) as caught:
        await opened().read("a")
    assert type(caught.value) is kind
    assert str(caught.value).startswith((f"cannot read {URL}/a: ", f"{URL}/a does not exist"))
    assert says in str(caught.value)
    assert "wiki.apache.org" not in str(caught.value)


async def test_not_there_is_not_the_same_as_not_reached(hadoop: Hadoop) -> None:
    assert not await opened().exists("a")
    hadoop.tell(f"test: {CONNECTION}\n", command="-test")
    with pytest.raises(StorageUnavailableError):
        await opened().exists("a")


async def test_a_missing_directory(hadoop: Hadoop) -> None:
    with pytest.raises(StorageNotFoundError, match=f"^{URL} does not exist"):
        [info async for info in opened().list()]


async def test_unfinished_files_are_not_listed(hadoop: Hadoop) -> None:
    place = hadoop.root / "backups/monday/1"
    place.mkdir(parents=True)
    for name in ("a.sst", "b.sst._COPYING_", ".c.tikvbr-tmp"):
        (place / name).write_bytes(b"abc")
    assert [info async for info in opened().list()] == [ObjectInfo("1/a.sst", 3)]


async def test_a_list_of_another_place_is_not_taken(hadoop: Hadoop) -> None:
    program = hadoop.home / "bin" / "hdfs"
    program.write_text("#!/bin/sh\necho '-rw-r--r--   1 me us    3 2026-11-23 21:50 /elsewhere/a.sst'\n")
    with pytest.raises(StorageError, match="hdfs names files elsewhere"):
        [info async for info in opened().list()]


async def test_the_loser_of_a_race_leaves_nothing(hadoop: Hadoop) -> None:
    storage = opened()
    await storage.write("backup.lock", b"first")
    # What Hadoop says where the other file came at the last moment.
    hadoop.tell("mv: `/backups/monday/.x': Input/output error\n", command="-mv")
    assert not await storage.create("backup.lock", b"second")
    assert [path.name for path in (hadoop.root / "backups/monday").iterdir()] == ["backup.lock"]
    await storage.delete("backup.lock")
    with pytest.raises(StorageError, match="Input/output error"):
        await storage.create("backup.lock", b"second")
    assert list((hadoop.root / "backups/monday").iterdir()) == []
