"""What the embedded cluster knows of one peer, one region, one store and of itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.proto import metapb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, RegionKey

# ``metapb.NodeState``: a store that is gone.
NODE_REMOVED = 3


@dataclass(frozen=True, slots=True)
class PeerState:
    """One copy of a region: its own id, and the store that holds it."""

    id: int
    store_id: int

    def message(self) -> metapb_pb2.Peer:
        """As PD and TiKV tell it."""
        return metapb_pb2.Peer(id=self.id, store_id=self.store_id)


@dataclass(slots=True, kw_only=True)
class RegionState:
    """One region as it is now; it changes in place.

    :param conf_ver: grows when peers change.
    :param version: grows when the range changes.
    :param merging: whether it is about to become part of a neighbour.
    """

    id: int
    start: RegionKey
    end: RegionKey
    conf_ver: int
    version: int
    peers: list[PeerState]
    leader_store_id: int
    merging: bool = False

    @property
    def keys(self) -> KeyRange[RegionKey]:
        """Its range."""
        return KeyRange(self.start, self.end)

    @property
    def leader(self) -> PeerState:
        """The peer that leads it."""
        return next(p for p in self.peers if p.store_id == self.leader_store_id)

    @property
    def store_ids(self) -> list[int]:
        """The stores that hold a peer."""
        return [p.store_id for p in self.peers]

    def led_by(self, store_id: int) -> bool:
        """Whether the peer on that store is the leader."""
        return self.leader_store_id == store_id

    def peer_on(self, store_id: int) -> PeerState | None:
        """The peer on a store, if it has one there."""
        return next((p for p in self.peers if p.store_id == store_id), None)

    def epoch(self) -> metapb_pb2.RegionEpoch:
        """Its epoch as PD and TiKV tell it."""
        return metapb_pb2.RegionEpoch(conf_ver=self.conf_ver, version=self.version)

    def message(self) -> metapb_pb2.Region:
        """As PD and TiKV tell it."""
        return metapb_pb2.Region(
            id=self.id,
            start_key=self.start,
            end_key=self.end,
            region_epoch=self.epoch(),
            peers=[p.message() for p in self.peers],
        )

    def to_json(self) -> dict[str, Any]:
        """For the data directory."""
        return {
            "start": self.start.hex(),
            "end": self.end.hex(),
            "conf_ver": self.conf_ver,
            "version": self.version,
            "peers": [[p.id, p.store_id] for p in self.peers],
            "leader": self.leader_store_id,
        }

    @classmethod
    def from_json(cls, region_id: int, value: Mapping[str, Any]) -> RegionState:
        """From the data directory."""
        return cls(
            id=region_id,
            start=RegionKey(bytes.fromhex(value["start"])),
            end=RegionKey(bytes.fromhex(value["end"])),
            conf_ver=value["conf_ver"],
            version=value["version"],
            peers=[PeerState(*p) for p in value["peers"]],
            leader_store_id=value["leader"],
        )


@dataclass(slots=True, kw_only=True)
class StoreRecord:
    """One store as PD knows it.

    :param address: where it listens, and what it advertises unless ``advertised`` says otherwise.
    :param advertised: what it advertises instead; the same for its status server.
    :param running: whether it serves just now.
    :param api_version: what its status server tells, if that is not the cluster's.
    :param death: why it can never start again, or empty.
    :param state: number of ``metapb.StoreState``: 0 up, 1 offline, 2 tombstone.
    :param last_heartbeat: when it was last heard of, in nanoseconds since the epoch, while it is down.
    :param disk_full: whether its disk has no space left.
    """

    id: int
    version: str
    address: str = ""
    status_address: str = ""
    advertised: str = ""
    advertised_status: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    state: int = 0
    node_state: int = 1
    start_timestamp: int = 0
    last_heartbeat: int = 0
    running: bool = False
    api_version: ApiVersion | None = None
    death: str = ""
    disk_full: bool = False

    def message(self) -> metapb_pb2.Store:
        """As PD tells it."""
        return metapb_pb2.Store(
            id=self.id,
            address=self.advertised or self.address,
            peer_address=self.advertised or self.address,
            status_address=self.advertised_status or self.status_address,
            state=self.state,  # type: ignore[arg-type]
            node_state=self.node_state,  # type: ignore[arg-type]
            labels=[metapb_pb2.StoreLabel(key=k, value=v) for k, v in self.labels.items()],
            version=self.version,
            start_timestamp=self.start_timestamp,
            deploy_path="embedded",
            last_heartbeat=time.time_ns() if self.running else self.last_heartbeat,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes a cluster the one it is; it never changes.

    :param stores: how many stores it has.
    :param replicas: how many peers a region has.
    """

    cluster_id: int
    api_version: ApiVersion
    stores: int
    replicas: int

    def check(self, saved: Mapping[str, Any], *, given_id: int | None) -> Identity:
        """The identity that a data directory holds, if it is the one that is wanted.

        :param given_id: the cluster's id, if one was asked for.
        :raises InvalidOptionError: it is another kind of cluster.
        """
        found = Identity(
            cluster_id=saved["cluster_id"],
            api_version=ApiVersion(saved["api_version"]),
            stores=saved["stores"],
            replicas=saved["replicas"],
        )
        names = ["api_version", "stores", "replicas", *(["cluster_id"] if given_id else [])]
        for name in names:
            was, now = getattr(found, name), getattr(self, name)
            if was != now:
                shown = (was.name, now.name) if isinstance(was, ApiVersion) else (was, now)
                raise InvalidOptionError(
                    f"the data directory holds a cluster with {name}={shown[0]}, not {shown[1]}: "
                    f"give {name}={shown[0]} or another directory",
                    parameter=name,
                )
        return found
