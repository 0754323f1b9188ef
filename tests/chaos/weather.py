"""What happens to a cluster by itself: leaders move, regions split and move, stores and members of PD come and go."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.tikv.keys import UserKey

#: What may happen to any cluster; ``gone`` is left to those that can do without a store.
KINDS = ("leader", "shuffle", "split", "merge", "move", "scatter", "store", "pd leader", "pd member")
# A port that was given back may be busy for a moment.
PORT_TRIES = 50
PORT_PAUSE_S = 0.1
GONE = "gone"
DEATH = "its machine is lost"


class Weather:
    """Random events until it is told to stop; then every server is up again.

    :param kinds: what may happen.
    :param pace_s: the longest pause between two events.
    :param counts: told what happened.
    """

    def __init__(
        self,
        cluster: EmbeddedCluster,
        *,
        rng: random.Random,
        kinds: tuple[str, ...],
        pace_s: float,
        lasts_s: float,
        counts: Counter[str],
    ) -> None:
        self._cluster = cluster
        self._rng = rng
        self._kinds = kinds
        self._pace_s = pace_s
        self._lasts_s = lasts_s
        self._counts = counts
        self._down: list[int] = []
        self._down_pd: list[int] = []
        self._ending = asyncio.Event()

    async def blow(self) -> None:
        """Let things happen, and put everything right at the end."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._lasts_s
        while not self._ending.is_set() and loop.time() < deadline:
            await self._pause(min(self._rng.random() * self._pace_s, deadline - loop.time()))
            await self._once()
        await self._clear_up()

    def stop(self) -> None:
        """Let nothing more happen."""
        self._ending.set()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._ending.wait(), max(seconds, 0))
        except asyncio.TimeoutError:
            return

    async def _once(self) -> None:
        kind = self._rng.choice(self._kinds)
        try:
            await self._do(kind)
        except ValueError:
            # The topology refuses what cannot be just now, such as moving a region that is at work.
            self._counts[f"weather: {kind} refused"] += 1
        else:
            self._counts[f"weather: {kind}"] += 1

    async def _do(self, kind: str) -> None:
        cluster, rng, topology = self._cluster, self._rng, self._cluster.topology
        region = rng.choice(topology.regions)
        running = [s for s in topology.stores if topology.stores[s].running]
        if kind == "leader":
            self._lead(region.id, rng.choice(region.store_ids))
        elif kind == "shuffle":
            for each in list(topology.regions):
                self._lead(each.id, rng.choice(each.store_ids))
        elif kind == "split":
            cluster.split([UserKey(rng.choice([b"", b"key-", b"\xff", b"1"]) + rng.randbytes(rng.randrange(1, 5)))])
        elif kind == "merge":
            await self._merge(rng.randrange(len(topology.regions)))
        elif kind == "move":
            topology.move_peer(region.id, rng.choice(region.store_ids), rng.choice(running or [0]))
        elif kind == "scatter":
            cluster.scatter()
        elif kind == "store":
            await self._store(running)
        elif kind == GONE:
            await self._lose()
        elif kind == "pd leader":
            await self._elect()
        else:
            await self._member()

    async def _merge(self, at: int) -> None:
        """Merge two neighbours, with the time between its two steps in which no request is served."""
        topology = self._cluster.topology
        neighbour = at + 1 if at + 1 < len(topology.regions) else at - 1
        if neighbour < 0:
            raise ValueError("there is one region only")
        source, target = topology.regions[at].id, topology.regions[neighbour].id
        topology.prepare_merge(source, target)
        await self._pause(self._rng.random() * 0.2)
        try:
            topology.commit_merge(source, target)
        except ValueError:
            topology.rollback_merge(source)
            raise

    def _lead(self, region_id: int, store_id: int) -> None:
        store = self._cluster.topology.stores[store_id]
        if store.running:
            self._cluster.topology.transfer_leader(region_id, store_id)

    async def _store(self, running: list[int]) -> None:
        if self._down and (len(running) <= 1 or self._rng.random() < 0.5):
            await self._start(self._down.pop())
        elif running:
            store_id = self._rng.choice(running)
            self._down.append(store_id)
            await self._cluster.stop_store(store_id)

    async def _start(self, store_id: int) -> None:
        for _ in range(PORT_TRIES):
            if self._cluster.topology.stores[store_id].death:
                return
            try:
                await self._cluster.start_store(store_id)
            except (OSError, RuntimeError):
                await asyncio.sleep(PORT_PAUSE_S)
            else:
                return

    async def _lose(self) -> None:
        """Lose a store for good, but one only, and none whose regions would lose their majority."""
        topology = self._cluster.topology
        found = [s.id for s in topology.stores.values() if s.running]
        if self._down or len(found) < len(topology.stores):
            raise ValueError("a store is down already")
        await self._cluster.kill_store(self._rng.choice(found), DEATH)

    async def _elect(self) -> None:
        members = [at for at in range(len(self._cluster.pd.members)) if at not in self._down_pd]
        if self._rng.random() < 0.5:
            self._cluster.lead_pd(None)
            await self._pause(self._rng.random() * 0.4)
        self._cluster.lead_pd(self._rng.choice(members))

    async def _member(self) -> None:
        members = [at for at in range(len(self._cluster.pd.members)) if at not in self._down_pd]
        at = self._rng.choice(members)
        self._down_pd.append(at)
        await self._cluster.stop_pd(at)
        await self._pause(self._rng.random() * 0.4)
        await self._start_pd(at)

    async def _start_pd(self, at: int) -> None:
        for _ in range(PORT_TRIES):
            try:
                await self._cluster.start_pd(at)
            except OSError:
                await asyncio.sleep(PORT_PAUSE_S)
            else:
                self._down_pd.remove(at)
                return

    async def _clear_up(self) -> None:
        for store_id in self._down:
            await self._start(store_id)
        self._down.clear()
        for at in list(self._down_pd):
            await self._start_pd(at)
        if self._cluster.pd.leader is None:
            self._cluster.lead_pd(0)
