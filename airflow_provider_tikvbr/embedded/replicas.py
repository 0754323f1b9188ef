"""What PD does about stores that are down for long: it gives their peers to other stores.

Source: PD, ``pkg/schedule/checker`` (``replica_checker.go``, ``rule_checker.go``).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from airflow_provider_tikvbr.embedded.pd_service import PlacementDriver
from airflow_provider_tikvbr.embedded.records import NODE_REMOVED, RegionState, StoreRecord
from airflow_provider_tikvbr.embedded.schedule import duration_s

# How often PD looks, in seconds.
PATROL_S = 0.1


class ReplicaChecker:
    """Replaces the peers of dead stores.

    :param pd: what PD knows: its setting ``max-store-down-time`` says how long a store has to be down.
    :param is_up: whether PD runs and has a leader.
    """

    def __init__(self, *, pd: PlacementDriver, is_up: Callable[[], bool]) -> None:
        self._pd = pd
        self._topology = pd.topology
        self._is_up = is_up

    async def run(self) -> None:
        """Look from time to time, until cancelled."""
        while True:
            await asyncio.sleep(PATROL_S)
            self.check()

    def down_stores(self) -> list[int]:
        """The stores that are down for so long that PD gives them up."""
        return [s.id for s in self._topology.stores.values() if is_down(s, self._pd)]

    def check(self) -> int:
        """Replace as many peers as one look may; the data come from a region's leader.

        :return: how many were replaced.
        """
        config = self._pd.config
        if not self._is_up() or str(config.effective("enable-remove-down-replica")).lower() == "false":
            return 0
        down = self.down_stores()
        limit = int(config.effective("replica-schedule-limit"))
        if not down or limit <= 0:
            return 0
        held = Counter(store_id for region in self._topology.regions for store_id in region.store_ids)
        done = 0
        for region in list(self._topology.regions):
            for store_id in set(region.store_ids) & set(down):
                target = self._target(region, held)
                if target is None or done >= limit:
                    continue
                self._topology.move_peer(region.id, store_id, target)
                held[target] += 1
                done += 1
        return done

    def _target(self, region: RegionState, held: Counter[int]) -> int | None:
        """The store that takes a peer of a region, if one can, and the region can change at all now."""
        topology = self._topology
        if region.merging or topology.is_pinned(region) or not topology.has_majority(region):
            return None
        free = [
            s.id
            for s in topology.stores.values()
            if s.running and s.state == 0 and not s.disk_full and region.peer_on(s.id) is None
        ]
        return min(free, key=lambda store_id: (held[store_id], store_id), default=None)


def is_down(store: StoreRecord, pd: PlacementDriver) -> bool:
    """Whether a store is down for longer than PD waits."""
    if store.running or store.state != 0 or store.node_state == NODE_REMOVED:
        return False
    limit_s = duration_s(str(pd.config.effective("max-store-down-time")))
    return pd.topology.clock() - store.last_heartbeat / 1e9 > limit_s
