"""Calls to the stores of an embedded cluster over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.engine import StoreEngine
from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.proto import kvrpcpb_pb2
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.tikv.keys import ApiKey, RegionKey, UserKey

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


@asynccontextmanager
async def held_up(engine: StoreEngine) -> AsyncIterator[None]:
    """Keep the threads of a store's pool busy: its jobs wait until the end of the block."""
    over = threading.Event()
    jobs = [asyncio.ensure_future(engine.run(over.wait)) for _ in range(2)]
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*jobs)


class Stores:
    """Speaks to each store of a cluster.

    :param cluster: it runs.
    """

    def __init__(self, cluster: EmbeddedCluster) -> None:
        self.cluster = cluster
        self._channels: dict[int, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Stores:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            await channel.close()

    def channel(self, store_id: int) -> grpc.aio.Channel:
        """The channel to a store."""
        if store_id not in self._channels:
            self._channels[store_id] = grpc.aio.insecure_channel(self.cluster.topology.stores[store_id].address)
        return self._channels[store_id]

    async def call(self, method: Method[Req, Resp], request: Req, store_id: int) -> Resp:
        """A unary call."""
        codec = (method.request.SerializeToString, method.response.FromString)
        response: Resp = await self.channel(store_id).unary_unary(method.path, *codec)(request, timeout=30)
        return response

    def stream(self, method: Method[Req, Resp], request: Req, store_id: int) -> Any:
        """A call that answers with a stream."""
        codec = (method.request.SerializeToString, method.response.FromString)
        return self.channel(store_id).unary_stream(method.path, *codec)(request, timeout=60)

    def api_key(self, key: bytes) -> ApiKey:
        """The API key of a user key."""
        return self.cluster.topology.codec.api_key(UserKey(key))

    def region(self, key: bytes) -> RegionState:
        """The region of a user key."""
        return self.cluster.topology.region_of(self.region_key(key))

    def region_key(self, key: bytes) -> RegionKey:
        """The region key of a user key."""
        return self.cluster.topology.codec.region_key(self.api_key(key))

    def context(self, key: bytes) -> kvrpcpb_pb2.Context:
        """The request context for a user key."""
        region = self.region(key)
        return kvrpcpb_pb2.Context(
            region_id=region.id,
            region_epoch=region.epoch(),
            peer=region.leader.message(),
            api_version=int(self.cluster.api_version.in_context),  # type: ignore[arg-type]
        )

    async def lead(self, method: Method[Req, Resp], request: Any, key: bytes) -> Resp:
        """A unary call about a user key, sent with its context to its leader."""
        request.context.CopyFrom(self.context(key))
        response: Resp = await self.call(method, request, self.region(key).leader_store_id)
        return response
