"""Fault schedules: what strikes whom and for how long during one try, drawn from a seed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.fault_answers import PD_ERRORS, REGION_ERRORS
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.exceptions import (
    AuthenticationError,
    BackupFileError,
    ProtocolError,
    RegionError,
    RegionRefusedError,
    StorageError,
    StoreUnavailableError,
    TikvBrError,
    UnsupportedError,
)
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.proto.methods import Method
from tests.chaos.weather import GONE, KINDS, Weather

Errors = tuple[type[TikvBrError], ...]
PASSING_CODES = ("UNAVAILABLE",) * 4 + (
    "DEADLINE_EXCEEDED",
    "CANCELLED",
    "UNKNOWN",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "INTERNAL",
)
PASSING_TEXTS = ("connection reset by peer", "put object timeout", "SlowDown", "ServiceUnavailable")
PASSING_HTTP = (500, 502, 503, 429)
# Region errors that the same request would meet again.
LASTING_REGION_ERRORS = frozenset({"key_not_in_region", "raft_entry_too_large", "disk_full", "flashback_not_prepared"})
LASTING_PD_ERRORS: Errors = (ProtocolError, UnsupportedError, RegionError, StoreUnavailableError)
PASSING_PD_ERRORS = frozenset({"UNKNOWN", "NOT_BOOTSTRAPPED", "REGION_NOT_FOUND"})
# Failures that last, and what a job may then say.
LASTING_CODES: dict[str, Errors] = {
    "UNAUTHENTICATED": (AuthenticationError,),
    "PERMISSION_DENIED": (AuthenticationError,),
    "UNIMPLEMENTED": (UnsupportedError,),
    "DATA_LOSS": (ProtocolError,),
}
LASTING_STORAGE: dict[Kind, Errors] = {
    Kind.STORAGE_ACCESS_DENIED: (AuthenticationError, StorageError),
    Kind.STORAGE_NOT_FOUND: (StorageError, BackupFileError),
    Kind.STORAGE_DISK_FULL: (StorageError,),
    Kind.STORAGE_TRUNCATED: (BackupFileError,),
    Kind.STORAGE_CORRUPT: (BackupFileError,),
}

PD_CALLS: tuple[Method[Any, Any], ...] = (
    methods.PD_GET_MEMBERS,
    methods.PD_GET_ALL_STORES,
    methods.PD_GET_ALL_STORES,
    methods.PD_SCAN_REGIONS,
    methods.PD_SCAN_REGIONS,
    methods.PD_GET_REGION,
    methods.PD_GET_REGION_BY_ID,
)
CALLS: dict[str, tuple[Method[Any, Any], ...]] = {
    "backup": (methods.PD_UPDATE_SERVICE_GC_SAFE_POINT, methods.PD_GET_GC_SAFE_POINT, methods.KV_RAW_CHECKSUM),
    "checksum": (methods.KV_RAW_CHECKSUM,) * 4,
    "restore": (
        *(methods.IMPORT_DOWNLOAD,) * 3,
        *(methods.IMPORT_MULTI_INGEST,) * 3,
        methods.IMPORT_INGEST,
        methods.KV_SPLIT_REGION,
        methods.PD_SCATTER_REGION,
        methods.PD_GET_OPERATOR,
        methods.IMPORT_SWITCH_MODE,
        methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT,
        methods.KV_RAW_SCAN,
        methods.KV_RAW_CHECKSUM,
    ),
}
STREAMS: dict[str, tuple[Method[Any, Any], ...]] = {
    "backup": (*(methods.BACKUP,) * 4, methods.PD_TSO),
    "checksum": (methods.BACKUP,),
    "restore": (methods.PD_TSO,),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule, and the errors that it is a reason for."""

    rule: Rule
    excuses: Errors = ()

    def __str__(self) -> str:
        rule = self.rule
        method = rule.method if isinstance(rule.method, str) else rule.method.name
        more = rule.error or (rule.code.name if rule.kind in (Kind.STATUS, Kind.LOST, Kind.RESET) else "")
        where = "".join(
            f" {name} {value}" for name, value in (("store", rule.store_id), ("region", rule.region_id)) if value
        )
        return f"{rule.kind}{f' {more}' if more else ''} of {method}{where} p={rule.probability:g} hits={rule.hits}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What happens to a cluster during one try.

    :param lasts_s: seconds after which everything is well again.
    :param weather: kinds of events that happen by themselves.
    """

    lasts_s: float = 0.0
    seed: int = 0
    faults: Sequence[Fault] = ()
    weather: tuple[str, ...] = ()
    pace_s: float = 1.0

    @classmethod
    def draw(cls, rng: random.Random, what: str, cluster: EmbeddedCluster) -> Schedule:
        """Draw one.

        :param what: the phase: ``backup``, ``checksum`` or ``restore``.
        """
        lasts_s = rng.choice([0.2, 0.5, 1.0, 1.5])
        artist = _Artist(rng, what, cluster, lasts_s)
        faults = [artist.fault() for _ in range(rng.choice([0, 1, 2, 3, 4, 6]))]
        if rng.random() < 0.4:
            # So that there is something going on for as long as the schedule lasts.
            faults.append(artist.burden())
        weather = tuple(k for k in KINDS if rng.random() < 0.3) if rng.random() < 0.5 or not faults else ()
        seed = rng.getrandbits(32)
        # Beside the stream of chance of all else.
        if random.Random(seed).random() < 0.2 and _can_lose_a_store(what, cluster):
            weather = (*weather, GONE)
        return cls(
            lasts_s=lasts_s,
            seed=seed,
            faults=faults,
            weather=weather,
            pace_s=rng.choice([0.01, 0.03, 0.1, 0.3]),
        )

    def excuses(self, error: TikvBrError) -> bool:
        """Whether a try may fail like this under it: a fault for good has struck, and the error is of its kind."""
        return any(fault.rule.hits and isinstance(error, fault.excuses) for fault in self.faults)

    def came_late(self, method: Method[Any, Any] | None) -> bool:
        """Whether a call was carried out after it had ended for its client, perhaps after a later call that undoes it."""
        return any(
            fault.rule.kind is Kind.LATE and fault.rule.hits and fault.rule.method is method for fault in self.faults
        )

    @asynccontextmanager
    async def playing(self, cluster: EmbeddedCluster, counts: Counter[str]) -> AsyncIterator[None]:
        """Let it happen while the block runs; at the end everything is well again."""
        faults = cluster.faults
        faults.clear()
        faults.seed(self.seed)
        faults.add_all(fault.rule for fault in self.faults)
        storm: asyncio.Task[None] | None = None
        weather: Weather | None = None
        if self.weather:
            rng = random.Random(self.seed)
            weather = Weather(
                cluster, rng=rng, kinds=self.weather, pace_s=self.pace_s, lasts_s=self.lasts_s, counts=counts
            )
            storm = asyncio.create_task(weather.blow())
        try:
            yield
        finally:
            if weather is not None and storm is not None:
                weather.stop()
                await storm
            faults.clear()
            for fault in self.faults:
                method = fault.rule.method
                name = method if isinstance(method, str) else method.name
                if fault.rule.hits:
                    counts[f"fault: {fault.rule.kind} {fault.rule.error or name}"] += fault.rule.hits

    def __str__(self) -> str:
        if not self.faults and not self.weather:
            return "fine weather"
        parts = [*map(str, self.faults), *([f"weather of {', '.join(self.weather)}"] if self.weather else [])]
        return f"[{'; '.join(parts)}] for {self.lasts_s:g} s"


CALM = Schedule()


def _can_lose_a_store(what: str, cluster: EmbeddedCluster) -> bool:
    """Whether all data are still there without any one store, and writes have somewhere to go."""
    topology = cluster.topology
    replicas = min(len(region.peers) for region in topology.regions)
    # PD replaces the peers where there is a store for them; until then nothing can be ingested.
    enough = what != "restore" or len(topology.stores) > replicas
    return replicas >= 3 and enough and all(s.running for s in topology.stores.values())


class _Artist:
    """Draws faults for one try."""

    def __init__(self, rng: random.Random, what: str, cluster: EmbeddedCluster, lasts_s: float) -> None:
        self._rng = rng
        self._what = what
        self._cluster = cluster
        self._lasts_s = lasts_s
        self._lasting = rng.random() < 0.15

    def fault(self) -> Fault:
        """Draw one fault."""
        makers: list[tuple[int, Callable[[], Fault]]] = [
            (4, self._status),
            (4, self._region_error),
            (2, self._pd_error),
            (2, self._text_error),
            (2, self._delay),
            (3, self._twisted),
            (2, self._hang),
            (4 if self._what == "backup" else 1, self._stream),
            (4, self._storage),
            (2, self._http),
        ]
        weights, functions = zip(*makers, strict=True)
        make = self._rng.choices(functions, weights)[0]
        fault: Fault = make()
        return fault

    def burden(self) -> Fault:
        """Let the work itself take its time, as it does with real data."""
        where = methods.IMPORT_DOWNLOAD if self._what == "restore" else methods.BACKUP
        delay_s = self._rng.choice([0.02, 0.05, 0.1])
        return Fault(Rule(kind=Kind.STORAGE_DELAY, method=where, delay_s=delay_s, until_s=self._lasts_s))

    def _rule(self, kind: Kind, method: Method[Any, Any] | str, **settings: Any) -> Rule:
        rng, topology = self._rng, self._cluster.topology
        settings.setdefault("probability", rng.choice([0.1, 0.3, 0.5, 0.8, 1.0]))
        if rng.random() < 0.2 and not isinstance(method, str) and method not in PD_CALLS:
            settings.setdefault("store_id", rng.choice(list(topology.stores)))
        if rng.random() < 0.1 and kind is Kind.REGION_ERROR:
            settings.setdefault("region_id", rng.choice(topology.regions).id)
        if rng.random() < 0.3:
            settings.setdefault("times", rng.choice([1, 2, 5]))
        if rng.random() < 0.2:
            settings.setdefault("after", rng.choice([1, 3, 10]))
        return Rule(kind=kind, method=method, until_s=self._lasts_s, **settings)

    def _call(self) -> Method[Any, Any]:
        return self._rng.choice([*CALLS[self._what], *CALLS[self._what], *PD_CALLS])

    def _anywhere(self, other: Method[Any, Any]) -> Method[Any, Any] | str:
        found: list[Method[Any, Any] | str] = ["*", self._call(), self._call(), other]
        return self._rng.choice(found)

    def _status(self) -> Fault:
        where = self._anywhere(self._stream_method())
        if self._lasting:
            code = self._rng.choice(sorted(LASTING_CODES))
            return Fault(self._rule(Kind.STATUS, where, code=grpc.StatusCode[code]), LASTING_CODES[code])
        code = self._rng.choice(PASSING_CODES)
        return Fault(self._rule(Kind.STATUS, where, code=grpc.StatusCode[code]))

    def _region_error(self) -> Fault:
        error = self._rng.choice([e for e in REGION_ERRORS if (e in LASTING_REGION_ERRORS) == self._lasting])
        where: dict[str, tuple[Method[Any, Any] | str, ...]] = {
            "backup": (methods.BACKUP, methods.BACKUP, "*"),
            "checksum": (methods.KV_RAW_CHECKSUM, "*"),
            "restore": (methods.IMPORT_MULTI_INGEST, methods.IMPORT_MULTI_INGEST, methods.KV_SPLIT_REGION, "*"),
        }
        rule = self._rule(Kind.REGION_ERROR, self._rng.choice(where[self._what]), error=error)
        return Fault(rule, (RegionRefusedError,) if self._lasting else ())

    def _pd_error(self) -> Fault:
        error = self._rng.choice([e for e in PD_ERRORS if (e in PASSING_PD_ERRORS) != self._lasting])
        where: list[Method[Any, Any] | str] = ["*", *PD_CALLS, methods.PD_TSO]
        if error == "REGION_NOT_FOUND":
            where = [methods.PD_GET_REGION, methods.PD_GET_REGION_BY_ID, methods.PD_GET_OPERATOR]
        rule = self._rule(Kind.PD_ERROR, self._rng.choice(where), error=error)
        return Fault(rule, LASTING_PD_ERRORS if self._lasting else ())

    def _text_error(self) -> Fault:
        where = methods.IMPORT_DOWNLOAD if self._what == "restore" else methods.BACKUP
        if self._lasting and where is methods.BACKUP:
            return Fault(self._rule(Kind.TEXT_ERROR, where, details="something odd"), (StorageError,))
        return Fault(self._rule(Kind.TEXT_ERROR, where, details=self._rng.choice(PASSING_TEXTS)))

    def _delay(self) -> Fault:
        kind = self._rng.choice([Kind.DELAY, Kind.SLOW])
        where = self._anywhere(self._call())
        return Fault(self._rule(kind, where, delay_s=self._rng.random() * self._rng.choice([0.02, 0.1, 0.4])))

    def _twisted(self) -> Fault:
        kind = self._rng.choice([Kind.LOST, Kind.LOST, Kind.LATE, Kind.DUPLICATE, Kind.STALE])
        where: Method[Any, Any] = self._rng.choice(PD_CALLS) if kind is Kind.STALE else self._call()
        settings: dict[str, Any] = {"delay_s": self._rng.random() * 0.3} if kind is Kind.LATE else {}
        return Fault(self._rule(kind, where, **settings))

    def _hang(self) -> Fault:
        where = self._rng.choice([self._call(), self._stream_method()])
        return Fault(self._rule(Kind.HANG, where, times=1, delay_s=self._rng.choice([0.5, 2.0])))

    def _stream_method(self) -> Method[Any, Any]:
        return self._rng.choice(STREAMS[self._what])

    def _stream(self) -> Fault:
        kind = self._rng.choice([Kind.RESET, Kind.CUT, Kind.DROP, Kind.DUPLICATE, Kind.SLOW, Kind.SILENT])
        settings: dict[str, Any] = {}
        if kind is Kind.SLOW:
            settings["delay_s"] = self._rng.random() * 0.1
        if kind is Kind.SILENT:
            settings |= {"times": 1, "delay_s": self._rng.choice([0.5, 3.0])}
        if kind in (Kind.RESET, Kind.CUT, Kind.SILENT) and self._rng.random() < 0.5:
            settings["messages"] = self._rng.randrange(6)
        return Fault(self._rule(kind, self._stream_method(), **settings))

    def _storage(self) -> Fault:
        where = methods.IMPORT_DOWNLOAD if self._what == "restore" else methods.BACKUP
        if self._lasting:
            kinds = sorted(LASTING_STORAGE)
            if where is methods.BACKUP:
                # Nobody can see it before the files are read.
                kinds.remove(Kind.STORAGE_CORRUPT)
            kind = self._rng.choice(kinds)
            return Fault(self._rule(kind, where), LASTING_STORAGE[kind])
        kind = self._rng.choice(
            [Kind.STORAGE_SLOW_DOWN, Kind.STORAGE_503, Kind.STORAGE_UNREACHABLE, Kind.STORAGE_DELAY]
        )
        settings = {"delay_s": self._rng.random() * 0.2} if kind is Kind.STORAGE_DELAY else {}
        return Fault(self._rule(kind, where, **settings))

    def _http(self) -> Fault:
        kind = self._rng.choice(
            [Kind.STATUS, Kind.STATUS, Kind.DELAY, Kind.LOST, Kind.HANG, Kind.RESET, Kind.DUPLICATE]
        )
        pattern = self._rng.choice(["* /pd/*", "POST *", "GET *", "* /pd/api/v1/sch*", "* /config"])
        settings: dict[str, Any] = {"status": self._rng.choice(PASSING_HTTP)}
        if kind in (Kind.DELAY, Kind.HANG):
            settings |= {"delay_s": self._rng.random() * 0.5, "times": 2}
        return Fault(self._rule(kind, pattern, **settings))
