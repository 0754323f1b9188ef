"""What a fault is: where it strikes, when, how often, and what then happens."""

from __future__ import annotations

import enum
import fnmatch
import math
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.fault_answers import PD_ERRORS, REGION_ERRORS, carries
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.proto import methods
from airflow_provider_tikvbr.proto.methods import Method

#: Every gRPC method by its path.
METHODS = {method.path: method for method in vars(methods).values() if isinstance(method, Method)}
#: The calls for which a store writes to backup storage and reads from it.
STORAGE_METHODS = (methods.BACKUP.path, methods.IMPORT_DOWNLOAD.path)


class Kind(str, enum.Enum):
    """What happens to a call, to a message of a stream, or to a file that a store writes or reads."""

    #: The call ends with a status at once, and nothing is done.
    STATUS = "status"
    #: A message stands in for the answer, and nothing is done.
    ANSWER = "answer"
    #: The answer, or one message of a stream, is a region error instead.
    REGION_ERROR = "region_error"
    #: The answer, or one message of a stream, holds an error text instead.
    TEXT_ERROR = "text_error"
    #: The answer holds an error of PD's in its header instead.
    PD_ERROR = "pd_error"
    #: The call waits before anything is done.
    DELAY = "delay"
    #: The answer, or each message of a stream, is held back after the work was done.
    SLOW = "slow"
    #: The work is done, but the client is told a status.
    LOST = "lost"
    #: The client is told a status at once, but the work is done a while later.
    LATE = "late"
    #: The call is carried out twice, or a message of a stream is sent twice.
    DUPLICATE = "duplicate"
    #: PD answers what it answered to the same request when the rule was new.
    STALE = "stale"
    #: No answer, until the client gives up.
    HANG = "hang"
    #: A message of a stream does not arrive.
    DROP = "drop"
    #: A stream breaks.
    RESET = "reset"
    #: A stream ends before its time, and as if nothing were wrong.
    CUT = "cut"
    #: A stream says nothing more.
    SILENT = "silent"
    #: The storage asks for a slower pace (S3's SlowDown).
    STORAGE_SLOW_DOWN = "storage_slow_down"
    #: The storage answers 503.
    STORAGE_503 = "storage_503"
    #: The way to the storage is broken.
    STORAGE_UNREACHABLE = "storage_unreachable"
    #: The storage refuses the credentials.
    STORAGE_ACCESS_DENIED = "storage_access_denied"
    #: The bucket, or the file that is read, is not there.
    STORAGE_NOT_FOUND = "storage_not_found"
    #: There is no space left.
    STORAGE_DISK_FULL = "storage_disk_full"
    #: The file ends early, and nobody is told.
    STORAGE_TRUNCATED = "storage_truncated"
    #: A bit of the file is wrong, and nobody is told.
    STORAGE_CORRUPT = "storage_corrupt"
    #: The storage takes its time.
    STORAGE_DELAY = "storage_delay"

    def __str__(self) -> str:
        return self.value


class Place(enum.Enum):
    """What a fault strikes."""

    CALL = enum.auto()
    STREAM = enum.auto()
    MESSAGE = enum.auto()
    END = enum.auto()
    HTTP = enum.auto()
    STORAGE = enum.auto()


_OF_MESSAGES = frozenset({
    Kind.REGION_ERROR, Kind.TEXT_ERROR, Kind.PD_ERROR, Kind.SLOW, Kind.DUPLICATE,
    Kind.DROP, Kind.RESET, Kind.CUT, Kind.SILENT,
})  # fmt: skip
#: The kinds that each place knows.
KINDS: dict[Place, frozenset[Kind]] = {
    Place.CALL: frozenset({
        Kind.STATUS, Kind.ANSWER, Kind.REGION_ERROR, Kind.TEXT_ERROR, Kind.PD_ERROR, Kind.DELAY, Kind.SLOW,
        Kind.LOST, Kind.LATE, Kind.DUPLICATE, Kind.STALE, Kind.HANG,
    }),
    Place.STREAM: frozenset({Kind.STATUS, Kind.ANSWER, Kind.DELAY, Kind.LOST, Kind.HANG}),
    Place.MESSAGE: _OF_MESSAGES,
    Place.END: _OF_MESSAGES - {Kind.SLOW, Kind.DUPLICATE, Kind.DROP, Kind.CUT},
    Place.HTTP: frozenset({
        Kind.STATUS, Kind.DELAY, Kind.SLOW, Kind.LOST, Kind.LATE, Kind.DUPLICATE, Kind.HANG, Kind.RESET,
    }),
    Place.STORAGE: frozenset(kind for kind in Kind if kind.value.startswith("storage_")),
}  # fmt: skip
_NEED_DELAY = frozenset({Kind.DELAY, Kind.SLOW, Kind.LATE, Kind.STORAGE_DELAY})


@dataclass(slots=True, kw_only=True, eq=False)
class Rule:
    """One fault. What it counts are the calls, messages of streams, or files that it could strike.

    :param kind: what happens.
    :param method: where: a gRPC method; or a pattern (``*``, ``?``) for the path or the bare name of gRPC methods, such as
        ``Raw*``, or for HTTP requests, such as ``POST /pd/api/v1/config``. A fault of the storage strikes what a store
        writes for ``BACKUP`` and what it reads for ``IMPORT_DOWNLOAD``.
    :param store_id: only at this store; None for everywhere.
    :param pd_member: only at this member of PD, by its name; empty for everywhere.
    :param region_id: only what concerns this region; None for all.
    :param file: storage: pattern for the names of files.
    :param after: how many go unharmed first.
    :param times: how many are struck at most; None for all.
    :param probability: of each to be struck, from 0 to 1.
    :param from_s: seconds after the rule was added from which on it strikes.
    :param until_s: seconds after the rule was added until which it strikes; None for no end.
    :param messages: stream: only where this number of messages has passed, once for each stream; None for any message.
    :param error: ``region_error``: a field of ``errorpb.Error``, or ``message`` for an error with a text only;
        ``pd_error``: a name of ``pdpb.ErrorType``.
    :param code: the gRPC status of what ends with one.
    :param status: the HTTP status of what ends with one.
    :param details: the text of the status or error.
    :param response: ``answer``: the message.
    :param delay_s: seconds to wait; for ``hang`` and ``silent`` None stands for no end.
    :raises InvalidOptionError: the values do not belong together.
    """

    kind: Kind
    method: Method[Any, Any] | str = "*"
    store_id: int | None = None
    pd_member: str = ""
    region_id: int | None = None
    file: str = "*"
    after: int = 0
    times: int | None = None
    probability: float = 1.0
    from_s: float = 0.0
    until_s: float | None = None
    messages: int | None = None
    error: str = ""
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    status: int = 503
    details: str = "injected fault"
    response: Message | None = None
    delay_s: float | None = None
    #: How many it has struck.
    hits: int = field(default=0, init=False)
    #: How many it has counted.
    seen: int = field(default=0, init=False)
    #: Its place among the rules of a cluster.
    number: int = field(default=0, init=False)
    #: When it was added, on the clock of the faults.
    added_at: float = field(default=0.0, init=False)
    _paths: frozenset[str] = field(default=frozenset(), init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        self._paths = frozenset(path for path, method in METHODS.items() if self._fits(method))
        if not self._paths and not self._may_be_http():
            raise InvalidOptionError(f"no call of {self._pattern!r} can meet a fault {self.kind}", parameter="method")

    def _check(self) -> None:
        for name in ("after", "from_s", "until_s", "times", "delay_s", "messages"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InvalidOptionError(f"{name}={value} of a fault is not 0 or more", parameter=name)
        if not 0 <= self.probability <= 1:
            raise InvalidOptionError(f"probability={self.probability} is not from 0 to 1", parameter="probability")
        if self.kind in _NEED_DELAY and self.delay_s is None:
            raise InvalidOptionError(f"a fault {self.kind} needs delay_s", parameter="delay_s")
        if (self.kind is Kind.ANSWER) != (self.response is not None):
            raise InvalidOptionError(f"a fault {Kind.ANSWER} has a response, and no other has", parameter="response")
        known = {Kind.REGION_ERROR: REGION_ERRORS, Kind.PD_ERROR: PD_ERRORS}.get(self.kind, ("",))
        if self.error not in known:
            raise InvalidOptionError(
                f"{self.error!r} is not the error of a fault {self.kind}; known are {', '.join(known) or 'none'}",
                parameter="error",
            )

    @property
    def _pattern(self) -> str:
        return self.method if isinstance(self.method, str) else self.method.path

    def _fits(self, method: Method[Any, Any]) -> bool:
        """Whether calls of a method can meet it."""
        if not any(fnmatch.fnmatchcase(name, self._pattern) for name in (method.path, method.name)):
            return False
        if self.kind in KINDS[Place.STORAGE]:
            return method.path in STORAGE_METHODS
        places = (Place.STREAM, Place.MESSAGE) if method.server_streams else (Place.CALL,)
        if not any(self.kind in KINDS[place] for place in places):
            return False
        if self.kind is Kind.ANSWER:
            return isinstance(self.response, method.response)
        return carries(method.response, self.kind.value)

    def _may_be_http(self) -> bool:
        return self.kind in KINDS[Place.HTTP] and isinstance(self.method, str) and not self.method.startswith("/")

    def names(self, name: str) -> bool:
        """Whether it is for a gRPC path, or for an HTTP request such as ``GET /pd/api/v1/stores``."""
        return name in self._paths if name.startswith("/") else fnmatch.fnmatchcase(name, self._pattern)

    def names_file(self, name: str) -> bool:
        """Whether it is for a file of a backup."""
        return fnmatch.fnmatchcase(name, self.file)

    @property
    def armed(self) -> bool:
        """Whether it may strike again."""
        return self.times is None or self.hits < self.times

    def disarm(self) -> None:
        """Strike no more."""
        self.times = 0
