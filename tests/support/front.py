"""What the tests of hooks, operators and sensors share."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.threaded import ThreadedCluster
from airflow_provider_tikvbr.tikv.keys import UserKey


def connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, cluster: ThreadedCluster | str, **extra: Any) -> None:
    """Define a connection to a cluster, or to an address."""
    host = cluster if isinstance(cluster, str) else cluster.pd_address
    text = json.dumps({"conn_type": "tikv", "host": host, "extra": extra})
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", text)


def fill(cluster: ThreadedCluster, count: int = 300) -> None:
    """Put pairs into several regions on all stores."""
    cluster.apply(lambda c: c.split([UserKey(b"key/%03d" % at) for at in range(50, count, 50)]))
    cluster.apply(lambda c: c.scatter())
    cluster.put((UserKey(b"key/%03d" % at), b"value %d" % at) for at in range(count))


class Store:
    """A task_state_store that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def set(self, key: str, value: Any) -> None:
        self.told.append((key, value))

    def get(self, key: str, default: Any = None) -> Any:
        return dict(self.told).get(key, default)

    def delete(self, key: str) -> None:
        self.told = [(told, value) for told, value in self.told if told != key]


@contextmanager
def soon(happens: Callable[[], bool], then: Callable[[], None]) -> Iterator[None]:
    """While the block runs, do something in another thread as soon as a condition holds."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if happens():
                then()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
