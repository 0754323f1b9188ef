"""Sends recorded requests to an embedded cluster, with that cluster's ids, and keeps what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.proto import brpb_pb2, import_sstpb_pb2, kvrpcpb_pb2, metapb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import RegionKey
from tests.support.recordings import Call

# Fields that name a region by its id alone.
REGION_ID_FIELDS = {"region_id", "regions_id"}


def messages(root: Message, kind: type[Message]) -> Iterator[Any]:
    """Every message of a kind inside a message, the outermost first."""
    if isinstance(root, kind):
        yield root
    for field, value in root.ListFields():
        if field.message_type is not None:
            for one in [value] if isinstance(value, Message) else value:
                yield from messages(one, kind)


class Replay:
    """Translates and sends the requests of one recorded run.

    :param embedded: the running cluster.
    :param calls: the recorded calls, in order.
    :param paths: where the recorded storage paths are on this machine, by their last component.
    """

    def __init__(self, embedded: EmbeddedCluster, calls: list[Call], paths: dict[str, Path]) -> None:
        self.embedded = embedded
        self.topology = embedded.topology
        self.paths = paths
        self.starts: dict[int, RegionKey] = {}
        self.starts_by_epoch: dict[tuple[int, int], RegionKey] = {}
        self.leaders: dict[RegionKey, int] = {}
        self.ports = self._ports(calls)
        stores = sorted({s.id for c in calls for r in c.responses for s in messages(r, metapb_pb2.Store)})
        self.stores = dict(zip(stores, sorted(self.topology.stores), strict=True))
        for call in calls:
            for message in (*call.requests, *call.responses):
                self._learn(message, keep=True)

    @staticmethod
    def _ports(calls: list[Call]) -> dict[str, int]:
        found = {}
        for call in calls:
            for response in call.responses:
                for store in messages(response, metapb_pb2.Store):
                    found[f"tikv@{(store.peer_address or store.address).rpartition(':')[2]}"] = store.id
        return found

    def _learn(self, message: Message, *, keep: bool = False) -> None:
        for found in messages(message, pdpb_pb2.Region):
            self.leaders.setdefault(RegionKey(found.region.start_key), found.leader.store_id)
        if isinstance(message, pdpb_pb2.GetRegionResponse):
            self.leaders.setdefault(RegionKey(message.region.start_key), message.leader.store_id)
        for region in messages(message, metapb_pb2.Region):
            start = RegionKey(region.start_key)
            self.starts_by_epoch[region.id, region.region_epoch.version] = start
            if keep:
                self.starts.setdefault(region.id, start)
            else:
                self.starts[region.id] = start

    def learn(self, call: Call) -> None:
        """Take in what the recorded responses of a call tell about regions."""
        for response in call.responses:
            self._learn(response)

    def lead_as_recorded(self) -> None:
        """Make each region's leader the store that the recording tells of."""
        for start, store_id in self.leaders.items():
            self.topology.transfer_leader(self.topology.region_of(start).id, self.stores[store_id])

    def region(self, region_id: int, version: int | None = None) -> RegionState:
        """The region here that a recorded region is."""
        start = self.starts_by_epoch.get((region_id, version or 0), self.starts.get(region_id))
        if start is None:
            raise LookupError(f"the recording never tells where region {region_id} starts")
        return self.topology.region_of(start)

    def translate(self, call: Call, request: Message) -> Message:
        """The recorded request with this cluster's ids, epochs and paths."""
        copy = type(request)()
        copy.CopyFrom(request)
        for header in messages(copy, pdpb_pb2.RequestHeader):
            if header.cluster_id:
                header.cluster_id = self.topology.cluster_id
        for backend in messages(copy, brpb_pb2.Local):
            backend.path = str(self.paths[Path(backend.path).name])
        if isinstance(copy, brpb_pb2.BackupRequest):
            copy.cluster_id = self.topology.cluster_id
        for field, value in copy.ListFields():
            if field.name == "store_id":
                setattr(copy, field.name, self.stores[value])
            if field.name in REGION_ID_FIELDS and isinstance(copy, tuple(ID_REQUESTS)):
                if isinstance(value, int):
                    setattr(copy, field.name, self.region(value).id)
                else:
                    value[:] = [self.region(i).id for i in value]
        for context in messages(copy, kvrpcpb_pb2.Context):
            self._address(call, context)
        for sst in messages(copy, import_sstpb_pb2.SSTMeta):
            found = self.region(sst.region_id, sst.region_epoch.version)
            sst.region_id = found.id
            sst.region_epoch.CopyFrom(found.epoch())
        return copy

    def _address(self, call: Call, context: kvrpcpb_pb2.Context) -> None:
        if not context.region_id:
            return
        found = self.region(context.region_id, context.region_epoch.version)
        context.region_id = found.id
        context.region_epoch.CopyFrom(found.epoch())
        context.peer.CopyFrom(found.leader.message())

    def target(self, call: Call, request: Message) -> str:
        """Where the request goes: PD, the leader of the region it addresses, or the recorded store's counterpart."""
        if call.server.startswith("pd@"):
            return self.embedded.pd_address
        context = getattr(request, "context", None)
        if context is not None and context.region_id:
            return self.topology.stores[context.peer.store_id].address
        return self.topology.stores[self.stores[self.ports[call.server]]].address

    async def send(self, call: Call) -> tuple[list[Message], str]:
        """Send one call's requests; the responses and the status name.

        A stream that the recorded client kept open is ended here once all is asked.
        """
        requests = [self.translate(call, r) for r in call.requests]
        method = call.method
        async with grpc.aio.insecure_channel(self.target(call, requests[0])) as channel:
            codec = (method.request.SerializeToString, method.response.FromString)
            try:
                if method.client_streams:
                    stream = channel.stream_stream(method.path, *codec)()
                    for request in requests:
                        await stream.write(request)
                    await stream.done_writing()
                    found: list[Message] = [r async for r in stream]
                    return found, ""
                if method.server_streams:
                    return [r async for r in channel.unary_stream(method.path, *codec)(requests[0])], "OK"
                return [await channel.unary_unary(method.path, *codec)(requests[0])], "OK"
            except grpc.aio.AioRpcError as err:
                return [], err.code().name


ID_REQUESTS = {m.request for m in (methods.PD_GET_REGION_BY_ID, methods.PD_SCATTER_REGION, methods.PD_GET_OPERATOR)}
