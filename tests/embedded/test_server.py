from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.server import run
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.addresses import AddressMap
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.options import ClusterOptions

PROGRAM = """
import sys
from pathlib import Path
from airflow_provider_tikvbr.embedded.server import run
sys.exit(run(data=Path(sys.argv[1]), api_version="v2", stores=2, pd_port=0))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_ready_serves_and_stops_on_signals(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready pd=127.0.0.1:")
        address = line.strip().removeprefix("ready pd=")
        with urllib.request.urlopen(f"http://{address}/pd/api/v1/config/cluster-version") as answer:
            assert answer.read() == b'"8.5.0"\n'
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")


INSIDE = PROGRAM.replace("pd_port=0", 'pd_port=0, domain="inside.invalid", keyspaces=["orders=5", "next"]')


def test_it_tells_where_the_names_of_its_domain_are_reached(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", INSIDE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = AddressMap.parse(process.stdout.readline().strip().removeprefix("address-map="))
        address = process.stdout.readline().strip().removeprefix("ready pd=")
        options = ClusterOptions(pd=(address,), address_map=found, keyspace="next")
        number = asyncio.run(keyspace_of(options))
        os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err, number) == (0, "", "", 6)


async def keyspace_of(options: ClusterOptions) -> int:
    async with await Cluster.connect(options) as cluster:
        return cluster.codec.keyspace_id


def test_what_cannot_be_right_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="is not an API version") as error:
        run(data=tmp_path, api_version="v7")
    assert error.value.parameter == "api_version"
    with pytest.raises(InvalidOptionError, match="give a number from 1 to 2"):
        run(data=tmp_path, stores=2, replicas=3, pd_port=0)
    for text in ("=5", "orders=five"):
        with pytest.raises(InvalidOptionError, match="is neither a name nor name=number"):
            run(data=tmp_path, pd_port=0, keyspaces=[text])


def test_a_taken_port_is_told_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidOptionError) as error:
            run(data=tmp_path, pd_port=port)
    assert str(error.value) == (
        f"cannot serve at 127.0.0.1:{port}: Address already in use; give another port, 0 for any, or another host"
    )
