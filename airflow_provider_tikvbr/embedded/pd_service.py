"""The placement driver's gRPC services: ``pdpb.PD``, ``keyspacepb.Keyspace`` and the health check."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from airflow_provider_tikvbr.embedded.keyspaces import Keyspaces, KeyspaceService
from airflow_provider_tikvbr.embedded.operators import Operators
from airflow_provider_tikvbr.embedded.records import NODE_REMOVED, RegionState
from airflow_provider_tikvbr.embedded.safepoints import SafePoints
from airflow_provider_tikvbr.embedded.schedule import ScheduleConfig, Schedulers
from airflow_provider_tikvbr.embedded.serving import Handler, generic_handlers
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.proto import healthpb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey

CAPACITY = 10 << 30


@dataclass(slots=True, kw_only=True)
class PdMember:
    """One member of PD.

    :param client_url: where it listens, such as ``http://127.0.0.1:2379``; known once it does.
    :param advertised_url: where it says that clients reach it, if that is another address.
    """

    name: str
    member_id: int
    version: str
    client_url: str = ""
    advertised_url: str = ""

    def message(self) -> pdpb_pb2.Member:
        """As PD tells it over gRPC, where it leaves its version out."""
        url = self.advertised_url or self.client_url
        return pdpb_pb2.Member(
            name=self.name,
            member_id=self.member_id,
            peer_urls=[url],
            client_urls=[url],
            deploy_path="embedded",
        )


@dataclass(slots=True, kw_only=True)
class PlacementDriver:
    """Everything that PD knows; the gRPC and the HTTP half of every member serve the same one.

    :param members: all members.
    :param leader: the member that answers; the others only tell who leads. None while an election is on.
    """

    topology: Topology
    keyspaces: Keyspaces
    safe_points: SafePoints
    schedulers: Schedulers
    config: ScheduleConfig
    operators: Operators
    members: tuple[PdMember, ...]
    leader: PdMember | None


class PdService:
    """The gRPC half of one member of PD.

    :param pd: what it tells.
    :param member: the member.
    """

    def __init__(self, pd: PlacementDriver, member: PdMember) -> None:
        self._pd = pd
        self._member = member
        self._topology = pd.topology

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """For the gRPC server; every method that is not here answers UNIMPLEMENTED."""
        checked: Mapping[methods.Method[Any, Any], Callable[[Any, Any], Awaitable[Any]]] = {
            methods.PD_GET_REGION: self._get_region,
            methods.PD_GET_PREV_REGION: self._get_prev_region,
            methods.PD_GET_REGION_BY_ID: self._get_region_by_id,
            methods.PD_SCAN_REGIONS: self._scan_regions,
            methods.PD_BATCH_SCAN_REGIONS: self._batch_scan_regions,
            methods.PD_GET_STORE: self._get_store,
            methods.PD_GET_ALL_STORES: self._get_all_stores,
            methods.PD_GET_GC_SAFE_POINT: self._get_gc_safe_point,
            methods.PD_UPDATE_GC_SAFE_POINT: self._update_gc_safe_point,
            methods.PD_UPDATE_SERVICE_GC_SAFE_POINT: self._update_service_gc_safe_point,
            methods.PD_SCATTER_REGION: self._scatter_region,
            methods.PD_GET_OPERATOR: self._get_operator,
            methods.PD_SPLIT_REGIONS: self._split_regions,
            **KeyspaceService(self._pd.keyspaces, version=self._member.version, header=self._header).methods(),
        }
        table: dict[methods.Method[Any, Any], Handler] = {m: self._checked(f) for m, f in checked.items()}
        # GetMembers tells the cluster id, so it cannot ask for it.
        table[methods.PD_GET_MEMBERS] = self._get_members
        table[methods.PD_GET_CLUSTER_INFO] = self._get_cluster_info
        table[methods.HEALTH_CHECK] = self._health
        table[methods.PD_TSO] = self._tso
        return generic_handlers(table)

    def _checked(self, handler: Callable[[Any, Any], Awaitable[Any]]) -> Handler:
        async def behaviour(request: Any, context: grpc.aio.ServicerContext) -> Any:
            await self._check_cluster(request, context)
            return await handler(request, context)

        return behaviour

    async def _check_cluster(self, request: Any, context: grpc.aio.ServicerContext) -> None:
        if self._member is not self._pd.leader:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not leader")
        need, got = self._topology.cluster_id, request.header.cluster_id
        if need != got:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"mismatch cluster id, need {need} but got {got}")

    def _header(self, error: pdpb_pb2.Error | None = None) -> pdpb_pb2.ResponseHeader:
        return pdpb_pb2.ResponseHeader(cluster_id=self._topology.cluster_id, error=error)

    def _not_found(self, message: str) -> pdpb_pb2.ResponseHeader:
        return self._header(pdpb_pb2.Error(type=pdpb_pb2.REGION_NOT_FOUND, message=message))

    # --- members and time ---

    async def _get_members(self, _request: pdpb_pb2.GetMembersRequest, _context: Any) -> pdpb_pb2.GetMembersResponse:
        leader = None if self._pd.leader is None else self._pd.leader.message()
        return pdpb_pb2.GetMembersResponse(
            header=self._header(),
            members=[m.message() for m in self._pd.members],
            leader=leader,
            etcd_leader=leader,
        )

    async def _get_cluster_info(
        self, _request: pdpb_pb2.GetClusterInfoRequest, _context: Any
    ) -> pdpb_pb2.GetClusterInfoResponse:
        return pdpb_pb2.GetClusterInfoResponse(header=self._header(), service_modes=[pdpb_pb2.PD_SVC_MODE])

    async def _health(
        self, _request: healthpb_pb2.HealthCheckRequest, _context: Any
    ) -> healthpb_pb2.HealthCheckResponse:
        return healthpb_pb2.HealthCheckResponse(status=healthpb_pb2.HealthCheckResponse.SERVING)

    async def _tso(
        self, requests: AsyncIterator[pdpb_pb2.TsoRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pdpb_pb2.TsoResponse]:
        async for request in requests:
            await self._check_cluster(request, context)
            try:
                physical, logical = self._topology.oracle.allocate(request.count)
            except ValueError as err:
                await context.abort(grpc.StatusCode.UNKNOWN, str(err))
            yield pdpb_pb2.TsoResponse(
                header=self._header(),
                count=request.count,
                timestamp=pdpb_pb2.Timestamp(physical=physical, logical=logical),
            )

    # --- regions ---

    async def _get_region(self, request: pdpb_pb2.GetRegionRequest, _context: Any) -> pdpb_pb2.GetRegionResponse:
        return self._region(self._topology.region_of(RegionKey(request.region_key)))

    async def _get_prev_region(self, request: pdpb_pb2.GetRegionRequest, _context: Any) -> pdpb_pb2.GetRegionResponse:
        return self._region(self._topology.before(self._topology.region_of(RegionKey(request.region_key))))

    async def _get_region_by_id(
        self, request: pdpb_pb2.GetRegionByIDRequest, _context: Any
    ) -> pdpb_pb2.GetRegionResponse:
        return self._region(self._topology.by_id(request.region_id))

    def _region(self, region: RegionState | None) -> pdpb_pb2.GetRegionResponse:
        if region is None:
            return pdpb_pb2.GetRegionResponse(header=self._header())
        return pdpb_pb2.GetRegionResponse(
            header=self._header(), region=region.message(), leader=region.leader.message()
        )

    async def _scan_regions(self, request: pdpb_pb2.ScanRegionsRequest, _context: Any) -> pdpb_pb2.ScanRegionsResponse:
        keys = KeyRange(RegionKey(request.start_key), RegionKey(request.end_key))
        regions = self._topology.scan(keys, request.limit)
        return pdpb_pb2.ScanRegionsResponse(
            header=self._header(),
            region_metas=[r.message() for r in regions],
            leaders=[r.leader.message() for r in regions],
            regions=_pd_regions(regions),
        )

    async def _batch_scan_regions(
        self, request: pdpb_pb2.BatchScanRegionsRequest, _context: Any
    ) -> pdpb_pb2.BatchScanRegionsResponse:
        # A region that reaches over several ranges is told once.
        found: dict[int, RegionState] = {}
        for keys in request.ranges:
            wanted = KeyRange(RegionKey(keys.start_key), RegionKey(keys.end_key))
            found.update({r.id: r for r in self._topology.scan(wanted)})
        regions = list(found.values())
        if request.limit > 0:
            regions = regions[: request.limit]
        return pdpb_pb2.BatchScanRegionsResponse(header=self._header(), regions=_pd_regions(regions))

    async def _scatter_region(
        self, request: pdpb_pb2.ScatterRegionRequest, _context: Any
    ) -> pdpb_pb2.ScatterRegionResponse:
        wanted = list(request.regions_id) or [request.region_id]
        if not request.regions_id and self._topology.by_id(request.region_id) is None:
            return pdpb_pb2.ScatterRegionResponse(header=self._not_found("region %d not found"))
        failed = self._pd.operators.scatter(wanted)
        return pdpb_pb2.ScatterRegionResponse(
            header=self._header(),
            finished_percentage=100 * (len(wanted) - len(failed)) // len(wanted),
            failed_regions_id=failed,
        )

    async def _get_operator(self, request: pdpb_pb2.GetOperatorRequest, _context: Any) -> pdpb_pb2.GetOperatorResponse:
        status = self._pd.operators.status(request.region_id)
        if status is None:
            return pdpb_pb2.GetOperatorResponse(header=self._not_found("Not Found"))
        operator, state = status
        return pdpb_pb2.GetOperatorResponse(
            header=self._header(),
            region_id=operator.region_id,
            desc=operator.desc.encode(),
            status=state,
            kind=operator.kind.encode(),
        )

    async def _split_regions(
        self, request: pdpb_pb2.SplitRegionsRequest, _context: Any
    ) -> pdpb_pb2.SplitRegionsResponse:
        new: list[int] = []
        keys = sorted({RegionKey(k) for k in request.split_keys})
        for key in keys:
            region = self._topology.region_of(key)
            new += [piece.id for piece in self._topology.split(region.id, [key]) if piece is not region]
        return pdpb_pb2.SplitRegionsResponse(header=self._header(), finished_percentage=100, regions_id=new)

    # --- stores ---

    async def _get_store(self, request: pdpb_pb2.GetStoreRequest, _context: Any) -> pdpb_pb2.GetStoreResponse:
        store = self._topology.stores.get(request.store_id)
        if store is None:
            message = f"invalid store ID {request.store_id}, not found"
            error = pdpb_pb2.Error(type=pdpb_pb2.UNKNOWN, message=message)
            return pdpb_pb2.GetStoreResponse(header=self._header(error))
        held = sum(1 for r in self._topology.regions if r.peer_on(store.id))
        available = 0 if store.disk_full else CAPACITY
        stats = pdpb_pb2.StoreStats(store_id=store.id, capacity=CAPACITY, available=available, region_count=held)
        return pdpb_pb2.GetStoreResponse(header=self._header(), store=store.message(), stats=stats)

    async def _get_all_stores(
        self, request: pdpb_pb2.GetAllStoresRequest, _context: Any
    ) -> pdpb_pb2.GetAllStoresResponse:
        stores = [
            s.message()
            for s in self._topology.stores.values()
            if not (request.exclude_tombstone_stores and s.node_state == NODE_REMOVED)
        ]
        return pdpb_pb2.GetAllStoresResponse(header=self._header(), stores=stores)

    # --- safe points ---

    async def _get_gc_safe_point(
        self, _request: pdpb_pb2.GetGCSafePointRequest, _context: Any
    ) -> pdpb_pb2.GetGCSafePointResponse:
        return pdpb_pb2.GetGCSafePointResponse(header=self._header(), safe_point=self._pd.safe_points.gc_safe_point)

    async def _update_gc_safe_point(
        self, request: pdpb_pb2.UpdateGCSafePointRequest, _context: Any
    ) -> pdpb_pb2.UpdateGCSafePointResponse:
        new = self._pd.safe_points.update_gc(request.safe_point)
        return pdpb_pb2.UpdateGCSafePointResponse(header=self._header(), new_safe_point=new)

    async def _update_service_gc_safe_point(
        self, request: pdpb_pb2.UpdateServiceGCSafePointRequest, context: grpc.aio.ServicerContext
    ) -> pdpb_pb2.UpdateServiceGCSafePointResponse:
        points = self._pd.safe_points
        try:
            least = points.update_service(request.service_id.decode(errors="replace"), request.TTL, request.safe_point)
        except ValueError as err:
            await context.abort(grpc.StatusCode.UNKNOWN, str(err))
        return pdpb_pb2.UpdateServiceGCSafePointResponse(
            header=self._header(),
            service_id=least.service_id.encode(),
            TTL=points.ttl_s(least),
            min_safe_point=least.safe_point,
        )


def _pd_regions(regions: Iterable[RegionState]) -> list[pdpb_pb2.Region]:
    return [pdpb_pb2.Region(region=r.message(), leader=r.leader.message()) for r in regions]
