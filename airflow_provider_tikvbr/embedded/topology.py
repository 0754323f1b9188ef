"""The single truth of the embedded cluster: its stores, its regions, who holds and who leads them, ids and time.

It is used on the thread of the event loop only.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from airflow_provider_tikvbr.embedded.records import NODE_REMOVED, Identity, PeerState, RegionState, StoreRecord
from airflow_provider_tikvbr.embedded.region_map import RegionMap
from airflow_provider_tikvbr.embedded.releases import release_of
from airflow_provider_tikvbr.embedded.state import ClusterState
from airflow_provider_tikvbr.embedded.tso import TimestampOracle
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, KeyRange, RegionKey, UserKey

# A V2 cluster keeps the raw data of its default keyspace in regions of their own.
V2_BOUNDARY = ApiKey(b"r\x00\x00\x01")


class Topology:
    """Stores and regions of one embedded cluster.

    :param state: where they are kept; what it holds is loaded, and a new cluster is made when it is empty.
    :param api_version: how the cluster encodes raw pairs.
    :param stores: number of stores.
    :param replicas: number of peers of each region.
    :param version: TiKV version that the stores announce.
    :param cluster_id: its id; a random one by default.
    :param split_keys: user keys at which a new cluster is split.
    :param move_data: copies a region's data when a peer moves: region, from store, to store.
    :param clock: seconds since the epoch.
    :raises InvalidOptionError: the state belongs to another kind of cluster, or replicas do not fit on the stores.
    """

    def __init__(
        self,
        *,
        state: ClusterState,
        api_version: ApiVersion = ApiVersion.V1,
        stores: int = 1,
        replicas: int = 1,
        version: str = "8.5.0",
        cluster_id: int | None = None,
        split_keys: Sequence[UserKey] = (),
        move_data: Callable[[RegionState, int, int], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 1 <= replicas <= stores:
            raise InvalidOptionError(
                f"replicas={replicas} does not fit on stores={stores}: give a number from 1 to {stores}",
                parameter="replicas",
            )
        self._state = state
        self.version = version
        #: What somebody has set with pd-ctl, or empty.
        self.version_set = ""
        self.clock = clock
        self.oracle = TimestampOracle(state=state, clock=clock)
        self.on_death: list[Callable[[StoreRecord], None]] = []
        self._move_data = move_data
        self._map = RegionMap()
        self._pinned: list[KeyRange[RegionKey]] = []
        self._next_id = int(state.read("ids").get("next", 1))
        self.stores: dict[int, StoreRecord] = {}
        wanted = Identity(
            cluster_id=cluster_id or random.SystemRandom().getrandbits(62) | 1,
            api_version=api_version,
            stores=stores,
            replicas=replicas,
        )
        saved = state.read("identity").get("identity")
        self.identity = wanted if saved is None else wanted.check(saved, given_id=cluster_id)
        # Ids of peers that have an ingest in their log whose file they do not have, and why that ends their store.
        self._lacking: dict[int, str] = {int(peer): why for peer, why in state.read("lacking").items()}
        self.codec = KeyCodec(self.identity.api_version)
        if saved is None:
            self._bootstrap(split_keys)
        else:
            self._load()

    @property
    def cluster_id(self) -> int:
        """The cluster's id."""
        return self.identity.cluster_id

    @property
    def api_version(self) -> ApiVersion:
        """How the cluster encodes raw pairs."""
        return self.identity.api_version

    @property
    def cluster_version(self) -> str:
        """What PD holds the cluster to: the oldest store's version (PD, ``server/cluster/cluster.go``)."""
        versions = (s.version for s in self.stores.values() if s.node_state != NODE_REMOVED)
        return self.version_set or min(versions, key=release_of, default=self.version).lstrip("v")

    def tso(self, count: int = 1) -> int:
        """The largest of some fresh timestamps."""
        return self.oracle.next(count)

    def new_id(self) -> int:
        """An id that no store, region or peer has."""
        self._next_id += 1
        self._state.write("ids", [("next", self._next_id)])
        return self._next_id - 1

    # --- look-ups ---

    @property
    def regions(self) -> Sequence[RegionState]:
        """All regions in key order."""
        return self._map.in_order

    def by_id(self, region_id: int) -> RegionState | None:
        """The region with an id."""
        return self._map.by_id(region_id)

    def region_of(self, key: RegionKey) -> RegionState:
        """The region that holds a key; regions tile the whole key space."""
        return self._map.of(key)

    def before(self, region: RegionState) -> RegionState | None:
        """The left neighbour of a region."""
        return self._map.before(region)

    def scan(self, keys: KeyRange[RegionKey], limit: int = 0) -> list[RegionState]:
        """The regions that share keys with a range, in order; see :meth:`RegionMap.scan`."""
        return self._map.scan(keys, limit)

    def has_majority(self, region: RegionState) -> bool:
        """Whether most peers of a region are on stores that run: only then it has a leader, and takes changes."""
        return 2 * len(self.live_stores(region)) > len(region.peers)

    def live_stores(self, region: RegionState) -> list[int]:
        """The stores that run among those with a peer of a region."""
        return [store_id for store_id in region.store_ids if self.stores[store_id].running]

    def leads(self, store_id: int, region: RegionState) -> bool:
        """Whether the peer on a store leads the region; a leader that hears from too few peers steps down."""
        return region.led_by(store_id) and self.has_majority(region)

    def _region(self, region_id: int) -> RegionState:
        region = self._map.by_id(region_id)
        if region is None:
            raise KeyError(region_id)
        return region

    # --- changes of regions ---

    def split(self, region_id: int, keys: Sequence[RegionKey]) -> list[RegionState]:
        """Split a region; the rightmost piece keeps the id, and every piece's version grows by the number of new ones.

        Keys that are not strictly inside the region are left out (TiKV, ``exec_batch_split``).

        :return: all pieces in key order; the region alone if no key was left, or if it is being merged.
        :raises KeyError: there is no such region.
        """
        region = self._region(region_id)
        inside = sorted({k for k in keys if k > region.start and (not region.end or k < region.end)})
        if not inside or region.merging:
            return [region]
        version = region.version + len(inside)
        pieces = []
        for start, end in zip([region.start, *inside[:-1]], inside, strict=True):
            new_id = self.new_id()
            peers = [PeerState(self.new_id(), p.store_id) for p in region.peers]
            pieces.append(
                RegionState(
                    id=new_id,
                    start=start,
                    end=end,
                    conf_ver=region.conf_ver,
                    version=version,
                    peers=peers,
                    leader_store_id=region.leader_store_id,
                )
            )
        region.version = version
        self._map.split(region, pieces)
        pieces.append(region)
        self._save(*pieces)
        return pieces

    def prepare_merge(self, source_id: int, target_id: int) -> None:
        """Begin to merge a region into its neighbour: from now on it takes neither proposals nor reads.

        Source: TiKV, ``exec_prepare_merge``, which lets both numbers of the epoch grow.

        :raises ValueError: they cannot be merged now.
        """
        source, _ = self._mergeable(source_id, target_id)
        if source.merging:
            raise ValueError(f"region {source_id} is being merged")
        source.merging = True
        source.version += 1
        source.conf_ver += 1
        self._save(source)

    def commit_merge(self, source_id: int, target_id: int) -> RegionState:
        """Finish what was prepared: the target takes the source's keys, and the source is gone.

        The version becomes one more than the larger of both, the source's after its preparation (TiKV,
        ``exec_commit_merge``).

        :return: the target.
        :raises ValueError: they cannot be merged any more; the source goes on alone, with a larger version.
        """
        try:
            source, target = self._mergeable(source_id, target_id)
        except ValueError:
            self.rollback_merge(source_id)
            raise
        target.version = max(source.version, target.version) + 1
        for peer in source.peers:
            # A target's peer applies what is left of the source's log first.
            why, heir = self._forget_peer(peer), target.peer_on(peer.store_id)
            if why and heir is not None:
                self._remember_lacking(heir, why)
        self._map.absorb(target, source)
        self._state.remove("region", str(source_id))
        self._save(target)
        return target

    def rollback_merge(self, source_id: int) -> None:
        """Let a region go on that was to be merged."""
        source = self._map.by_id(source_id)
        if source is not None and source.merging:
            source.merging = False
            source.version += 1
            self._save(source)

    def merge(self, source_id: int, target_id: int) -> RegionState:
        """Merge a region into its neighbour at once.

        :return: the neighbour, which holds the keys of both.
        :raises ValueError: they are no neighbours, their peers are on different stores, or one has no majority.
        """
        self.prepare_merge(source_id, target_id)
        return self.commit_merge(source_id, target_id)

    def _mergeable(self, source_id: int, target_id: int) -> tuple[RegionState, RegionState]:
        source, target = self._map.by_id(source_id), self._map.by_id(target_id)
        what = f"region {source_id} cannot be merged into region {target_id}: "
        if source is None or target is None:
            raise ValueError(what + "one of them is gone")
        left, right = sorted((source, target), key=lambda r: r.start)
        if self._map.before(right) is not left or target.merging:
            raise ValueError(what + "they are no neighbours, or that one is being merged itself")
        if set(source.store_ids) != set(target.store_ids):
            raise ValueError(what + "their peers are on different stores")
        if not self.has_majority(source):
            raise ValueError(what + "most of their peers are on stores that are down")
        return source, target

    def transfer_leader(self, region_id: int, store_id: int) -> None:
        """Make the peer on a store the leader.

        :raises ValueError: the region has no peer there.
        """
        self.transfer_leaders({region_id: store_id})

    def transfer_leaders(self, moves: Mapping[int, int]) -> None:
        """Move the leaders of some regions, each to the peer on another store.

        :param moves: ids of the stores by ids of the regions.
        :raises ValueError: a region has no peer there.
        """
        regions = [(self._region(region_id), store_id) for region_id, store_id in moves.items()]
        for region, store_id in regions:
            if region.peer_on(store_id) is None:
                raise ValueError(f"region {region.id} has no peer on store {store_id}")
        for region, store_id in regions:
            region.leader_store_id = store_id
        self._save(*(region for region, _ in regions))

    def move_peer(self, region_id: int, from_store: int, to_store: int) -> None:
        """Move a peer, whose data come from the leader; a leader stays the leader at its new place.

        :raises ValueError: it has no peer to move, one there already, no majority, or is pinned or being merged.
        """
        region = self._region(region_id)
        gone = region.peer_on(from_store)
        if gone is None or region.peer_on(to_store) is not None or to_store not in self.stores:
            raise ValueError(f"region {region_id} cannot move a peer from store {from_store} to store {to_store}")
        if not self.has_majority(region):
            raise ValueError(f"region {region_id} has no majority of peers that could agree to a move")
        if self.is_pinned(region) or region.merging:
            raise ValueError(f"region {region_id} is at work and cannot move now")
        if self._move_data is not None:
            self._move_data(region, from_store, to_store)
        region.peers = [p for p in region.peers if p.store_id != from_store] + [PeerState(self.new_id(), to_store)]
        region.conf_ver += 2  # one for the peer that came, one for the peer that went
        if region.leader_store_id == from_store:
            region.leader_store_id = to_store
        # A peer that is removed while its store is down never gets to the rest of its log.
        self._forget_peer(gone)
        self._save(region)

    @contextlib.contextmanager
    def pinned(self, keys: KeyRange[RegionKey]) -> Iterator[None]:
        """Keep the peers of a range where they are while a job in another thread reads or writes there.

        A real store reads from a snapshot, and replicates what it writes. The regions of the range may split meanwhile.
        """
        self._pinned.append(keys)
        try:
            yield
        finally:
            self._pinned.remove(keys)

    def is_pinned(self, region: RegionState) -> bool:
        """Whether the peers of a region have to stay where they are."""
        return any(region.keys.intersect(keys) is not None for keys in self._pinned)

    # --- changes of stores ---

    def set_running(self, store_id: int, running: bool) -> None:
        """Tell that a store came up or went down; regions that keep a majority of peers elect another leader.

        A store that comes up goes on with the logs of its peers, which may be its end: see :meth:`lacks`.
        """
        store = self.stores[store_id]
        store.running = running
        if running:
            store.start_timestamp = int(self.clock())
        else:
            store.last_heartbeat = int(self.clock() * 1e9)
        self._elect()
        if running and self._lacking:
            reasons = (self._lacking.get(p.id) for r in self.regions for p in r.peers if p.store_id == store_id)
            reason = next(filter(None, reasons), None)
            if reason is not None:
                self.kill(store_id, reason)

    def _elect(self) -> None:
        # A store that has not come up yet since the whole cluster was started is about to, and keeps its leaders.
        down = {s.id for s in self.stores.values() if not s.running and (s.start_timestamp or s.death)}
        moves = {}
        for region in self.regions:
            if region.leader_store_id in down and self.has_majority(region):
                alive = self.live_stores(region)
                moves[region.id] = alive[region.id % len(alive)]
        if moves:
            self.transfer_leaders(moves)

    def lacks(self, region_id: int, store_id: int, reason: str) -> None:
        """Tell that an ingest was committed whose file a peer does not have: applying it ends the peer's store for good.

        A store that is down applies it when it comes back (TiKV, ``handle_ingest_sst`` in ``apply.rs``).
        """
        region = self._map.by_id(region_id)
        peer = region.peer_on(store_id) if region else None
        if self.stores[store_id].running:
            self.kill(store_id, reason)
        elif peer is not None:
            self._remember_lacking(peer, reason)

    def _remember_lacking(self, peer: PeerState, reason: str) -> None:
        self._lacking[peer.id] = reason
        self._state.write("lacking", [(str(peer.id), reason)])

    def _forget_peer(self, peer: PeerState) -> str:
        """Forget what a peer that is gone lacked."""
        reason = self._lacking.pop(peer.id, "")
        if reason:
            self._state.remove("lacking", str(peer.id))
        return reason

    def kill(self, store_id: int, reason: str) -> None:
        """Let a store die for good, as a TiKV does that applied an ingest without its file."""
        store = self.stores[store_id]
        store.death = reason
        self._save_store(store)
        self.crash(store_id)

    def crash(self, store_id: int) -> None:
        """Let the process of a store end, as any panic does; it can be started again."""
        for listener in self.on_death:
            listener(self.stores[store_id])

    # --- data directory ---

    def _bootstrap(self, split_keys: Sequence[UserKey]) -> None:
        identity = self.identity
        for _ in range(identity.stores):
            store = StoreRecord(id=self.new_id(), version=self.version)
            self.stores[store.id] = store
        store_ids = list(self.stores)[: identity.replicas]
        region_id = self.new_id()
        peers = [PeerState(self.new_id(), s) for s in store_ids]
        conf_ver = 1 + 2 * (identity.replicas - 1)  # each further peer came as a learner and was promoted
        region = RegionState(
            id=region_id,
            start=RegionKey(b""),
            end=RegionKey(b""),
            conf_ver=conf_ver,
            version=1,
            peers=peers,
            leader_store_id=store_ids[0],
        )
        self._map.put_all([region])
        self._save(region)
        boundaries = {self.codec.region_key(self.codec.api_key(k)) for k in split_keys}
        if self.codec.is_v2:
            boundaries.add(self.codec.region_key(V2_BOUNDARY))
        self.split(region_id, sorted(boundaries))
        self._spread()
        for store in self.stores.values():
            self._save_store(store)
        # Last, since a directory with an identity counts as complete.
        self._state.write("identity", [("identity", asdict(identity))])

    def _spread(self) -> None:
        # A new cluster holds no data, so its regions may be dealt out in turn as PD would balance them in time.
        store_ids = list(self.stores)
        for at, region in enumerate(self.regions):
            holders = [store_ids[(at + i) % len(store_ids)] for i in range(len(region.peers))]
            region.peers = [PeerState(p.id, s) for p, s in zip(region.peers, holders, strict=True)]
            region.leader_store_id = holders[0]
        self._save(*self.regions)

    def _load(self) -> None:
        for name, value in sorted(self._state.read("store").items(), key=lambda item: int(item[0])):
            self.stores[int(name)] = StoreRecord(
                id=int(name), version=self.version, last_heartbeat=int(self.clock() * 1e9), **value
            )
        self._map.put_all([RegionState.from_json(int(n), v) for n, v in self._state.read("region").items()])

    def _save(self, *regions: RegionState) -> None:
        self._state.write("region", [(str(r.id), r.to_json()) for r in regions])

    def _save_store(self, store: StoreRecord) -> None:
        kept = {"labels": store.labels, "state": store.state, "node_state": store.node_state, "death": store.death}
        self._state.write("store", [(str(store.id), kept)])
