"""The embedded cluster as a whole: how it starts, stops, and what a test may do to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from airflow_provider_tikvbr.embedded.checksum import Digest
from airflow_provider_tikvbr.embedded.data import ClusterData, UserPair
from airflow_provider_tikvbr.embedded.engine import StoreEngine
from airflow_provider_tikvbr.embedded.faults import Faults
from airflow_provider_tikvbr.embedded.fleet import Fleet
from airflow_provider_tikvbr.embedded.keyspaces import Keyspaces
from airflow_provider_tikvbr.embedded.operators import Operators
from airflow_provider_tikvbr.embedded.pd_service import PdMember, PlacementDriver
from airflow_provider_tikvbr.embedded.raw import region_bounds
from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.embedded.releases import zero_ttl_is_for_good
from airflow_provider_tikvbr.embedded.replicas import ReplicaChecker
from airflow_provider_tikvbr.embedded.safepoints import SafePoints
from airflow_provider_tikvbr.embedded.schedule import ScheduleConfig, Schedulers
from airflow_provider_tikvbr.embedded.serving import ServerTls
from airflow_provider_tikvbr.embedded.state import ClusterState
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiKey, ApiVersion, KeyCodec, KeyRange, UserKey

# The port at which PD usually listens.
PD_PORT = 2379


class EmbeddedCluster:
    """PD and some stores in this process, on the running event loop.

    :param data_dir: where it keeps everything; the same directory gives the same cluster again.
    :param api_version: how the cluster encodes raw pairs.
    :param stores: number of stores.
    :param replicas: number of peers of each region.
    :param pd_port: port of the first PD member; 0 for any.
    :param pd_members: number of PD members; the first one leads at the start.
    :param store_port: gRPC port of the first store, the others follow; 0 for any.
    :param host: where to listen, and what PD tells clients.
    :param domain: what PD tells clients instead: names in this domain and TiKV's usual ports, as in a network that
        clients are not in; see :attr:`address_map`.
    :param tls: TLS of every port, or None.
    :param version: version that PD and the stores announce.
    :param split_keys: user keys at which a new cluster is split.
    :param keyspaces: keyspaces to create, by name with their numbers, None for the next one; V2 has a default one.
    :param cluster_id: id of a new cluster; a random one by default.
    :param max_store_down_s: for how many seconds a store has to be down before PD gives its peers to other stores; by
        default PD's setting ``max-store-down-time``, half an hour.
    :param clock: seconds since the epoch, for everything that PD lets expire.
    :raises InvalidOptionError: at :meth:`start`, if the directory holds another kind of cluster or is in use.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        api_version: ApiVersion = ApiVersion.V1,
        stores: int = 3,
        replicas: int = 1,
        pd_port: int = 0,
        pd_members: int = 1,
        store_port: int = 0,
        host: str = "127.0.0.1",
        domain: str = "",
        tls: ServerTls | None = None,
        version: str = "8.5.0",
        split_keys: Sequence[UserKey] = (),
        keyspaces: Mapping[str, int | None] | None = None,
        cluster_id: int | None = None,
        max_store_down_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.data_dir = data_dir
        self.api_version = api_version
        self.faults = Faults()
        self.engines: dict[int, StoreEngine] = {}
        self._stores = stores
        self._replicas = replicas
        self._pd_port = pd_port
        self._pd_members = pd_members
        self._store_port = store_port
        self._host = host
        self._domain = domain
        self._tls = tls
        self._version = version
        self._split_keys = tuple(split_keys)
        self._keyspaces = dict(keyspaces or {})
        self._cluster_id = cluster_id
        self._max_store_down_s = max_store_down_s
        self._clock = clock
        self._state: ClusterState | None = None
        self._pd: PlacementDriver | None = None
        self._fleet: Fleet | None = None
        self._patrol: asyncio.Task[None] | None = None

    # --- life ---

    async def start(self) -> None:
        """Open the data directory and serve.

        :raises InvalidOptionError: the directory holds another kind of cluster or is in use.
        :raises OSError: a port is taken.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self._state = state = ClusterState(directory=self.data_dir)
        topology = Topology(
            state=state,
            api_version=self.api_version,
            stores=self._stores,
            replicas=self._replicas,
            version=self._version,
            cluster_id=self._cluster_id,
            split_keys=self._split_keys,
            move_data=self._move_data,
            clock=self._clock,
        )
        self.faults.topology = topology
        members = tuple(
            PdMember(
                name=f"pd-{at}",
                member_id=(topology.cluster_id >> 1) + at,
                version=self._version,
                advertised_url=self._advertised_url(f"pd-{at}"),
            )
            for at in range(self._pd_members)
        )
        self._pd = PlacementDriver(
            topology=topology,
            keyspaces=Keyspaces(state=state),
            safe_points=SafePoints(
                state=state, clock=self._clock, barriers=int(self._version.split(".", maxsplit=1)[0]) >= 9
            ),
            schedulers=Schedulers(clock=self._clock),
            config=ScheduleConfig(state=state, clock=self._clock, zero_is_for_good=zero_ttl_is_for_good(self._version)),
            operators=Operators(topology=topology, clock=self._clock),
            members=members,
            leader=members[0],
        )
        for store_id in topology.stores:
            self.engines[store_id] = await asyncio.to_thread(
                StoreEngine, store_id=store_id, path=self.data_dir / f"store-{store_id}"
            )
        for name, keyspace_id in self._keyspaces.items():
            self.create_keyspace(name, keyspace_id=keyspace_id)
        fleet = self._fleet = Fleet(
            pd=self.pd, engines=self.engines, faults=self.faults, host=self._host, domain=self._domain, tls=self._tls
        )
        for at, store in enumerate(topology.stores.values()):
            if not store.death:
                await fleet.start_store(store.id, self._store_port + at if self._store_port else 0)
        for at, member in enumerate(members):
            await fleet.start_member(member, 0 if at else self._pd_port)
        if self._max_store_down_s is not None:
            self.pd.config.update({"max-store-down-time": f"{self._max_store_down_s}s"})
        replicas = ReplicaChecker(pd=self.pd, is_up=lambda: self.pd.leader is not None and fleet.is_up(self.pd.leader))
        self._patrol = asyncio.create_task(replicas.run())

    async def stop(self) -> None:
        """Stop every server and close the data directory; a cluster that does not run is left as it is."""
        if self._patrol is not None:
            self._patrol.cancel()
            await asyncio.gather(self._patrol, return_exceptions=True)
            self._patrol = None
        if self._fleet is not None:
            await self._fleet.close()
            self._fleet = None
        await self.faults.close()
        await asyncio.gather(*(asyncio.to_thread(engine.close) for engine in self.engines.values()))
        self.engines.clear()
        if self._state is not None:
            self._state.close()
            self._state = None

    async def __aenter__(self) -> EmbeddedCluster:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- what it is ---

    @property
    def pd(self) -> PlacementDriver:
        """What PD knows: regions, safe points, paused schedulers, settings.

        :raises RuntimeError: the cluster has not been started.
        """
        if self._pd is None:
            raise RuntimeError("the embedded cluster has not been started")
        return self._pd

    @property
    def topology(self) -> Topology:
        """Stores and regions."""
        return self.pd.topology

    @property
    def pd_address(self) -> str:
        """``host:port`` of the first PD member."""
        return self.pd_addresses[0]

    @property
    def pd_addresses(self) -> tuple[str, ...]:
        """``host:port`` of every PD member."""
        return tuple(member.client_url.partition("://")[2] for member in self.pd.members)

    @property
    def address_map(self) -> dict[str, str]:
        """Where each address that PD tells is really reached; empty without a domain of its own."""
        if not self._domain:
            return {}
        found = {m.advertised_url.partition("://")[2]: m.client_url.partition("://")[2] for m in self.pd.members}
        for store in self.topology.stores.values():
            found[store.advertised] = store.address
            found[store.advertised_status] = store.status_address
        return found

    def _advertised_url(self, name: str) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{name}.{self._domain}:{PD_PORT}" if self._domain else ""

    async def renew_tls(self, tls: ServerTls) -> None:
        """Restart every server that runs with other certificates, at the addresses they have."""
        self._tls = tls
        await self._servers.renew_tls(tls)

    @property
    def _servers(self) -> Fleet:
        if self._fleet is None:
            raise RuntimeError("the embedded cluster has not been started")
        return self._fleet

    # --- PD members that come and go ---

    def lead_pd(self, member: int | None) -> None:
        """Make another member of PD the leader, by its place; None for an election that does not end.

        A new leader does not know which schedulers the last one had paused.
        """
        self._servers.lead_pd(None if member is None else self.pd.members[member])

    def pd_is_up(self, member: int) -> bool:
        """Whether a member of PD runs, by its place."""
        return self._servers.is_up(self.pd.members[member])

    async def stop_pd(self, member: int) -> None:
        """Take a member of PD down, by its place; where most of them are left, one of these leads on.

        :raises KeyError: it is not running.
        """
        await self._servers.stop_pd(member)

    async def start_pd(self, member: int) -> None:
        """Bring a member of PD back, at the address it had.

        :raises RuntimeError: it is running.
        """
        await self._servers.start_pd(member)

    # --- stores that come and go ---

    async def stop_store(self, store_id: int) -> None:
        """Take a store down: its ports close, and its regions elect other leaders where a majority is left.

        :raises KeyError: it is not running.
        """
        await self._servers.stop_store(store_id)

    async def start_store(self, store_id: int) -> None:
        """Bring a store back, at the address it had.

        It goes on with what its peers have missed, and dies soon if a file was ingested meanwhile that it does not have.

        :raises RuntimeError: it died for good, or runs already.
        """
        await self._servers.start_store(store_id)

    async def kill_store(self, store_id: int, reason: str = "its machine is lost") -> None:
        """Let a store die for good; PD gives its peers to other stores after ``max_store_down_s``."""
        await self._servers.kill_store(store_id, reason)

    def fill_disk(self, store_id: int, full: bool = True) -> None:
        """Let the disk of a store be full, or have space again."""
        self.topology.stores[store_id].disk_full = full

    def _move_data(self, region: RegionState, from_store: int, to_store: int) -> None:
        bounds = region_bounds(region.keys)
        self.engines[region.leader_store_id].copy_range(bounds, self.engines[to_store])
        self.engines[from_store].delete_range(bounds)

    # --- what tests need ---

    def split(self, keys: Iterable[UserKey]) -> None:
        """Split regions at user keys."""
        topology = self.topology
        for key in keys:
            region_key = topology.codec.region_key(topology.codec.api_key(key))
            topology.split(topology.region_of(region_key).id, [region_key])

    def create_keyspace(self, name: str, *, keyspace_id: int | None = None) -> int:
        """Let PD know a keyspace, in regions of its own as PD makes them.

        :param keyspace_id: its number; by default the next one.
        :return: its number.
        :raises InvalidOptionError: the name or the number is taken.
        """
        topology = self.topology
        number = self.pd.keyspaces.create(name, keyspace_id=keyspace_id)
        if topology.codec.is_v2:
            codec = KeyCodec(ApiVersion.V2, number)
            for key in (codec.prefix, codec.prefix_end):
                region_key = codec.region_key(ApiKey(key))
                topology.split(topology.region_of(region_key).id, [region_key])
        return number

    def scatter(self) -> None:
        """Spread all regions over the stores that run."""
        self.pd.operators.scatter([r.id for r in self.topology.regions])

    def import_modes(self) -> dict[int, bool]:
        """Which stores are in import mode."""
        return {store_id: engine.import_mode.is_on for store_id, engine in self.engines.items()}

    def download_limits(self) -> dict[int, int]:
        """The download speed limit of each store, in bytes per second; 0 for none."""
        return {store_id: engine.download_limiter.rate for store_id, engine in self.engines.items()}

    @property
    def data(self) -> ClusterData:
        """The pairs, from the inside."""
        return ClusterData(topology=self.topology, engines=self.engines)

    async def put(self, pairs: Iterable[tuple[UserKey, bytes] | tuple[UserKey, bytes, int]]) -> None:
        """Write pairs fast; see :meth:`ClusterData.put`."""
        await self.data.put(pairs)

    async def pairs(self, keys: KeyRange[UserKey] = EVERYTHING) -> list[UserPair]:
        """The live pairs of a range in key order."""
        return await self.data.pairs(keys)

    async def checksum(self, keys: KeyRange[UserKey] = EVERYTHING) -> Digest:
        """The numbers over the live pairs of a range."""
        return await self.data.checksum(keys)
