from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from tests.support.front import connect, fill

DAGS = Path(__file__).resolve().parents[2] / "dags"


@pytest.fixture(scope="session")
def database() -> None:
    """Airflow's database, in the AIRFLOW_HOME of these tests."""
    # In a process of its own: a migration warns of things that are Airflow's business.
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "db", "migrate"],
        env={**os.environ, "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="package")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedCluster]:
    """A V1 cluster with pairs."""
    with ThreadedCluster(data_dir=tmp_path_factory.mktemp("v1"), api_version=ApiVersion.V1, stores=3) as cluster:
        fill(cluster)
        yield cluster


@pytest.fixture(scope="package")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedCluster]:
    """A V2 cluster."""
    with ThreadedCluster(data_dir=tmp_path_factory.mktemp("v2"), api_version=ApiVersion.V2, stores=3) as cluster:
        yield cluster


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, v1: ThreadedCluster, v2: ThreadedCluster) -> None:
    """The connections that the DAGs name."""
    connect(monkeypatch, "tikv_default", v1)
    connect(monkeypatch, "tikv_v1", v1, api_version="v1")
    connect(monkeypatch, "tikv_v2", v2, api_version="v2")
