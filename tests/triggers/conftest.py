from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion
from tests.support.front import connect, fill


@pytest.fixture(scope="package")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadedCluster]:
    """A V1 cluster with pairs."""
    with ThreadedCluster(data_dir=tmp_path_factory.mktemp("v1"), api_version=ApiVersion.V1, stores=3) as cluster:
        fill(cluster)
        yield cluster


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch, source: ThreadedCluster) -> Iterator[None]:
    """The V1 cluster is the default connection; nobody answers at tikv_nowhere."""
    connect(monkeypatch, "tikv_default", source)
    connect(monkeypatch, "tikv_nowhere", "127.0.0.1:1", connect_timeout="300ms")
    yield
    source.faults.clear()


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ThreadedCluster]:
    """An empty V1 cluster."""
    with ThreadedCluster(data_dir=tmp_path / "target", api_version=ApiVersion.V1, stores=2) as cluster:
        connect(monkeypatch, "tikv_target", cluster)
        yield cluster
