"""What a job tells its host while it runs: a worker logs it, a terminal draws a bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a step has come.

    :param step: name of the step, such as ``Raw backup`` or ``Raw backup checksum``.
    :param done: units done: regions of a backup, files of a restore.
    :param total: units there are, as far as known; it can grow while regions split.
    :param kvs: pairs done.
    :param bytes: bytes of keys and values done, before compression.
    :param elapsed_s: seconds since the step began.
    :param done_before: of ``done``, what earlier tries had done already.
    :param bytes_before: of ``bytes``, what earlier tries had done already.
    """

    step: str
    done: int
    total: int
    kvs: int
    bytes: int
    elapsed_s: float
    done_before: int = 0
    bytes_before: int = 0

    @property
    def fraction(self) -> float:
        """The part that is done, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0

    @property
    def speed(self) -> float:
        """Bytes per second since the step began."""
        return max(0, self.bytes - self.bytes_before) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds left if it goes on like this; None while nothing is done."""
        if self.fraction >= 1:
            return 0.0
        done = self.done - self.done_before
        return self.elapsed_s * (self.total - self.done) / done if done > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something a person should read.

    :param level: how much it matters.
    :param message: one sentence, free of secrets.
    """

    level: Literal["info", "warning"]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    """What is finished so far is kept: another try will go on from there.

    :param place: where, for people: a URL without secrets.
    :param pieces: finished ranges of a backup, or finished pieces of files of a restore, that this try has saved.
    """

    place: str
    pieces: int


Event = Progress | Note | CheckpointSaved

# Called on the event loop's thread: it must not block, and what it raises ends the job.
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Drop an event: the listener of a job that nobody watches."""
