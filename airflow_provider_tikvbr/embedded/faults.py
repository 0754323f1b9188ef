"""The faults of one cluster: rules that strike calls, messages of streams and files in storage, alike for a seed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.fault_answers import region_error, regions_of
from airflow_provider_tikvbr.embedded.fault_rules import KINDS, Kind, Place, Rule
from airflow_provider_tikvbr.embedded.topology import Topology
from airflow_provider_tikvbr.proto import errorpb_pb2
from airflow_provider_tikvbr.proto.methods import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a fault may strike.

    :param place: what it is.
    :param name: path of a gRPC method, or an HTTP request such as ``GET /pd/api/v1/stores``.
    :param store_id: the store that serves, if one does.
    :param pd_member: name of the member of PD that serves, if one does.
    :param about: the message that says which regions it concerns, or the region's number.
    :param file: name of the file that is written or read.
    :param messages: how many messages of the stream have passed.
    """

    place: Place
    name: str
    store_id: int | None = None
    pd_member: str = ""
    about: Message | int | None = None
    file: str = ""
    messages: int = 0


@dataclass(frozen=True, slots=True)
class Strike:
    """A rule that strikes now, and the chance by which it decides what else there is to decide."""

    rule: Rule
    chance: random.Random


class Faults:
    """The rules of one cluster.

    What a rule decides at its n-th call depends on the seed, on its number among the rules and on n alone.

    :param clock: seconds, for rules that strike for a time only.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.topology: Topology | None = None
        self._clock = clock
        self._seed = 0
        self._added = 0
        self._rules: tuple[Rule, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- rules ---

    @property
    def rules(self) -> Sequence[Rule]:
        """Those that are there, in the order in which they strike."""
        return self._rules

    def seed(self, seed: int) -> None:
        """Let everything that is left to chance come from a number from now on; what rules have counted starts anew."""
        self._seed = seed
        for rule in self._rules:
            rule.seen = 0

    def add(self, rule: Rule) -> Rule:
        """Let a rule strike from now on. Of several that could strike, the first one does; delays do not count as one.

        :return: the rule.
        """
        rule.number, self._added = self._added, self._added + 1
        rule.added_at = self._clock()
        self._rules = (*self._rules, rule)
        return rule

    def add_all(self, rules: Iterable[Rule]) -> None:
        """Like :meth:`add`, for some."""
        for rule in rules:
            self.add(rule)

    def fail(
        self,
        method: Method[Any, Any] | str,
        *,
        code: grpc.StatusCode | None = None,
        details: str = "injected fault",
        response: Message | None = None,
        delay_s: float = 0.0,
        times: int | None = 1,
        store_id: int | None = None,
    ) -> Rule:
        """Add the plainest of rules: a status, an answer in the place of the real one, or else a delay."""
        kind = Kind.DELAY if response is None else Kind.ANSWER
        return self.add(
            Rule(
                kind=kind if code is None else Kind.STATUS,
                method=method,
                code=code or grpc.StatusCode.UNAVAILABLE,
                details=details,
                response=response if code is None else None,
                delay_s=delay_s,
                times=times,
                store_id=store_id,
            )
        )

    def clear(self) -> None:
        """Remove every rule, and drop the work that they put off; the next rule is number 0 again.

        What hangs by then hangs on.
        """
        self._rules, self._added = (), 0
        for task in tuple(self._tasks):
            # Rules may be cleared from another thread than the servers'.
            with contextlib.suppress(RuntimeError):
                task.get_loop().call_soon_threadsafe(task.cancel)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Have work done that no client waits for, unless the rules are cleared first."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Its failure has nobody to be told to, and asyncio would complain that nobody asked.
            task.exception()

    async def close(self) -> None:
        """Drop the work that was put off; the rules stay."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- decisions ---

    def strikes(self, event: Event) -> list[Strike]:
        """What strikes now: delays first, then at most one other fault."""
        found: list[Strike] = []
        for rule in self._rules:
            if not (rule.armed and rule.kind in KINDS[event.place] and self._sees(rule, event)):
                continue
            chance = self._decide(rule)
            if chance is None:
                continue
            found.append(Strike(rule, chance))
            if rule.kind not in (Kind.DELAY, Kind.STORAGE_DELAY):
                break
        return found

    def _sees(self, rule: Rule, event: Event) -> bool:
        if event.place is Place.END and rule.messages is None:
            return False
        if event.place in (Place.MESSAGE, Place.END) and rule.messages not in (None, event.messages):
            return False
        return (
            rule.names(event.name)
            and rule.store_id in (None, event.store_id)
            and rule.pd_member in ("", event.pd_member)
            and (event.place is not Place.STORAGE or rule.names_file(event.file))
            and (rule.region_id is None or self._concerns(event.about, rule.region_id))
        )

    def _concerns(self, about: Message | int | None, region_id: int) -> bool:
        if about is None or isinstance(about, int):
            return about == region_id
        return self.topology is not None and any(r.id == region_id for r in regions_of(about, self.topology))

    def _decide(self, rule: Rule) -> random.Random | None:
        elapsed = self._clock() - rule.added_at
        if elapsed < rule.from_s or (rule.until_s is not None and elapsed >= rule.until_s):
            return None
        n, rule.seen = rule.seen, rule.seen + 1
        # A text seeds alike in every process, which a tuple's hash does not.
        chance = random.Random(f"{self._seed}/{rule.number}/{n}")  # noqa: S311  no secret comes from it
        struck = chance.random() < rule.probability
        if n < rule.after or not struck:
            return None
        rule.hits += 1
        return chance

    # --- what is told ---

    def region_error(self, strike: Strike, event: Event, request: Message) -> errorpb_pb2.Error:
        """The region error of a rule, about the region that is concerned."""
        region = None
        if self.topology is not None:
            about = request if event.about is None or isinstance(event.about, int) else event.about
            region = next(regions_of(about, self.topology), None)
        return region_error(strike.rule.error, region=region, store_id=event.store_id, chance=strike.chance)


async def pause(delay_s: float | None) -> None:
    """Wait; None for until somebody ends the task."""
    if delay_s is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(delay_s)
