"""Every error that this package raises.

::

    TikvBrError
    ├── TransientError                  another try may well succeed
    │   ├── RegionError                 a store would not serve a region just now
    │   │   ├── NotLeaderError          the region's leader is elsewhere
    │   │   ├── EpochNotMatchError      the region has split, merged or moved
    │   │   ├── RegionNotFoundError     the store has no such region (any more)
    │   │   ├── ServerIsBusyError       the store asks for time
    │   │   ├── StaleCommandError       the command or the file came too late
    │   │   ├── StoreNotMatchError      another store answers at that address
    │   │   └── RegionNotReadyError     merging, recovering, initialising, ... : every other "not now"
    │   ├── StoreUnavailableError       a store cannot be reached, or did not answer in time
    │   ├── PDUnavailableError          no placement driver answers, or it has no leader
    │   ├── StorageUnavailableError     the backup storage throttles or fails for now
    │   ├── DownloadFailedError         a store could not fetch a backup file
    │   └── BudgetExceededError         retries went on for as long as they may; says what is left
    └── TerminalError                   the same call would fail again
        ├── InvalidOptionError          what the user gave cannot be right (also a ValueError)
        ├── WrongClusterError           another cluster answers than the one expected
        ├── ApiVersionError             API versions differ, or the conversion does not exist
        ├── UnsupportedError            the cluster is too old, or holds stores that cannot take part
        ├── AuthenticationError         TLS or credentials are refused
        ├── StorageError                the backup storage refuses
        │   ├── StorageNotFoundError    an object or a directory is missing
        │   ├── BackupExistsError       the place is taken by a backup
        │   └── StorageLockedError      another job writes there (owner)
        ├── BackupInvalidError          the backup itself is missing, damaged or of another kind
        │   ├── BackupNotFoundError     there is none at that place (yet)
        │   └── BackupFileError         one of its files is (file)
        ├── KeyRangeError               the wanted range is not in the backup
        ├── ChecksumMismatchError       the two sides hold different data (expected, actual)
        ├── UnverifiedError             the job is done, but its result could not be compared
        ├── RegionRefusedError          a store refuses a region's request for good (kind)
        ├── ProtocolError               a server answered what the protocol does not allow
        └── JobCancelledError           somebody asked the job to stop

The public fields of an error are attributes of it, given as keywords; they are None where they do not apply. No error
holds a secret: URLs are shown without their query string and user part.
"""

from __future__ import annotations

from typing import Any


class TikvBrError(Exception):
    """Root of the tree.

    :param message: one sentence: what happened, where, and the remedy if there is one.
    :param region_id: the region that was addressed.
    :param store_id: the store that was addressed.
    :param address: host and port that was addressed.
    :param method: gRPC path or HTTP method and path.
    :param code: name of the gRPC status, or the HTTP status.
    """

    def __init__(
        self,
        message: str,
        *,
        region_id: int | None = None,
        store_id: int | None = None,
        address: str | None = None,
        method: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.region_id = region_id
        self.store_id = store_id
        self.address = address
        self.method = method
        self.code = code

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling by calling the class again would miss the keywords that differ from class to class.
        return _rebuild, (type(self), self.message, vars(self))

    def attrs(self) -> dict[str, Any]:
        """The public fields that are set, for logs and reports."""
        return {k: v for k, v in vars(self).items() if k != "message" and not k.startswith("_") and v is not None}


def _rebuild(cls: type[TikvBrError], message: str, fields: dict[str, Any]) -> TikvBrError:
    error = cls.__new__(cls, message)
    vars(error).update(fields)
    return error


class TransientError(TikvBrError):
    """Another try may well succeed."""


class RegionError(TransientError):
    """A store would not serve a region just now.

    :param kind: name of the field of ``errorpb.Error`` that was set, such as ``not_leader``.
    """

    def __init__(self, message: str, *, kind: str, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.kind = kind


class NotLeaderError(RegionError):
    """The region's leader is elsewhere.

    :param leader: the leader as the store knows it (:class:`~airflow_provider_tikvbr.tikv.model.Peer`), or None.
    """

    def __init__(self, message: str, *, leader: Any = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.leader = leader


class EpochNotMatchError(RegionError):
    """The region has split, merged or moved.

    :param current_regions: the regions (:class:`~airflow_provider_tikvbr.tikv.model.Region`) as the store knows them.
    """

    def __init__(self, message: str, *, current_regions: tuple[Any, ...] = (), **fields: Any) -> None:
        super().__init__(message, **fields)
        self.current_regions = current_regions


class RegionNotFoundError(RegionError):
    """The store has no such region, or no longer."""


class ServerIsBusyError(RegionError):
    """The store asks for time.

    :param backoff_s: how long it asks for, in seconds; 0 if it does not say.
    """

    def __init__(self, message: str, *, backoff_s: float = 0.0, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.backoff_s = backoff_s


class StaleCommandError(RegionError):
    """The command came too late, or the file it names is gone."""


class StoreNotMatchError(RegionError):
    """Another store answers at the address."""


class RegionNotReadyError(RegionError):
    """The region is merging, recovering, initialising or otherwise not ready."""


class StoreUnavailableError(TransientError):
    """A store cannot be reached, or did not answer in time."""


class PDUnavailableError(TransientError):
    """No placement driver answers, or it has no leader.

    :param endpoints: what was tried.
    """

    def __init__(self, message: str, *, endpoints: tuple[str, ...] = (), **fields: Any) -> None:
        super().__init__(message, **fields)
        self.endpoints = endpoints


class StorageUnavailableError(TransientError):
    """The backup storage throttles, times out or fails for now.

    :param url: the storage, without secrets.
    """

    def __init__(self, message: str, *, url: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.url = url


class DownloadFailedError(TransientError):
    """A store could not fetch a backup file.

    :param file: name of the file in the backup.
    """

    def __init__(self, message: str, *, file: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.file = file


class BudgetExceededError(TransientError):
    """Retries went on for as long as they may; the message says what is left to do.

    :param budget_s: the time budget, in seconds.
    """

    def __init__(self, message: str, *, budget_s: float | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.budget_s = budget_s


class TerminalError(TikvBrError):
    """The same call would fail again."""


class InvalidOptionError(TerminalError, ValueError):
    """What the user gave cannot be right.

    :param parameter: name of the option, as the user knows it.
    """

    def __init__(self, message: str, *, parameter: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.parameter = parameter


class WrongClusterError(TerminalError):
    """Another cluster answers than the one expected."""


class ApiVersionError(TerminalError):
    """API versions differ, or there is no conversion between them."""


class UnsupportedError(TerminalError):
    """The cluster is too old for this, or holds stores that cannot take part."""


class AuthenticationError(TerminalError):
    """TLS or credentials are refused."""


class StorageError(TerminalError):
    """The backup storage refuses.

    :param url: the storage, without secrets.
    """

    def __init__(self, message: str, *, url: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.url = url


class StorageNotFoundError(StorageError):
    """An object or a directory is missing."""


class BackupExistsError(StorageError):
    """The place is taken by a backup."""


class StorageLockedError(StorageError):
    """Another job writes there.

    :param owner: who, as the lock tells.
    """

    def __init__(self, message: str, *, owner: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.owner = owner


class BackupInvalidError(TerminalError):
    """The backup itself is missing, damaged or of another kind."""


class BackupNotFoundError(BackupInvalidError):
    """There is no backup at the place, or none that is complete."""


class BackupFileError(BackupInvalidError):
    """One of the backup's files is missing or damaged.

    :param file: name of the file in the backup.
    """

    def __init__(self, message: str, *, file: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.file = file


class KeyRangeError(TerminalError):
    """The wanted range is not in the backup."""


class ChecksumMismatchError(TerminalError):
    """The two sides hold different data.

    :param expected: checksum of the backup (:class:`~airflow_provider_tikvbr.rawbr.summary.Checksum`).
    :param actual: checksum of the cluster.
    """

    def __init__(self, message: str, *, expected: Any = None, actual: Any = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.expected = expected
        self.actual = actual


class UnverifiedError(TerminalError):
    """The job is done, but what came out could not be compared; the job itself cannot be repeated."""


class RegionRefusedError(TerminalError):
    """A store refuses a region's request for good.

    :param kind: name of the field of ``errorpb.Error`` that was set, such as ``disk_full``.
    """

    def __init__(self, message: str, *, kind: str, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.kind = kind


class ProtocolError(TerminalError):
    """A server answered what the protocol does not allow."""


class JobCancelledError(TerminalError):
    """Somebody asked the job to stop."""
