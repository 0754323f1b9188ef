"""A cluster with data and a client of it, for the tests of backup and checksum."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastcrc import crc64

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.proto import brpb_pb2, errorpb_pb2
from airflow_provider_tikvbr.rawbr.events import Event, Note, Progress
from airflow_provider_tikvbr.rawbr.summary import Checksum
from airflow_provider_tikvbr.storage.local import LocalStorage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, UserKey
from tests.support.target import target
from tests.support.waiting import until

Pair = tuple[UserKey, bytes]
COUNT = 400


class SlowToTell(LocalStorage):
    """A directory that may not be asked in the event loop what to tell the stores, like a cloud's credentials."""

    def backend(self) -> brpb_pb2.StorageBackend:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return super().backend()


def key(number: int) -> UserKey:
    """The numbered key; the first keys of a cluster's regions are every fiftieth of them."""
    return UserKey(b"key-%04d" % number)


def make_pairs(count: int = COUNT) -> list[Pair]:
    """Pairs with random values: the CRCs of values that look alike cancel each other out."""
    rnd = random.Random(7)
    return [(key(i), rnd.randbytes(rnd.randrange(1, 80))) for i in range(count)]


def checksum_of(pairs: Iterable[tuple[bytes, bytes]], prefix: bytes = b"") -> Checksum:
    """What a backup or a cluster has to say of these pairs."""
    total = Checksum()
    for name, value in pairs:
        data = prefix + name + value
        total += Checksum(crc64.xz(data), 1, len(data))
    return total


@asynccontextmanager
async def cluster(
    tmp_path: Path,
    api_version: ApiVersion = ApiVersion.V1,
    *,
    pairs: Iterable[tuple[UserKey, bytes] | tuple[UserKey, bytes, int]] | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[EmbeddedCluster, Cluster]]:
    """An embedded cluster of eight regions on three stores, and a client that is connected to it."""
    settings.setdefault("split_keys", [key(i) for i in range(50, COUNT, 50)])
    async with target(tmp_path, api_version, **{"stores": 3, **settings}) as (embedded, client):
        await embedded.put(make_pairs() if pairs is None else pairs)
        yield embedded, client


@dataclass
class Events:
    """A listener that remembers, and that can do something when a job has made its first step."""

    seen: list[Event] = field(default_factory=list)
    on_progress: Callable[[Progress], None] | None = None

    def __call__(self, event: Event) -> None:
        self.seen.append(event)
        if isinstance(event, Progress) and self.on_progress is not None:
            self.on_progress(event)

    @property
    def progress(self) -> list[Progress]:
        return [event for event in self.seen if isinstance(event, Progress)]

    @property
    def notes(self) -> list[str]:
        return [event.message for event in self.seen if isinstance(event, Note)]


async def meanwhile(work: Awaitable[Any], when: Callable[[], bool], then: Callable[[], Any]) -> Any:
    """Run work, and do something as soon as a condition holds."""
    task = asyncio.ensure_future(work)
    try:
        await until(when)
        done = then()
        if asyncio.iscoroutine(done):
            await done
        return await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def failed(msg: str = "", **region_error: Any) -> brpb_pb2.BackupResponse:
    """A backup response that tells an error."""
    if not region_error:
        return brpb_pb2.BackupResponse(error=brpb_pb2.Error(msg=msg))
    return brpb_pb2.BackupResponse(error=brpb_pb2.Error(region_error=errorpb_pb2.Error(**region_error)))


def names(directory: Path) -> set[str]:
    """What lies in a local storage, hidden files too."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
