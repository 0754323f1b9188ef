"""Lets things happen to a cluster while it serves, each at its time: leaders move, stores and PD go away, and the like."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.reshape import choose_merges, shuffle_leaders, split_all, split_one
from airflow_provider_tikvbr.embedded.weather_events import Happening, WeatherEvent, check_places, events_from_json
from airflow_provider_tikvbr.timelimit import within

# What a deed tells of itself, to be read by people; what it wants done later goes through ``Weather._later``.
Deed = Callable[[WeatherEvent, random.Random], Awaitable[str]]


class Entry(NamedTuple):
    """One thing that has happened, or could not.

    :param at_s: when, in seconds from the start.
    :param kind: what.
    :param what: more about it.
    :param refused: whether it could not be.
    """

    at_s: float
    kind: Happening
    what: str
    refused: bool = False


@dataclass(order=True, slots=True)
class _Due:
    at_s: float
    number: int
    do: Callable[[], Awaitable[None]] = field(compare=False)
    undoes: bool = field(compare=False, default=False)


class Weather:
    """The events of one cluster, from the beginning of the block to its end; then all that they took away is back.

    What happens by chance depends on the seed, on the place of the event and on how often it has happened, and on
    nothing else but the state of the cluster. One thing happens at a time. Stores that have died stay dead.

    :param cluster: it runs.
    :param events: what happens, and when.
    :param seed: for all that is left to chance.
    :raises InvalidOptionError: an event names a store or a member of PD that does not exist.
    """

    def __init__(self, cluster: EmbeddedCluster, events: Sequence[WeatherEvent] = (), *, seed: int = 0) -> None:
        check_places(events, stores=list(cluster.topology.stores), pd_members=len(cluster.pd.members))
        self._cluster = cluster
        self._seed = seed
        self._queue: list[_Due] = []
        self._order = itertools.count()
        self._events = 0
        self._started = 0.0
        self._woken = asyncio.Event()
        self._ending = False
        # What is away or full by the weather's doing.
        self._stopped: set[int] = set()
        self._stopped_pd: set[int] = set()
        self._full: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        #: What has happened so far.
        self.log: list[Entry] = []
        self._deeds: dict[Happening, Deed] = {
            Happening.SHUFFLE_LEADERS: self._shuffle_leaders,
            Happening.SPLIT_ALL: self._split_all,
            Happening.SPLIT_SOME: self._split_some,
            Happening.MERGE_SOME: self._merge_some,
            Happening.MOVE_PEERS: self._move_peers,
            Happening.SCATTER: self._scatter,
            Happening.STOP_STORE: self._stop_store,
            Happening.START_STORE: self._start_store,
            Happening.KILL_STORE: self._kill_store,
            Happening.DISK_FULL: self._disk_full,
            Happening.PD_LEADER: self._pd_leader,
            Happening.PD_NO_LEADER: self._pd_no_leader,
            Happening.STOP_PD: self._stop_pd,
            Happening.START_PD: self._start_pd,
            Happening.RESTART_PD: self._restart_pd,
        }
        for event in events:
            self._plan(event, 0.0)

    @classmethod
    def from_json(cls, cluster: EmbeddedCluster, events: object, *, seed: int = 0) -> Weather:
        """The weather of a JSON list of events.

        :raises InvalidOptionError: it is no such list, or an event cannot be.
        """
        return cls(cluster, events_from_json(events), seed=seed)

    # --- life ---

    def start(self) -> None:
        """Let time begin."""
        self._started = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Let the deed that is under way end, and nothing more happen; put right what can be.

        :raises Exception: a deed has failed in a way that it should not.
        """
        self._ending = True
        self._woken.set()
        if self._task is not None:
            task, self._task = self._task, None
            await asyncio.gather(task, return_exceptions=True)
            await self._clear_up()
            task.result()

    async def __aenter__(self) -> Weather:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return asyncio.get_running_loop().time() - self._started

    def add(self, event: WeatherEvent) -> None:
        """Plan one more event, whose times count from now.

        :raises InvalidOptionError: it names a store or a member of PD that does not exist.
        """
        check_places([event], stores=list(self._cluster.topology.stores), pd_members=len(self._cluster.pd.members))
        self._plan(event, self.now_s if self._task is not None else 0.0)
        self._woken.set()

    def _plan(self, event: WeatherEvent, from_s: float) -> None:
        number = self._events
        self._events += 1
        self._repeat(event, number, 0, from_s)

    def _repeat(self, event: WeatherEvent, number: int, count: int, from_s: float) -> None:
        at_s = event.next_s(count)
        if at_s is not None:
            # What was missed meanwhile is not made up for in a rush.
            at_s = max(at_s + from_s, self.log[-1].at_s if count else 0.0)
            self._push(_Due(at_s, next(self._order), lambda: self._happen(event, number, count, from_s)))

    def _push(self, due: _Due) -> None:
        heapq.heappush(self._queue, due)

    def _later(self, seconds: float | None, undo: Callable[[], Awaitable[None]]) -> None:
        """Plan that something is put right; without a time that is left to the end."""
        if seconds is not None:
            self._push(_Due(self.now_s + seconds, next(self._order), undo, undoes=True))

    async def _run(self) -> None:
        while not self._ending:
            self._woken.clear()
            wait_s = self._queue[0].at_s - self.now_s if self._queue else None
            if wait_s is None or wait_s > 0:
                with contextlib.suppress(asyncio.TimeoutError):
                    await within(wait_s, self._woken.wait())
                continue
            await heapq.heappop(self._queue).do()
            # Most deeds wait for nothing, and the servers have to get on too.
            await asyncio.sleep(0)

    async def _happen(self, event: WeatherEvent, number: int, count: int, from_s: float) -> None:
        # A text seeds alike in every process.
        chance = random.Random(f"{self._seed}/{number}/{count}")  # noqa: S311 - it decides what a test meets
        at_s = self.now_s
        try:
            what = await self._deeds[event.kind](event, chance)
        except _RefusedError as err:
            self.log.append(Entry(at_s, event.kind, str(err), refused=True))
        else:
            self.log.append(Entry(at_s, event.kind, what))
        self._repeat(event, number, count + 1, from_s)

    async def _clear_up(self) -> None:
        """Bring back what is away, and end what was begun."""
        for due in sorted(self._queue):
            if due.undoes:
                await due.do()
        self._queue.clear()
        cluster = self._cluster
        for at in sorted(self._stopped_pd):
            await self._up_pd(at)
        await self._elect()
        for store_id in sorted(self._full):
            cluster.fill_disk(store_id, False)
        for store_id in sorted(self._stopped):
            await self._up(store_id)

    # --- regions ---

    async def _shuffle_leaders(self, _event: WeatherEvent, chance: random.Random) -> str:
        return f"{shuffle_leaders(self._cluster.topology, chance)} leaders"

    async def _split_all(self, _event: WeatherEvent, _chance: random.Random) -> str:
        return f"{await split_all(self._cluster)} regions"

    async def _split_some(self, event: WeatherEvent, chance: random.Random) -> str:
        regions = self._cluster.topology.regions
        chosen = chance.sample(list(regions), min(event.count, len(regions)))
        return f"{sum([await split_one(self._cluster, region) for region in chosen])} regions"

    async def _merge_some(self, event: WeatherEvent, chance: random.Random) -> str:
        topology = self._cluster.topology
        pairs = choose_merges(topology, chance, event.count)
        for source, target in pairs:
            topology.prepare_merge(source, target)

        async def commit() -> None:
            for source, target in pairs:
                # A target that has changed since is none any more; the source goes on alone.
                try:
                    topology.commit_merge(source, target)
                except ValueError:
                    continue

        if event.for_s is None:
            await commit()
        else:
            self._later(event.for_s, commit)
        return f"{len(pairs)} regions"

    async def _move_peers(self, event: WeatherEvent, chance: random.Random) -> str:
        topology = self._cluster.topology
        done = 0
        for _ in range(event.count):
            region = chance.choice(list(topology.regions))
            free = [s.id for s in topology.stores.values() if s.running and region.peer_on(s.id) is None]
            if free:
                try:
                    topology.move_peer(region.id, chance.choice(region.store_ids), chance.choice(free))
                except ValueError:
                    continue
                done += 1
        return f"{done} peers"

    async def _scatter(self, _event: WeatherEvent, _chance: random.Random) -> str:
        self._cluster.scatter()
        return ""

    # --- stores ---

    def _store(self, event: WeatherEvent, chance: random.Random, *, up: bool) -> int:
        """The store that an event means, if it is as it has to be for it."""
        stores = self._cluster.topology.stores.values()
        fit = [s.id for s in stores if not s.death and s.running is up and event.store_id in (None, s.id)]
        if not fit:
            raise _RefusedError(f"no such store {'runs' if up else 'is down'}")
        return chance.choice(fit)

    async def _stop_store(self, event: WeatherEvent, chance: random.Random) -> str:
        store_id = self._store(event, chance, up=True)
        try:
            await self._cluster.stop_store(store_id)
        except KeyError:
            raise _RefusedError(f"store {store_id} is dying") from None
        self._stopped.add(store_id)
        self._later(event.for_s, lambda: self._up(store_id))
        return f"store {store_id}"

    async def _start_store(self, event: WeatherEvent, chance: random.Random) -> str:
        store_id = self._store(event, chance, up=False)
        await self._up(store_id)
        return f"store {store_id}"

    async def _up(self, store_id: int) -> None:
        self._stopped.discard(store_id)
        # It may be up already, or dead.
        with contextlib.suppress(RuntimeError):
            await self._cluster.start_store(store_id)

    async def _kill_store(self, event: WeatherEvent, chance: random.Random) -> str:
        store_id = event.store_id or self._store(event, chance, up=True)
        await self._cluster.kill_store(store_id)
        return f"store {store_id}"

    async def _disk_full(self, event: WeatherEvent, chance: random.Random) -> str:
        store_id = event.store_id or self._store(event, chance, up=True)
        self._cluster.fill_disk(store_id)
        self._full.add(store_id)

        async def free() -> None:
            self._full.discard(store_id)
            self._cluster.fill_disk(store_id, False)

        self._later(event.for_s, free)
        return f"store {store_id}"

    # --- PD ---

    def _member(self, event: WeatherEvent, chance: random.Random, *, up: bool) -> int:
        """The member of PD that an event means, if it is as it has to be for it."""
        members = range(len(self._cluster.pd.members))
        fit = [at for at in members if self._cluster.pd_is_up(at) is up and event.member in (None, at)]
        if not fit:
            raise _RefusedError(f"no such member of PD {'runs' if up else 'is down'}")
        return chance.choice(fit)

    async def _pd_leader(self, event: WeatherEvent, chance: random.Random) -> str:
        at = self._member(event, chance, up=True)
        if event.member is None:
            members = range(len(self._cluster.pd.members))
            leader = self._cluster.pd.leader
            others = [m for m in members if self._cluster.pd_is_up(m) and self._cluster.pd.members[m] is not leader]
            at = chance.choice(others) if others else at
        self._cluster.lead_pd(at)
        return f"pd-{at}"

    async def _pd_no_leader(self, event: WeatherEvent, _chance: random.Random) -> str:
        self._cluster.lead_pd(None)
        self._later(event.for_s, self._elect)
        return ""

    async def _elect(self) -> None:
        members = range(len(self._cluster.pd.members))
        up = [at for at in members if self._cluster.pd_is_up(at)]
        if self._cluster.pd.leader is None and 2 * len(up) > len(members):
            self._cluster.lead_pd(up[0])

    async def _stop_pd(self, event: WeatherEvent, chance: random.Random) -> str:
        at = self._member(event, chance, up=True)
        await self._cluster.stop_pd(at)
        self._stopped_pd.add(at)
        self._later(event.for_s, lambda: self._up_pd(at))
        return f"pd-{at}"

    async def _start_pd(self, event: WeatherEvent, chance: random.Random) -> str:
        at = self._member(event, chance, up=False)
        await self._up_pd(at)
        return f"pd-{at}"

    async def _up_pd(self, at: int) -> None:
        self._stopped_pd.discard(at)
        if not self._cluster.pd_is_up(at):
            await self._cluster.start_pd(at)

    async def _restart_pd(self, event: WeatherEvent, _chance: random.Random) -> str:
        up = [at for at in range(len(self._cluster.pd.members)) if self._cluster.pd_is_up(at)]
        for at in up:
            await self._cluster.stop_pd(at)
            self._stopped_pd.add(at)

        async def back() -> None:
            for at in up:
                await self._up_pd(at)

        if event.for_s is None:
            await back()
        else:
            self._later(event.for_s, back)
        return f"{len(up)} members"


class _RefusedError(Exception):
    """It cannot be just now."""
