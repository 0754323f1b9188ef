"""The placement driver's gRPC API: who leads it, timestamps, stores, regions, safepoints.

PD runs as several members of which one leads; only the leader answers. The client asks every endpoint for the leader,
keeps one connection per member, and looks for the leader again whenever a call fails. Sources: ``pdpb.proto``;
PD, ``server/grpc_service.go``; what PD 9 was seen to answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from airflow_provider_tikvbr.exceptions import (
    BudgetExceededError,
    PDUnavailableError,
    ProtocolError,
    RegionNotFoundError,
    TikvBrError,
    UnsupportedError,
    WrongClusterError,
)
from airflow_provider_tikvbr.proto import keyspacepb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.tikv import errors
from airflow_provider_tikvbr.tikv.certificates import Certificates
from airflow_provider_tikvbr.tikv.discovery import PAUSE_S, Leader, Members, find_leader
from airflow_provider_tikvbr.tikv.keys import KeyRange, RegionKey
from airflow_provider_tikvbr.tikv.model import Region, Store, StoreState
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from airflow_provider_tikvbr.tikv.retry import Backoff

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)

CALL_TIMEOUT_S = 10.0
CALL_BUDGET_S = 30.0
# A timestamp is milliseconds and a counter of this many bits.
LOGICAL_BITS = 18
SCATTER = b"scatter-region"
KEYSPACE_UNKNOWN = "keyspace does not exist"


class PDClient:
    """Calls to PD's leader. Make it with :meth:`connect` and close it.

    :param options: endpoints, TLS, time limits.
    :param members: connections to the members.
    :param leader: the leader found.
    """

    def __init__(self, options: ClusterOptions, members: Members, leader: Leader) -> None:
        self.options = options
        self._members = members
        self._leader = leader
        self._search = asyncio.Lock()
        self._budget_s = CALL_BUDGET_S

    @classmethod
    async def connect(cls, options: ClusterOptions) -> PDClient:
        """Find the leader by asking every endpoint.

        :raises PDUnavailableError: within ``connect_timeout_s`` no endpoint answered, or none knew of a leader.
        :raises AuthenticationError: one side speaks TLS and the other does not, or a certificate is refused.
        :raises WrongClusterError: the endpoints belong to different clusters.
        """
        members = Members(options)
        try:
            leader = await find_leader(
                members, [members.given(one) for one in options.pd], timeout_s=options.connect_timeout_s
            )
        except BaseException:
            await members.close()
            raise
        return cls(options, members, leader)

    async def close(self) -> None:
        """Close every connection."""
        await self._members.close()

    async def __aenter__(self) -> PDClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def cluster_id(self) -> int:
        """The number that PD gave to the cluster."""
        return self._leader.cluster_id

    @property
    def leader_address(self) -> str:
        """Host and port of the leader."""
        return self._leader.address

    @property
    def certificates(self) -> Certificates:
        """What keeps the certificates of every connection to this cluster up to date."""
        return self._members.certificates

    @property
    def members(self) -> tuple[str, ...]:
        """Host and port of every member, the leader first."""
        return self._leader.members

    async def tso(self) -> int:
        """A fresh timestamp: milliseconds since 1970 shifted left by 18 bits, plus a counter."""
        request = pdpb_pb2.TsoRequest(header=self._header(), count=1, dc_location="global")
        response = await self._call(methods.PD_TSO, request)
        if response.count != 1 or response.timestamp.physical <= 0:
            raise ProtocolError(f"PD at {self.leader_address} answered a timestamp request without a timestamp")
        return (response.timestamp.physical << LOGICAL_BITS) + response.timestamp.logical

    async def stores(self) -> tuple[Store, ...]:
        """Every store that is not gone, by id."""
        request = pdpb_pb2.GetAllStoresRequest(header=self._header(), exclude_tombstone_stores=True)
        response = await self._call(methods.PD_GET_ALL_STORES, request)
        stores = (Store.of(store) for store in response.stores)
        live = [store for store in stores if store.state is not StoreState.TOMBSTONE and not store.removed]
        return tuple(sorted(live, key=lambda store: store.id))

    async def region(self, key: RegionKey) -> Region | None:
        """The region that holds a key; None if PD knows of none for now."""
        request = pdpb_pb2.GetRegionRequest(header=self._header(), region_key=key)
        return _region(await self._call(methods.PD_GET_REGION, request))

    async def region_by_id(self, region_id: int) -> Region | None:
        """The region with that id; None if PD does not know it (yet, or any more)."""
        request = pdpb_pb2.GetRegionByIDRequest(header=self._header(), region_id=region_id)
        return _region(await self._call(methods.PD_GET_REGION_BY_ID, request))

    async def scan_regions(self, keys: KeyRange[RegionKey], limit: int) -> list[Region]:
        """The first regions that overlap a range, in key order, as PD happens to know them: gaps are possible.

        :param limit: most regions to return.
        """
        request = pdpb_pb2.ScanRegionsRequest(
            header=self._header(), start_key=keys.start, end_key=keys.end, limit=limit
        )
        response = await self._call(methods.PD_SCAN_REGIONS, request)
        if response.regions:
            return [Region.of_pd(region) for region in response.regions]
        # Older servers fill the two parallel lists only.
        pairs = zip(response.region_metas, response.leaders, strict=False)
        return [Region.of(region, leader) for region, leader in pairs]

    async def scatter(self, region_ids: Sequence[int]) -> int:
        """Ask PD to spread regions over the stores; it does so in its own time (see :meth:`is_scattering`).

        :return: for how many per cent of them PD has made a plan.
        :raises UnsupportedError: this PD cannot.
        """
        request = pdpb_pb2.ScatterRegionRequest(header=self._header(), regions_id=region_ids)
        response = await self._call(methods.PD_SCATTER_REGION, request)
        return response.finished_percentage

    async def is_scattering(self, region_id: int) -> bool:
        """Whether PD is still spreading a region."""
        request = pdpb_pb2.GetOperatorRequest(header=self._header(), region_id=region_id)
        try:
            response = await self._call(methods.PD_GET_OPERATOR, request)
        except RegionNotFoundError:
            # PD knows of no operator of that region.
            return False
        return response.status == pdpb_pb2.RUNNING and response.desc == SCATTER

    async def gc_safe_point(self) -> int:
        """The timestamp below which old versions may be collected."""
        request = pdpb_pb2.GetGCSafePointRequest(header=self._header())
        response = await self._call(methods.PD_GET_GC_SAFE_POINT, request)
        return response.safe_point

    async def update_service_safe_point(self, *, service_id: str, ttl_s: int, safe_point: int) -> int:
        """Hold garbage collection back for a service.

        :param service_id: name of the service.
        :param ttl_s: how long to hold it, in seconds; 0 removes the hold.
        :param safe_point: versions from this timestamp on are kept.
        :return: the lowest safepoint of all services; above ``safe_point`` means that it came too late.
        """
        request = pdpb_pb2.UpdateServiceGCSafePointRequest(
            header=self._header(), service_id=service_id.encode(), TTL=ttl_s, safe_point=safe_point
        )
        response = await self._call(methods.PD_UPDATE_SERVICE_GC_SAFE_POINT, request)
        return response.min_safe_point

    async def keyspace(self, name: str) -> keyspacepb_pb2.KeyspaceMeta | None:
        """The keyspace of that name; None if PD knows none.

        :raises UnsupportedError: this PD knows no keyspaces (before 6.4).
        """
        request = keyspacepb_pb2.LoadKeyspaceRequest(header=self._header(), name=name)
        return await self._keyspace(methods.KEYSPACE_LOAD, request)

    async def keyspace_by_id(self, keyspace_id: int) -> keyspacepb_pb2.KeyspaceMeta | None:
        """The keyspace with that number; None if PD knows none.

        :raises UnsupportedError: this PD cannot tell (before 7.3).
        """
        request = keyspacepb_pb2.LoadKeyspaceByIDRequest(header=self._header(), id=keyspace_id)
        try:
            return await self._keyspace(methods.KEYSPACE_LOAD_BY_ID, request)
        except UnsupportedError:
            listing = keyspacepb_pb2.GetAllKeyspacesRequest(header=self._header(), start_id=keyspace_id, limit=1)
        response = await self._call(methods.KEYSPACE_GET_ALL, listing)
        return next((one for one in response.keyspaces if one.id == keyspace_id), None)

    # --- calls ---

    def _header(self) -> pdpb_pb2.RequestHeader:
        return pdpb_pb2.RequestHeader(cluster_id=self.cluster_id)

    async def _call(self, method: Method[Req, Resp], request: Req) -> Resp:
        """Call the leader; when it does not answer, look for the leader and try again, within the budget.

        A leader that has just been elected answers for a moment as if there were no cluster yet (PD,
        ``server/grpc_service.go``), so such an answer counts as none.
        """
        backoff = Backoff(base_s=0.1, cap_s=1.0, budget_s=self._budget_s)
        while True:
            leader = self._leader
            connection = self._members.connection(self._members.told(leader.address))
            ask = connection.exchange if method.client_streams else connection.call
            try:
                response = await ask(method, request, timeout_s=CALL_TIMEOUT_S)
                self._check_header(response.header, method, leader)  # type: ignore[attr-defined]
                return response
            except PDUnavailableError as err:
                if KEYSPACE_UNKNOWN in str(err):
                    # Some releases say so by the same error, and that is an answer.
                    raise
                try:
                    await backoff.sleep(err)
                except BudgetExceededError:
                    raise PDUnavailableError(
                        f"no PD answered {method.name} for {self._budget_s:g} s, tried {', '.join(self.members)}: {err}",
                        endpoints=self.members,
                        method=method.path,
                        code=err.code,
                    ) from err
                await self._find_leader_again(leader, timeout_s=max(backoff.remaining_s, PAUSE_S))

    def _check_header(self, header: pdpb_pb2.ResponseHeader, method: Method[Req, Resp], leader: Leader) -> None:
        if header.HasField("error") and header.error.type != pdpb_pb2.OK:
            raise errors.from_pd_error(header.error, method=method.path, address=leader.address)
        if header.cluster_id != leader.cluster_id:
            raise WrongClusterError(
                f"PD at {leader.address} now answers for cluster {header.cluster_id} instead of {leader.cluster_id}",
                address=leader.address,
                method=method.path,
            )

    async def _keyspace(
        self, method: Method[Req, keyspacepb_pb2.LoadKeyspaceResponse], request: Req
    ) -> keyspacepb_pb2.KeyspaceMeta | None:
        try:
            return (await self._call(method, request)).keyspace
        except TikvBrError as err:
            # Some releases have no error type for it but the text.
            if err.code == "ENTRY_NOT_FOUND" or KEYSPACE_UNKNOWN in str(err):
                return None
            raise

    async def _find_leader_again(self, failed: Leader, *, timeout_s: float) -> None:
        async with self._search:
            if self._leader is not failed:
                # Another call has found the new leader meanwhile.
                return
            told = (self._members.told(address) for address in self._leader.members)
            given = (self._members.given(endpoint) for endpoint in self.options.pd)
            endpoints = tuple(dict.fromkeys((*told, *given)))
            try:
                found = await find_leader(
                    self._members,
                    endpoints,
                    timeout_s=min(timeout_s, self.options.connect_timeout_s),
                    cluster_id=self.cluster_id,
                )
            except PDUnavailableError:
                # Nobody leads yet: the caller's budget decides how often to come back here.
                return
            self._leader = found


def _region(response: pdpb_pb2.GetRegionResponse) -> Region | None:
    return Region.of(response.region, response.leader) if response.HasField("region") else None
