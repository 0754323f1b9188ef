"""The single truth of the embedded cluster: its stores, its regions, who holds and who leads them, ids and time.

It is used on the thread of the event loop only.
"""

from __future__ import annotations

import bisect
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from airflow_provider_tikvbr.embedded.records import NODE_REMOVED, Identity, PeerState, RegionState, StoreRecord
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
        self._starts: list[RegionKey] = []
        self._regions: list[RegionState] = []
        self._by_id: dict[int, RegionState] = {}
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
        self.identity = wanted if saved is None else _check(saved, wanted, given_id=cluster_id)
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
        return self._regions

    def by_id(self, region_id: int) -> RegionState | None:
        """The region with an id."""
        return self._by_id.get(region_id)

    def region_of(self, key: RegionKey) -> RegionState:
        """The region that holds a key; regions tile the whole key space."""
        return self._regions[bisect.bisect_right(self._starts, key) - 1]

    def before(self, region: RegionState) -> RegionState | None:
        """The left neighbour of a region."""
        at = bisect.bisect_left(self._starts, region.start)
        return self._regions[at - 1] if at else None

    def scan(self, keys: KeyRange[RegionKey], limit: int = 0) -> list[RegionState]:
        """The regions that share keys with a range, in order.

        :param limit: how many at most; 0 or less for no limit.
        """
        first = bisect.bisect_right(self._starts, keys.start) - 1
        last = bisect.bisect_left(self._starts, keys.end) if keys.end else len(self._regions)
        return self._regions[first : min(last, first + limit) if limit > 0 else last]

    # --- changes of regions ---

    def split(self, region_id: int, keys: Sequence[RegionKey]) -> list[RegionState]:
        """Split a region; the rightmost piece keeps the id, and every piece's version grows by the number of new ones.

        Keys that are not strictly inside the region are left out (TiKV, ``exec_batch_split``).

        :return: all pieces in key order; the region alone if no key was left.
        """
        region = self._by_id[region_id]
        inside = sorted({k for k in keys if k > region.start and (not region.end or k < region.end)})
        if not inside:
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
        at = bisect.bisect_left(self._starts, region.start)
        region.start, region.version = inside[-1], version
        pieces.append(region)
        self._regions[at : at + 1] = pieces
        self._starts[at : at + 1] = [p.start for p in pieces]
        self._by_id.update({p.id: p for p in pieces})
        self._save(*pieces)
        return pieces

    def transfer_leader(self, region_id: int, store_id: int) -> None:
        """Make the peer on a store the leader.

        :raises ValueError: the region has no peer there.
        """
        region = self._by_id[region_id]
        if region.peer_on(store_id) is None:
            raise ValueError(f"region {region_id} has no peer on store {store_id}")
        region.leader_store_id = store_id
        self._save(region)

    def move_peer(self, region_id: int, from_store: int, to_store: int) -> None:
        """Move a peer and its data; a leader stays the leader at its new place.

        :raises ValueError: it has no peer to move, one there already, or is pinned.
        """
        region = self._by_id[region_id]
        if region.peer_on(from_store) is None or region.peer_on(to_store) is not None or to_store not in self.stores:
            raise ValueError(f"region {region_id} cannot move a peer from store {from_store} to store {to_store}")
        if self.is_pinned(region):
            raise ValueError(f"region {region_id} is at work and cannot move now")
        if self._move_data is not None:
            self._move_data(region, from_store, to_store)
        region.peers = [p for p in region.peers if p.store_id != from_store] + [PeerState(self.new_id(), to_store)]
        region.conf_ver += 2  # one for the peer that came, one for the peer that went
        if region.leader_store_id == from_store:
            region.leader_store_id = to_store
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
        """Tell that a store came up or went down; regions that keep a majority of peers elect another leader."""
        store = self.stores[store_id]
        store.running = running
        if running:
            store.start_timestamp = int(self.clock())
            return
        store.last_heartbeat = time.time_ns()
        for region in self._regions:
            alive = [p.store_id for p in region.peers if self.stores[p.store_id].running]
            if region.leader_store_id == store_id and 2 * len(alive) > len(region.peers):
                self.transfer_leader(region.id, alive[region.id % len(alive)])

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
        self._put_regions([region])
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
        for at, region in enumerate(self._regions):
            holders = [store_ids[(at + i) % len(store_ids)] for i in range(len(region.peers))]
            region.peers = [PeerState(p.id, s) for p, s in zip(region.peers, holders, strict=True)]
            region.leader_store_id = holders[0]
        self._save(*self._regions)

    def _load(self) -> None:
        for name, value in sorted(self._state.read("store").items(), key=lambda item: int(item[0])):
            self.stores[int(name)] = StoreRecord(id=int(name), version=self.version, **value)
        self._put_regions([RegionState.from_json(int(n), v) for n, v in self._state.read("region").items()])

    def _put_regions(self, regions: Sequence[RegionState]) -> None:
        self._regions = sorted(regions, key=lambda r: r.start)
        self._starts = [r.start for r in self._regions]
        self._by_id = {r.id: r for r in self._regions}

    def _save(self, *regions: RegionState) -> None:
        self._state.write("region", [(str(r.id), r.to_json()) for r in regions])

    def _save_store(self, store: StoreRecord) -> None:
        kept = {"labels": store.labels, "state": store.state, "node_state": store.node_state, "death": store.death}
        self._state.write("store", [(str(store.id), kept)])


def _check(saved: Mapping[str, Any], wanted: Identity, *, given_id: int | None) -> Identity:
    """The identity that the data directory holds, if it is the one that is wanted."""
    found = Identity(
        cluster_id=saved["cluster_id"],
        api_version=ApiVersion(saved["api_version"]),
        stores=saved["stores"],
        replicas=saved["replicas"],
    )
    names = ["api_version", "stores", "replicas", *(["cluster_id"] if given_id else [])]
    for name in names:
        was, now = getattr(found, name), getattr(wanted, name)
        if was != now:
            shown = (was.name, now.name) if isinstance(was, ApiVersion) else (was, now)
            raise InvalidOptionError(
                f"the data directory holds a cluster with {name}={shown[0]}, not {shown[1]}: "
                f"give {name}={shown[0]} or another directory",
                parameter=name,
            )
    return found
