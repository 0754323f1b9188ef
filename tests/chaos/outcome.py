"""What a run shows, and how one try of one of its jobs has ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from tests.chaos.checks import ClusterState
from tests.chaos.schedule import Schedule
from tests.chaos.world import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """How one try has ended.

    :param kind: ``ok``, ``error``, ``cancelled`` or ``stuck``.
    :param value: what it returned or raised.
    :param notes: what it told people.
    """

    kind: str
    value: Any
    took_s: float
    schedule: Schedule
    storage_hits: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{type(self.value).__name__}: {self.value}"[:1000] if self.kind == "error" else ""
        return f"{self.kind} after {self.took_s:.2f} s under {self.schedule} {text}"


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a run has shown.

    :param findings: what must not be, one sentence each.
    :param counts: what happened how often: faults, events, ends of tries.
    :param log: the whole story.
    :param ports: where the embedded clusters served.
    """

    seed: int
    findings: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    took_s: float = 0.0
    memory_bytes: int = 0
    ports: set[int] = field(default_factory=set)

    def find(self, what: str) -> None:
        """Something is not as it must be."""
        self.findings.append(what)
        self.log.append(f"FINDING {what}")


@dataclass(slots=True)
class Side:
    """A cluster in a run, and what is remembered of it."""

    name: str
    cluster: EmbeddedCluster
    clock: Clock
    before: ClusterState
    keyspace: int
