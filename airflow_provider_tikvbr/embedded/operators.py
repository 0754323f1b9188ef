"""PD's operators: what scattering does to regions, and what PD tells of it afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from airflow_provider_tikvbr.embedded.records import RegionState
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.proto import pdpb_pb2

SCATTER = "scatter-region"
# PD forgets a finished operator after ten minutes (PD, ``pkg/schedule/operator/status_tracker.go``).
KEPT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """What PD does, or did, to one region.

    :param done_at: second since the epoch when it ends.
    """

    region_id: int
    desc: str
    kind: str
    done_at: float


class Operators:
    """Scatters regions and remembers it.

    :param topology: the cluster.
    :param clock: seconds since the epoch.
    :param delay_s: how long an operator is told to be running; the regions have moved from the start.
    """

    def __init__(self, *, topology: Topology, clock: Callable[[], float], delay_s: float = 0.0) -> None:
        self._topology = topology
        self._clock = clock
        self.delay_s = delay_s
        self._operators: dict[int, Operator] = {}

    def status(self, region_id: int) -> tuple[Operator, pdpb_pb2.OperatorStatus] | None:
        """The last operator of a region and where it stands, while PD remembers it."""
        operator = self._operators.get(region_id)
        if operator is None or operator.done_at + KEPT_S < self._clock():
            return None
        running = operator.done_at > self._clock()
        return operator, pdpb_pb2.RUNNING if running else pdpb_pb2.SUCCESS

    def forget(self) -> None:
        """Know of no operator any more, as a new leader of PD."""
        self._operators.clear()

    def scatter(self, region_ids: Iterable[int]) -> list[int]:
        """Spread the peers and the leaders of some regions over the stores that run.

        :return: the ids that no region has, or one that has no leader.
        """
        regions = [(i, self._topology.by_id(i)) for i in region_ids]
        # PD leaves a region alone that has no leader.
        led = {i for i, region in regions if region is not None and self._topology.has_majority(region)}
        found = [region for i, region in regions if region is not None and i in led]
        stores = [s.id for s in self._topology.stores.values() if s.running and s.state == 0]
        if stores:
            peers = Counter(dict.fromkeys(stores, 0))
            leaders = Counter(dict.fromkeys(stores, 0))
            for region in found:
                self._place_peers(region, stores, peers)
                self._place_leader(region, stores, leaders)
        return [i for i, _ in regions if i not in led]

    def _place_peers(self, region: RegionState, stores: list[int], peers: Counter[int]) -> None:
        for store in region.store_ids:
            free = [s for s in stores if region.peer_on(s) is None]
            target = min(free, key=lambda s: (peers[s], s), default=store)
            if peers[target] < peers[store] and not self._topology.is_pinned(region) and not region.merging:
                self._topology.move_peer(region.id, store, target)
        peers.update(region.store_ids)

    def _place_leader(self, region: RegionState, stores: list[int], leaders: Counter[int]) -> None:
        before = region.leader_store_id
        holders = [s for s in region.store_ids if s in stores]
        target = min(holders, key=lambda s: (leaders[s], s), default=before)
        leaders[target] += 1
        if target != before and not self._topology.is_pinned(region):
            self._topology.transfer_leader(region.id, target)
        self._operators[region.id] = Operator(
            region_id=region.id, desc=SCATTER, kind="admin,leader", done_at=self._clock() + self.delay_s
        )
