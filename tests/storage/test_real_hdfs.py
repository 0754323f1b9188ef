"""HDFS: against Hadoop itself, where its jars are in ``.hadoop``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import AuthenticationError, StorageNotFoundError, StorageUnavailableError
from airflow_provider_tikvbr.storage.base import ObjectInfo
from airflow_provider_tikvbr.storage.factory import open_storage

JARS = Path(__file__).resolve().parents[2] / ".hadoop"
SETTINGS = {
    "fs.defaultFS": "hdfs://127.0.0.1:{port}",
    "hadoop.tmp.dir": "{home}/data",
    "dfs.replication": "1",
    "dfs.namenode.rpc-bind-host": "127.0.0.1",
    "dfs.namenode.http-address": "127.0.0.1:0",
    "dfs.namenode.safemode.extension": "0",
    "dfs.datanode.address": "127.0.0.1:0",
    "dfs.datanode.hostname": "127.0.0.1",
    "dfs.datanode.http.address": "127.0.0.1:0",
    "dfs.datanode.ipc.address": "127.0.0.1:0",
    "ipc.client.connect.max.retries": "1",
}
SERVERS = "org.apache.hadoop.hdfs.server"


@pytest.fixture
def namenode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name node and a data node; the address of the former."""
    java = shutil.which("java")
    if java is None or not any(JARS.glob("hadoop-client-minicluster-*.jar")):
        pytest.skip("Hadoop is not installed: make servers, which needs java and mvn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rows = (
        f"<property><name>{name}</name><value>{value.format(port=port, home=tmp_path)}</value></property>"
        for name, value in SETTINGS.items()
    )
    (tmp_path / "core-site.xml").write_text(f"<configuration>{''.join(rows)}</configuration>")
    run = [java, "-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
    run += ["-cp", f"{tmp_path}:{JARS}/*"]
    program = tmp_path / "bin" / "hdfs"
    program.parent.mkdir()
    words = " ".join(f"'{word}'" for word in run)
    program.write_text(f'#!/bin/sh\nshift\nexec {words} org.apache.hadoop.fs.FsShell "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("HADOOP_HOME", str(tmp_path))
    monkeypatch.delenv("HADOOP_LINUX_USER", raising=False)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context((tmp_path / "log").open("wb"))
        name = [*run, f"{SERVERS}.namenode.NameNode"]
        subprocess.run([*name, "-format", "-nonInteractive"], stdout=out, stderr=out, check=True)
        for command in (name, [*run, f"{SERVERS}.datanode.DataNode"]):
            process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
        yield f"127.0.0.1:{port}"


@pytest.mark.timeout(240)
async def test_hadoop_itself(namenode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 4096
    async with open_storage(f"hdfs://{namenode}/backups/monday") as storage:
        for _ in range(100):
            with contextlib.suppress(StorageUnavailableError):
                await storage.prepare()
                break
            await asyncio.sleep(0.2)
        await storage.write("1_2_default.sst", data)
        won = await asyncio.gather(*(storage.create("backup.lock", b"%d" % n) for n in range(3)))
        assert won.count(True) == 1
        assert not await storage.create("backup.lock", b"late")
        assert await storage.read("backup.lock") == b"%d" % won.index(True)
        assert await storage.read("1_2_default.sst") == data
        assert [info async for info in storage.list()] == [
            ObjectInfo("1_2_default.sst", len(data)),
            ObjectInfo("backup.lock", 1),
        ]
    # The same place by the name that Hadoop's settings give it.
    async with open_storage("hdfs:///backups/monday") as storage:
        await storage.write("backup.lock", b"newer")
        assert await storage.read("backup.lock") == b"newer"
        await storage.delete("backup.lock")
        await storage.delete("backup.lock")
        assert not await storage.exists("backup.lock")
        with pytest.raises(StorageNotFoundError):
            await storage.read("backup.lock")
        monkeypatch.setenv("HADOOP_USER_NAME", "somebody")
        with pytest.raises(AuthenticationError, match="Permission denied: user=somebody"):
            await storage.write("backup.lock", b"")
    async with open_storage("hdfs://127.0.0.1:1/backups") as storage:
        with pytest.raises(StorageUnavailableError):
            await storage.exists("backup.lock")
