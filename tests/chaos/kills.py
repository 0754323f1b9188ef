"""``python -m tests.chaos.kills``: kill -9 at random instants what does a job, and let others go on with it."""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import multiprocessing
import multiprocessing.context
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.proto.methods import Method
from tests.chaos import checks
from tests.chaos.campaign import Run
from tests.chaos.isolation import quiet
from tests.chaos.outcome import Outcome, Side, Tried
from tests.chaos.report import say, sum_up, tell
from tests.chaos.schedule import CALM
from tests.chaos.world import dump, make_world, rng_of

FACES = ("command", "worker", "triggerer")
MOST_KILLS = 3
POLL_S = 0.01
# What a try that nobody kills may take.
LIMIT_S = 60.0


def start_zygote() -> multiprocessing.context.ForkServerContext:
    """The process that all others are forked from; it has imported everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.faces"])
    return context


@functools.cache
def _own_zygote() -> multiprocessing.context.ForkServerContext:
    return start_zygote()


class KillRun(Run):
    """One run whose jobs are killed.

    :param face: who does them: ``command``, ``worker`` or ``triggerer``.
    """

    def __init__(self, seed: int, root: Path, face: str, context: multiprocessing.context.ForkServerContext) -> None:
        super().__init__(seed, root)
        self.kills = 0
        self._face = face
        self._context = context
        self._logs = root / f"{seed}.log"

    def make_world(self) -> None:
        """A world with something to do, in which each job has to succeed in the end."""
        seed = self._seed
        while len((world := make_world(seed)).wanted) < 20:
            seed += 1_000_000
        quiet = replace(world.restore, checksum=world.restore.checksum and not world.dirty)
        self.world = replace(world, restore=quiet)

    async def _backup(self, source: Side) -> bool:
        def after(tried: Tried) -> None:
            # A process that is gone cannot take its lock away.
            self._lock_may_be_left = tried.kind == "killed"
            self._check_place(tried)

        return await self._tries("backup", source, self._backup_options(), after)

    async def _checksum(self, source: Side) -> None:
        """It changes nothing, so that there is nothing to go on with."""

    async def _restore(self, target: Side) -> None:
        before = dump(target.cluster)

        def after(tried: Tried) -> None:
            self._check_target(target, tried, before, must_differ=False)

        await self._tries("restore", target, self._restore_options(), after)

    def _backup_options(self) -> dict[str, str]:
        options = self.world.backup
        found = {
            "compression": options.compression.name.lower(),
            "gcttl": f"{options.gc_ttl_s}s",
            "gcttl_from": options.gcttl_from.value,
            "safe_interval": f"{options.safe_interval_s:g}s",
            "checksum": str(options.checksum).lower(),
            "remove_schedulers": str(options.remove_schedulers).lower(),
            **self._common(options.keys.start, options.keys.end, self.world.keyspace, options.rate_limit),
        }
        if options.dst_api_version is not None:
            found["dst_api_version"] = options.dst_api_version.name.lower()
        return found

    def _restore_options(self) -> dict[str, str]:
        options = self.world.restore
        return {
            "checksum": str(options.checksum).lower(),
            "online": str(options.online).lower(),
            "verify_files": options.verify_files.value,
            "concurrency": str(options.concurrency),
            **self._common(options.keys.start, options.keys.end, self.world.dst_keyspace, options.rate_limit),
        }

    def _common(self, start: bytes, end: bytes, keyspace: int, rate: int) -> dict[str, str]:
        cipher = self.world.backup.cipher
        found = {"storage": self._url, "start": start.hex(), "end": end.hex(), "format": "hex", "budget": "30s"}
        if rate:
            found |= {"ratelimit": str(rate), "ratelimit_unit": "1"}
        if keyspace:
            found["keyspace"] = str(keyspace)
        if not cipher.is_plain:
            key_file = self._dir / "cipher.key"
            key_file.write_text(cipher.key.hex())
            found |= {"crypter_method": cipher.method.option, "crypter_key_file": str(key_file)}
        return found

    async def _tries(self, what: str, side: Side, options: dict[str, str], after: Callable[[Tried], None]) -> bool:
        rng = rng_of(self._seed, f"{what} {self._face} kills")
        kills = rng.randrange(1, MOST_KILLS + 1)
        self._cover(f"{self._face} {what}")
        for number in range(1, kills + 2):
            tried = self._judged(what, await self._one(what, side, options, rng, number, kill=number <= kills))
            self.outcome.counts[f"{self._face} {what}: {tried.kind}"] += 1
            self._say(f"{what} {number}: {tried.kind} after {tried.took_s:.2f} s")
            if tried.kind != "killed":
                self._check_leases(what, side, tried)
            after(tried)
            if tried.kind == "ok":
                return True
            if tried.kind != "killed":
                break
        said = self._logs.read_text() if self._logs.exists() else ""
        self.outcome.find(f"{self._face} {what}: it has not gone on after {self.kills} kills: {said[-3000:]}")
        return False

    async def _one(
        self, what: str, side: Side, options: dict[str, str], rng: random.Random, number: int, *, kill: bool
    ) -> Tried:
        faults = side.cluster.faults
        faults.clear()
        first = faults.add(Rule(kind=Kind.DELAY, method=methods.PD_GET_MEMBERS, delay_s=0.0))
        if kill:
            _slow_down(rng, faults.add)
        arguments = (self._face, what, ",".join(side.cluster.pd_addresses), options, self._logs, number)
        started = time.monotonic()
        process = self._context.Process(target=run_face, args=arguments)
        await asyncio.to_thread(process.start)
        kind = "ok"
        try:
            if kill:
                await _until(lambda: first.hits > 0 or not process.is_alive())
                await _until_over(process, rng.random() * rng.choice([0.05, 0.3, 1.0]))
                process.kill()
            await _until_over(process, LIMIT_S)
            if process.is_alive():
                kind = "stuck"
                process.kill()
            await asyncio.to_thread(process.join)
            if kind == "ok" and process.exitcode == -signal.SIGKILL:
                # It may also have ended by itself right before.
                kind = "killed" if kill else "stuck"
                self.kills += kill
            elif kind == "ok" and process.exitcode:
                kind = "error"
        finally:
            faults.clear()
            process.kill()
        await self._let_stores_finish()
        return Tried(kind=kind, value=None, took_s=time.monotonic() - started, schedule=CALM, storage_hits=0, notes=())


def run_face(face: str, what: str, pd: str, options: dict[str, str], log: Path, number: int) -> None:
    """Like its namesake, which is imported by the processes alone: it needs Airflow."""
    from tests.chaos import faces

    faces.run_face(face, what, pd, options, log, number)


def _slow_down(rng: random.Random, add: Callable[[Rule], Rule]) -> None:
    """Give a job so much to wait for that there is an instant in each of its steps."""
    slow: tuple[Method[Any, Any], ...] = (
        methods.IMPORT_DOWNLOAD,
        methods.IMPORT_MULTI_INGEST,
        methods.KV_SPLIT_REGION,
        methods.KV_RAW_CHECKSUM,
        methods.PD_SCAN_REGIONS,
        methods.PD_UPDATE_SERVICE_GC_SAFE_POINT,
    )
    for method in slow:
        if rng.random() < 0.5:
            add(Rule(kind=Kind.DELAY, method=method, delay_s=rng.random() * 0.1))
    add(Rule(kind=Kind.SLOW, method=methods.BACKUP, delay_s=rng.random() * 0.1))


async def _until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happens():
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(POLL_S)


async def _until_over(process: BaseProcess, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while process.is_alive():
        if (left := deadline - time.monotonic()) <= 0:
            return
        await asyncio.sleep(min(POLL_S, left))


def run_kills(
    seed: int, root: Path, face: str, context: multiprocessing.context.ForkServerContext | None = None
) -> tuple[Outcome, int]:
    """Run one seed with one face.

    :param context: made by :func:`start_zygote`; by default this process has one of its own.
    :return: what it has shown, and how many kills there were.
    """
    run = KillRun(seed, root, face, context or _own_zygote())
    with quiet():
        outcome = asyncio.run(run.run())
    outcome.memory_bytes = checks.resident_bytes()
    return outcome, run.kills


def main() -> int:
    """Kill for a while.

    :return: 1 if there is a finding.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many at least (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default %(default)s)")
    parser.add_argument("--face", choices=FACES, help="only this one")
    parser.add_argument("--log", type=Path, help="file for the whole story of every run")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="tikvbr-kills-"))
    prepare_airflow(root / "airflow")
    started = time.monotonic()
    outcomes: list[Outcome] = []
    kills: Counter[str] = Counter()
    took: defaultdict[str, float] = defaultdict(float)
    running: dict[Future[tuple[Outcome, int]], str] = {}
    seeds = itertools.count(args.seed)
    try:
        with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            while True:
                while len(running) < args.jobs and sum(kills.values()) < args.kills:
                    seed = next(seeds)
                    face = args.face or FACES[seed % len(FACES)]
                    running[pool.submit(run_kills, seed, root, face)] = face
                if not running:
                    break
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    face = running.pop(done)
                    outcome, number = done.result()
                    kills[face] += number
                    took[face] += outcome.took_s
                    outcomes.append(outcome)
                    tell(outcome, args.log)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    code = sum_up(outcomes, time.monotonic() - started)
    for face, number in sorted(kills.items()):
        say(f"{number} kills of a {face}, in runs that took {took[face]:.0f} s in all")
    say(f"{sum(kills.values())} kills, seeds {args.seed} to {next(seeds) - 1}")
    return code


def prepare_airflow(home: Path) -> None:
    """Let Airflow live in a directory of its own: it reads its settings when it is first imported."""
    os.environ["AIRFLOW_HOME"] = str(home)
    os.environ["AIRFLOW__CORE__UNIT_TEST_MODE"] = "True"
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"


if __name__ == "__main__":
    sys.exit(main())
