from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from airflow_provider_tikvbr.storage.base import Storage
from airflow_provider_tikvbr.storage.factory import open_storage
from tests.support.azurite import Azurite, azurite
from tests.support.gcs import GcsServer, gcs_emulator
from tests.support.hdfs import Hadoop, install

ACCESS, SECRET = "AKIAEXAMPLEEXAMPLE", "s3cr3t/Key+With=Signs"


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    client: Any

    def url(self, bucket: str, prefix: str = "backups/monday", *, keys: bool = True, more: str = "") -> str:
        given = f"&access-key={ACCESS}&secret-access-key={SECRET}" if keys else ""
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}{given}{more}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.session.Session(aws_access_key_id=ACCESS, aws_secret_access_key=SECRET).client(
        "s3", endpoint_url=endpoint, region_name="us-east-1"
    )
    yield S3Server(endpoint, client)
    client.close()
    server.stop()


@pytest.fixture
def bucket(s3_server: S3Server, request: pytest.FixtureRequest) -> str:
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    s3_server.client.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def azurite_server() -> Iterator[Azurite]:
    with azurite() as server:
        yield server


@pytest.fixture
def container(azurite_server: Azurite, request: pytest.FixtureRequest) -> str:
    """The name of a container that is not there yet."""
    return f"container-{abs(hash(request.node.nodeid))}"


@pytest.fixture
def hadoop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hadoop:
    found = install(tmp_path / "hadoop")
    monkeypatch.setenv("HADOOP_HOME", str(found.home))
    monkeypatch.delenv("HADOOP_LINUX_USER", raising=False)
    return found


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GcsServer]:
    with gcs_emulator() as server:
        yield server


@pytest.fixture
def gcs_bucket(gcs_server: GcsServer, request: pytest.FixtureRequest) -> str:
    name = f"bucket-{abs(hash(request.node.nodeid))}"
    gcs_server.make_bucket(name)
    return name


@pytest.fixture(params=["local", "s3", "gcs", "azure", "hdfs"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    """An empty place of each kind that keeps what it is given."""
    no_credentials = request.param == "gcs"
    if request.param == "local":
        url = str(tmp_path)
    elif request.param == "gcs":
        url = request.getfixturevalue("gcs_server").url(request.getfixturevalue("gcs_bucket"))
    elif request.param == "azure":
        url = request.getfixturevalue("azurite_server").url(request.getfixturevalue("container"))
        async with open_storage(url) as made:
            await made.prepare()
    elif request.param == "hdfs":
        request.getfixturevalue("hadoop")
        url = "hdfs://namenode:8020/backups/monday"
        async with open_storage(url) as made:
            await made.prepare()
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        url = server.url(request.getfixturevalue("bucket"))
    async with open_storage(url, no_credentials=no_credentials) as opened:
        yield opened
