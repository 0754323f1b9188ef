"""Calls PD as a client library does, with nothing in between."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.proto import pdpb_pb2
from airflow_provider_tikvbr.proto.methods import PD_TSO, Method


class PdCaller:
    """A channel to one address; requests get the cluster's id unless they carry one."""

    def __init__(
        self, cluster: EmbeddedCluster, *, address: str = "", credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        self._cluster_id = cluster.topology.cluster_id
        target = address or cluster.pd_address
        options = [("grpc.max_receive_message_length", -1)]
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(target, options=options)
        else:
            self.channel = grpc.aio.secure_channel(target, credentials, options=options)

    async def __aenter__(self) -> PdCaller:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.channel.close()

    async def call(self, method: Method[Any, Any], request: Message) -> Any:
        if "header" in request.DESCRIPTOR.fields_by_name and not request.HasField("header"):
            request.header.cluster_id = self._cluster_id  # type: ignore[attr-defined]
        return await self.make(method)(request, timeout=10)

    async def tso(self, *counts: int) -> list[pdpb_pb2.Timestamp]:
        stream = self.make(PD_TSO)(timeout=10)
        found = []
        for count in counts:
            header = pdpb_pb2.RequestHeader(cluster_id=self._cluster_id)
            await stream.write(pdpb_pb2.TsoRequest(header=header, count=count, dc_location="global"))
            response = await stream.read()
            assert response.count == count
            found.append(response.timestamp)
        await stream.done_writing()
        return found

    def make(self, method: Method[Any, Any]) -> Any:
        kind = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, True): self.channel.stream_stream,
        }[method.client_streams, method.server_streams]
        return kind(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
