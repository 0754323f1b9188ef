"""The backup's place as this process meets it when the storage has a bad day."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from airflow_provider_tikvbr.exceptions import StorageUnavailableError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.storage.base import ObjectInfo, Storage

T = TypeVar("T")
TROUBLE = "the storage has a bad day"


class FlakyStorage(Storage):
    """A storage whose calls fail now and then, before they did their work or after it.

    :param real: where everything really lies.
    :param rng: what decides.
    :param share: how many of the calls fail or dawdle, from 0 to 1.
    :param counts: told what was done to whom.
    """

    def __init__(self, real: Storage, *, rng: random.Random, share: float, counts: Counter[str]) -> None:
        self._real = real
        self._rng = rng
        self._counts = counts
        self.share = share
        self.hits = 0

    async def _do(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        if self._rng.random() >= self.share:
            return await work()
        kind = self._rng.choice(["before", "after", "slow"])
        self._counts[f"our storage: {name} {kind}"] += 1
        if kind == "slow":
            await asyncio.sleep(self._rng.random() * 0.2)
            return await work()
        self.hits += 1
        if kind == "after":
            await work()
        raise StorageUnavailableError(f"{TROUBLE} ({name}, {kind})", url=self.display_url)

    @property
    def display_url(self) -> str:
        return self._real.display_url

    def backend(self) -> brpb_pb2.StorageBackend:
        return self._real.backend()

    async def prepare(self) -> None:
        await self._do("prepare", self._real.prepare)

    async def exists(self, name: str) -> bool:
        return await self._do("exists", lambda: self._real.exists(name))

    async def read(self, name: str) -> bytes:
        return await self._do("read", lambda: self._real.read(name))

    async def write(self, name: str, data: bytes) -> None:
        await self._do("write", lambda: self._real.write(name, data))

    async def create(self, name: str, data: bytes) -> bool:
        return await self._do("create", lambda: self._real.create(name, data))

    async def delete(self, name: str) -> None:
        await self._do("delete", lambda: self._real.delete(name))

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        async def nothing() -> None:
            return

        await self._do("list", nothing)
        async for info in self._real.list(prefix):
            yield info

    async def close(self) -> None:
        await self._real.close()
