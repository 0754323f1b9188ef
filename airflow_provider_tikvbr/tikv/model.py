"""What PD says about a cluster, as plain values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_provider_tikvbr.exceptions import RegionNotReadyError
from airflow_provider_tikvbr.proto import kvrpcpb_pb2, metapb_pb2, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, RegionKey


class StoreState(enum.IntEnum):
    """State of a store in PD's eyes; the numbers are those of ``metapb.StoreState``."""

    UP = 0
    OFFLINE = 1
    TOMBSTONE = 2


NODE_STATE_REMOVED = 3
# The second kind holds no data at all, so it computes for others.
TIFLASH_ENGINES = ("tiflash", "tiflash_compute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """One TiKV (or TiFlash) node.

    :param id: number of the store.
    :param address: where clients reach it, ``host:port``.
    :param peer_address: where backup and import calls reach it, if that differs; else empty.
    :param status_address: where its HTTP status server listens.
    :param version: its version as it reports it, such as ``8.5.0``.
    :param state: whether it is up, being removed or gone.
    :param labels: its placement labels.
    """

    id: int
    address: str
    peer_address: str = ""
    status_address: str = ""
    version: str = ""
    state: StoreState = StoreState.UP
    removed: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, store: metapb_pb2.Store) -> Store:
        """Read PD's message."""
        return cls(
            id=store.id,
            address=store.address,
            peer_address=store.peer_address,
            status_address=store.status_address,
            version=store.version,
            state=StoreState(store.state),
            removed=store.node_state == NODE_STATE_REMOVED,
            labels={label.key: label.value for label in store.labels},
        )

    @property
    def data_address(self) -> str:
        """Where backup and import calls go."""
        return self.peer_address or self.address

    @property
    def is_up(self) -> bool:
        """Whether it takes part in jobs."""
        return self.state is StoreState.UP and not self.removed

    @property
    def is_tiflash(self) -> bool:
        """Whether it is a TiFlash node, which holds no raw data."""
        return self.labels.get("engine") in TIFLASH_ENGINES


@dataclass(frozen=True, slots=True)
class Peer:
    """One copy of a region on one store."""

    id: int
    store_id: int
    role: int = 0

    @classmethod
    def of(cls, peer: metapb_pb2.Peer) -> Peer:
        """Read PD's or TiKV's message."""
        return cls(peer.id, peer.store_id, peer.role)

    def message(self) -> metapb_pb2.Peer:
        """The message for a request context."""
        return metapb_pb2.Peer(id=self.id, store_id=self.store_id, role=self.role)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region: a range of region keys, kept by some peers, served by its leader.

    :param conf_ver: grows when peers change.
    :param version: grows when the range changes.
    :param leader: the peer that serves it; None while PD knows of none.
    """

    id: int
    start: RegionKey
    end: RegionKey
    conf_ver: int
    version: int
    peers: tuple[Peer, ...]
    leader: Peer | None = None

    @classmethod
    def of(cls, region: metapb_pb2.Region, leader: metapb_pb2.Peer | None = None) -> Region:
        """Read PD's or TiKV's message; a leader without id counts as none."""
        return cls(
            id=region.id,
            start=RegionKey(region.start_key),
            end=RegionKey(region.end_key),
            conf_ver=region.region_epoch.conf_ver,
            version=region.region_epoch.version,
            peers=tuple(Peer.of(p) for p in region.peers),
            leader=Peer.of(leader) if leader is not None and leader.id else None,
        )

    @classmethod
    def of_pd(cls, region: pdpb_pb2.Region) -> Region:
        """Read one entry of a region scan."""
        return cls.of(region.region, region.leader)

    def __repr__(self) -> str:
        return f"Region(id={self.id}, keys={self.keys!r}, epoch={self.version}.{self.conf_ver}, leader={self.leader})"

    @property
    def keys(self) -> KeyRange[RegionKey]:
        """Its range."""
        return KeyRange(self.start, self.end)

    @property
    def epoch(self) -> metapb_pb2.RegionEpoch:
        """Its epoch as a message."""
        return metapb_pb2.RegionEpoch(conf_ver=self.conf_ver, version=self.version)

    def known_leader(self) -> Peer:
        """The leader.

        :raises RegionNotReadyError: PD knows of none.
        """
        if self.leader is None:
            raise RegionNotReadyError(f"region {self.id} has no leader", kind="no_leader", region_id=self.id)
        return self.leader

    def context(self, peer: Peer, api_version: ApiVersion = ApiVersion.V1) -> kvrpcpb_pb2.Context:
        """The request context that addresses this region at one peer."""
        return kvrpcpb_pb2.Context(
            region_id=self.id,
            region_epoch=self.epoch,
            peer=peer.message(),
            api_version=int(api_version.in_context),  # type: ignore[arg-type]
        )
