"""Fixtures of the tests of the embedded cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_tikvbr.embedded.state import ClusterState


@pytest.fixture
def state(tmp_path: Path) -> Iterator[ClusterState]:
    """What a cluster remembers, in a directory of its own."""
    state = ClusterState(directory=tmp_path)
    yield state
    state.close()
