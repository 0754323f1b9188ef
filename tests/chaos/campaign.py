"""One run: a backup, a comparison and a restore under fault schedules, tried again as Airflow would, and checked."""

from __future__ import annotations

import asyncio
import io
import os
import random
import shutil
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from airflow_provider_tikvbr.exceptions import (
    ChecksumMismatchError,
    StorageUnavailableError,
    TikvBrError,
)
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.checksum import verify_backup
from airflow_provider_tikvbr.rawbr.events import CheckpointSaved, Event, Note, Progress
from airflow_provider_tikvbr.rawbr.options import ChecksumOptions
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.rawbr.summary import ChecksumSummary, RestoreSummary
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from tests.chaos import checks
from tests.chaos.flaky import FlakyStorage
from tests.chaos.outcome import Outcome, Side, Tried
from tests.chaos.schedule import CALM, Schedule
from tests.chaos.weather import DEATH
from tests.chaos.world import (
    BUDGET_S,
    Pairs,
    World,
    checksum_of,
    dump,
    fill,
    make_world,
    rng_of,
    start_cluster,
    with_cipher,
)

# The last try of a phase is made in fine weather, and has to succeed.
TRIES = 4
CANCEL_LIMIT_S = 5.5
# After so many passes of the loop a cancellation has come to everything that the job has under way.
CANCEL_PASSES = 100
# What a try may take beside its schedule and its budget.
SPARE_S = 10.0
# By then everything that a job holds by a lease is over.
LEASE_S = 700.0
LOCK = "backup.lock"
PARTIAL = "tikvbr-tmp"
LEFT_BEHIND = "is left behind"


class Run:
    """One run of one seed.

    :param seed: draws the world, the schedules and everything else.
    :param root: where it may write.
    :param faults: whether there are any.
    """

    def __init__(self, seed: int, root: Path, *, faults: bool = True) -> None:
        self.outcome = Outcome(seed=seed)
        self._seed = seed
        self.make_world()
        self._faults = faults
        self._dir = root / str(seed)
        self._place = self._dir / "backup"
        self._url = f"local://{self._place}"
        self._notes: list[str] = []
        self._latest: Progress | None = None
        self._lock_may_be_left = False

    def make_world(self) -> None:
        """Draw the world."""
        self.world: World = make_world(self._seed)

    async def run(self) -> Outcome:
        """Run it."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_error)
        self._say(str(self.world))
        self._dir.mkdir(parents=True)
        try:
            await self._run()
        except Exception:
            self.outcome.find(f"the run broke: {traceback.format_exc()}")
        finally:
            await asyncio.to_thread(shutil.rmtree, self._dir, ignore_errors=True)
            # gRPC holds the loop for longer than this run is to be held.
            loop.set_exception_handler(None)
        if channels := checks.open_channels():
            self.outcome.find(f"{len(channels)} gRPC channels are left open")
        self.outcome.took_s = time.monotonic() - started
        return self.outcome

    def _say(self, what: str) -> None:
        self.outcome.log.append(what)

    def _cover(self, what: str) -> None:
        """Count what kind of job this is."""
        world = self.world
        conversion = f"{world.source.api_version.name} -> {world.target.api_version.name}"
        secrecy = "plain" if world.backup.cipher.is_plain else "encrypted"
        self.outcome.counts[f"job: {what} {conversion}, {secrecy}"] += 1

    def _loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        text = repr(context)
        error = context.get("exception")
        if isinstance(error, BaseException):
            text += "".join(traceback.format_exception(error))
        if "/embedded/" in text or "grpc/aio/_server" in text:
            self.outcome.counts["complaints of the embedded cluster's loop"] += 1
            self._say(f"loop: {text[:1500]}")
        else:
            self.outcome.find(f"asyncio complains: {text[:3000]}")

    def _listen(self, event: Event) -> None:
        if isinstance(event, Note):
            self._notes.append(event.message)
            self._say(f"  {event.level}: {event.message[:600]}")
        elif isinstance(event, CheckpointSaved):
            self.outcome.counts["checkpoint saved"] += 1
        elif isinstance(event, Progress):
            self._latest = event
            if event.done > event.total:
                self.outcome.find(f"progress beyond its end: {event}")

    # --- the phases ---

    async def _run(self) -> None:
        world = self.world
        rng = rng_of(self._seed, "clusters")
        source = await self._side("source", rng, world.keyspace)
        try:
            await fill(source.cluster, world.rows)
            held = dump(source.cluster)
            if not await self._backup(source):
                return
            await self._checksum(source)
            if differs := checks.difference(dump(source.cluster), held):
                self.outcome.find(f"the source has changed: {differs}")
        finally:
            await source.cluster.stop()
        target = await self._side("target", rng, world.dst_keyspace)
        try:
            await fill(target.cluster, world.old_rows)
            await self._restore(target)
        finally:
            await target.cluster.stop()

    async def _side(self, name: str, rng: random.Random, keyspace: int) -> Side:
        shape = self.world.source if name == "source" else self.world.target
        cluster, clock = await start_cluster(shape, self._dir / name, rng)
        stores = cluster.topology.stores.values()
        served = [*cluster.pd_addresses, *(s.address for s in stores), *(s.status_address for s in stores)]
        self.outcome.ports.update(int(address.rpartition(":")[2]) for address in served)
        return Side(name, cluster, clock, checks.ClusterState.of(cluster), keyspace)

    async def _backup(self, source: Side) -> bool:
        async def job(storage: FlakyStorage, cluster: Cluster) -> Any:
            return await backup(cluster, storage, self.world.backup, self._listen)

        def after(tried: Tried) -> None:
            self._check_place(tried)

        done = await self._phase("backup", source, job, after)
        return done is not None and done.kind == "ok"

    def _check_place(self, tried: Tried) -> None:
        """What a try of a backup may leave in its place."""
        there = set(checks.names(self._place))
        told = any(LEFT_BEHIND in note for note in tried.notes)
        self._lock_may_be_left = told or (tried.kind != "ok" and (self._lock_may_be_left or tried.storage_hits > 0))
        if LOCK in there and self._lock_may_be_left:
            # The next try takes it over; what a job has left that succeeded, people have to delete.
            self.outcome.counts["lock left behind by a storage that failed"] += 1
            if tried.kind == "ok":
                (self._place / LOCK).unlink()
            there.remove(LOCK)
        whole = checks.META in there
        if tried.kind == "ok" and not whole:
            self.outcome.find("the backup says that it is done, and there is no backupmeta")
        elif whole:
            # A backup that counts for others, whatever its own fate: every bit of it is there.
            wrong = checks.wrong_in_backup(self._place, self.world, tried.value if tried.kind == "ok" else None)
            for text in wrong:
                if tried.kind == "ok" or not text.startswith("beside the backup"):
                    self.outcome.find(f"backup: {text}")
        if tried.kind != "killed" and (partial := [name for name in there if PARTIAL in name]):
            self.outcome.find(f"backup: unfinished files are left: {partial}")
        if LOCK in there:
            self.outcome.find(f"backup: the lock is left behind ({tried})")

    async def _checksum(self, source: Side) -> None:
        world = self.world
        rng = rng_of(self._seed, "checksum")
        if rng.random() < 0.5 or world.source.version < "6.1.1":
            return
        options = ChecksumOptions(
            keys=world.part if rng.random() < 0.5 else None, cipher=world.backup.cipher, budget_s=BUDGET_S
        )

        async def job(storage: FlakyStorage, cluster: Cluster) -> Any:
            return await verify_backup(cluster, storage, options, self._listen)

        def after(tried: Tried) -> None:
            if tried.kind != "ok":
                return
            found: ChecksumSummary = tried.value
            wanted = checksum_of(world.wanted) if options.keys is None else world.expected
            if found.actual != wanted or found.expected != wanted:
                self.outcome.find(f"the comparison counts wrong: {found.line()} instead of {wanted}")

        await self._phase("checksum", source, job, after)

    async def _restore(self, target: Side) -> None:
        options = with_cipher(self.world)
        before = dump(target.cluster)
        must_differ = options.checksum and self.world.dirty

        async def job(storage: FlakyStorage, cluster: Cluster) -> Any:
            return await restore(cluster, storage, options, self._listen)

        def after(tried: Tried) -> None:
            self._check_target(target, tried, before, must_differ=must_differ)

        await self._phase("restore", target, job, after, end=(ChecksumMismatchError,) if must_differ else ())

    def _check_target(self, target: Side, tried: Tried, before: Pairs, *, must_differ: bool) -> None:
        """What a try of a restore may leave in its target."""
        world = self.world
        found = dump(target.cluster)
        mismatch = tried.kind == "error" and isinstance(tried.value, ChecksumMismatchError)
        if mismatch and not must_differ:
            self.outcome.find(f"restore: the checksum differs and must not: {tried.value}")
        if tried.kind == "ok" and must_differ:
            self.outcome.find("restore: the target holds other pairs, and the checksum has not told so")
        if isinstance(tried.value, RestoreSummary) and tried.value.checksum != world.expected:
            self.outcome.find(f"restore: the summary says {tried.value.checksum} instead of {world.expected}")
        if tried.kind == "ok" or mismatch:
            if differs := checks.difference(found, world.after):
                self.outcome.find(f"restore: the target does not hold what it must: {differs}")
            self._check_no_checkpoint()
        else:
            wrong = [k for k, pair in found.items() if pair not in (world.after.get(k), before.get(k))]
            wrong += [k for k in before if k not in found and k in world.after]
            if wrong:
                self.outcome.find(f"restore: {len(wrong)} pairs are neither as before nor as after: {wrong[:3]}")
        for text in checks.wrong_on_replicas(target.cluster):
            self.outcome.find(f"restore: {text}")

    def _check_no_checkpoint(self) -> None:
        """A restore that is over leaves nothing beside the backup."""
        odd = [n for n in checks.names(self._place) if n != checks.META and not n.endswith(".sst")]
        if odd:
            self.outcome.find(f"restore: beside the backup lie {odd}")

    # --- tries ---

    async def _phase(
        self,
        what: str,
        side: Side,
        job: Callable[[FlakyStorage, Cluster], Awaitable[Any]],
        after: Callable[[Tried], None],
        *,
        end: tuple[type[TikvBrError], ...] = (),
    ) -> Tried | None:
        """Try until it succeeds; the last try is made in fine weather.

        :param end: errors that end it too.
        """
        tried: Tried | None = None
        self._cover(what)
        for number in range(TRIES):
            rng = rng_of(self._seed, f"{what} {number}")
            calm = not self._faults or number == TRIES - 1
            schedule = CALM if calm else Schedule.draw(rng, what, side.cluster)
            tried = self._judged(what, await self._try(what, side, job, schedule, rng, calm=calm))
            self.outcome.counts[f"{what}: {tried.kind}"] += 1
            self._say(f"{what} {number}: {tried}")
            self._check_try(what, side, tried, end)
            after(tried)
            if tried.kind in ("ok", "stuck") or isinstance(tried.value, end):
                break
        if tried is not None and tried.kind != "ok" and not isinstance(tried.value, end):
            self.outcome.find(f"{what}: the last try, in fine weather, has not succeeded: {tried}")
        return tried

    def _judged(self, what: str, tried: Tried) -> Tried:
        """The same, or a success: a backup that was stopped when nothing was left to do but to say so."""
        there = self._left_there()
        unfinished = [name for name in there if name != checks.META and not name.endswith(".sst")]
        if what != "backup" or tried.kind not in ("cancelled", "killed") or checks.META not in there or unfinished:
            return tried
        self.outcome.counts[f"{what}: {tried.kind} when it was done"] += 1
        return replace(tried, kind="ok")

    async def _try(
        self,
        what: str,
        side: Side,
        job: Callable[[FlakyStorage, Cluster], Awaitable[Any]],
        schedule: Schedule,
        rng: random.Random,
        *,
        calm: bool,
    ) -> Tried:
        share = 0.0 if calm else rng.choice([0, 0, 0, 0.1, 0.3])
        storage = FlakyStorage(
            open_storage(self._url), rng=random.Random(rng.random()), share=share, counts=self.outcome.counts
        )
        cancel_s = rng.random() * rng.choice([0.05, 0.2, 0.6]) if not calm and rng.random() < 0.25 else None
        members = list(side.cluster.pd_addresses)
        rng.shuffle(members)
        options = ClusterOptions(pd=tuple(members), keyspace_id=side.keyspace)

        async def work() -> Any:
            async with storage, await Cluster.connect(options) as cluster:
                return await job(storage, cluster)

        self._notes, self._latest = [], None
        before = checks.our_tasks()
        started = time.monotonic()
        async with schedule.playing(side.cluster, self.outcome.counts):
            task = asyncio.ensure_future(work())
            kind, value = await self._await(what, task, cancel_s, schedule.lasts_s + BUDGET_S + SPARE_S)
            took_s = time.monotonic() - started
        await self._let_stores_finish()
        for left in await checks.tasks_left(before):
            self.outcome.find(f"{what}: a task is left: {left}")
        return Tried(
            kind=kind,
            value=value,
            took_s=took_s,
            schedule=schedule,
            storage_hits=storage.hits,
            notes=tuple(self._notes),
        )

    async def _let_stores_finish(self) -> None:
        """Wait until no store writes any more: a real one goes on for a moment after its client has gone, too."""
        deadline = time.monotonic() + checks.GRACE_S
        # The embedded stores write in this process.
        while any(name.endswith(f"-{os.getpid()}.{PARTIAL}") for name in self._left_there()):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(0.01)

    async def _await(
        self, what: str, task: asyncio.Task[Any], cancel_s: float | None, limit_s: float
    ) -> tuple[str, Any]:
        cancelled_at: float | None = None
        at_stop: Progress | None = None
        if cancel_s is not None:
            await asyncio.wait({task}, timeout=cancel_s)
            if not task.done():
                cancelled_at = time.monotonic()
                task.cancel()
                for _ in range(CANCEL_PASSES):
                    await asyncio.sleep(0)
                at_stop = self._latest
        await asyncio.wait({task}, timeout=limit_s)
        if not task.done():
            stacks = io.StringIO()
            for each in checks.our_tasks():
                each.print_stack(file=stacks)
                stacks.write(checks.waits_at(each))
            self.outcome.find(f"{what}: it does not end: {stacks.getvalue()}")
            task.cancel()
            await asyncio.wait({task}, timeout=SPARE_S)
            return "stuck", None
        if cancelled_at is not None and (took_s := time.monotonic() - cancelled_at) > CANCEL_LIMIT_S:
            self.outcome.find(f"{what}: it took {took_s:.1f} s to stop")
        if cancelled_at is not None and self._latest is not at_stop:
            self.outcome.find(f"{what}: it was cancelled at {at_stop}, and went on to {self._latest}")
        if task.cancelled():
            if cancelled_at is None:
                self.outcome.find(f"{what}: it has cancelled itself")
            return "cancelled", None
        if (error := task.exception()) is None:
            if cancelled_at is not None:
                self.outcome.find(f"{what}: it was cancelled, and says that it is done")
            return "ok", task.result()
        if not isinstance(error, TikvBrError) or not str(error).strip():
            self.outcome.find(f"{what}: it raised {''.join(traceback.format_exception(error))}")
        return "error", error

    def _check_try(self, what: str, side: Side, tried: Tried, end: tuple[type[TikvBrError], ...]) -> None:
        if tried.kind == "error" and not isinstance(tried.value, end):
            self.outcome.counts[f"{what}: {type(tried.value).__name__}"] += 1
            storage_failed = tried.storage_hits and isinstance(tried.value, StorageUnavailableError)
            if not storage_failed and not tried.schedule.excuses(tried.value):
                self.outcome.find(f"{what}: it failed although nothing stood in its way for good: {tried}")
        for store in side.cluster.topology.stores.values():
            if store.death and store.death != DEATH:
                self.outcome.find(f"{what}: store {store.id} died: {store.death}")
                store.death = ""
        self._check_leases(what, side, tried)

    def _left_there(self) -> list[str]:
        return checks.names(self._place)

    def _check_leases(self, what: str, side: Side, tried: Tried) -> None:
        state = checks.ClusterState.of(side.cluster)
        if state.settings != side.before.settings:
            self.outcome.find(f"{what}: PD's settings have changed for good")
        told = " | ".join(tried.notes)
        safepoint = "the GC safepoint of the backup"
        for name, left in state.left.items():
            if (
                name == safepoint
                and what == "backup"
                and (tried.kind != "cancelled" or checks.META in self._left_there())
            ):
                # Held for whoever reads changes from there on, or for the next try; it expires, see below.
                continue
            if tried.schedule.came_late(checks.SET_BY.get(name)):
                # No client can take back what has not happened yet: it lasts until its time is over, or until the next try.
                self.outcome.counts["left by a call that came late"] += 1
            elif f"could not end {name}" not in told:
                self.outcome.find(f"{what}: {name} is left: {left} ({tried})")
            else:
                self.outcome.counts["left to expire, as told"] += 1
        if tried.kind in ("ok", "stuck") or isinstance(tried.value, ChecksumMismatchError):
            side.clock.ahead_s += LEASE_S
            rest = set(checks.ClusterState.of(side.cluster).left) - {"import mode", "the download speed limit"}
            if rest:
                self.outcome.find(f"{what}: {rest} do not expire")
