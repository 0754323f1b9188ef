"""What each kind of task does with a cluster and a storage: its options, its work, and what is worth keeping of the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_tikvbr.exceptions import ChecksumMismatchError, InvalidOptionError
from airflow_provider_tikvbr.rawbr.events import Listener
from airflow_provider_tikvbr.rawbr.options import backup_options, checksum_options, restore_options
from airflow_provider_tikvbr.rawbr.parsing import parse_text
from airflow_provider_tikvbr.storage.base import Storage

if TYPE_CHECKING:
    from airflow_provider_tikvbr.rawbr.summary import BackupSummary, ChecksumSummary, RestoreSummary
    from airflow_provider_tikvbr.tikv.cluster import Cluster

WAIT = "wait"
FAIL = "fail"


class Summary(Protocol):
    """What a job returns: it can say itself in one line."""

    @property
    def title(self) -> str:
        """What the line is called."""

    def parts(self) -> Mapping[str, object]:
        """The parts of the line by name."""

    def line(self) -> str:
        """The whole line."""

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name, as JSON can hold them."""


class TaskJob(ABC):
    """One job, from the parameters of an operator or a sensor, where it is to run: in a worker, or in the triggerer.

    :param parameters: the parameters by their names, as templates made them.
    :param crypter_key: the key of the backup; empty if there is none, or a file holds it.
    :param owner: whose job it is, the same for every try.
    :param retry_in_s: when the job will be tried again should it fail, in seconds from then; None if it will not be.
    :raises InvalidOptionError: one of the parameters cannot be right.
    """

    @abstractmethod
    def __init__(
        self, parameters: Mapping[str, Any], *, crypter_key: str, owner: str = "", retry_in_s: float | None = None
    ) -> None: ...

    @abstractmethod
    async def run(
        self, cluster: Cluster, storage: Storage, listener: Listener, *, checkpoint_storage: Storage | None
    ) -> Summary:
        """Do it.

        :param checkpoint_storage: where to keep what is finished, if that is not beside the backup.
        """

    @staticmethod
    @abstractmethod
    def event_extra(result: Mapping[str, Any]) -> dict[str, Any]:
        """What the events of a task's outlet assets tell of a result."""


class BackupJob(TaskJob):
    """A backup."""

    def __init__(
        self, parameters: Mapping[str, Any], *, crypter_key: str, owner: str = "", retry_in_s: float | None = None
    ) -> None:
        # Airflow parses DAGs all the time, and no DAG needs the engine before a task runs.
        from airflow_provider_tikvbr.rawbr.backup import backup

        names = (
            *("format", "dst_api_version", "compression", "compression_level", "ratelimit", "ratelimit_unit"),
            *("concurrency", "crypter_method", "crypter_key_file", "gcttl", "gcttl_from", "safe_interval"),
            *("checksum", "checksum_concurrency", "remove_schedulers", "budget", "resume"),
        )
        self._backup = backup
        self._options = backup_options(
            **{name: parameters[name] for name in names},
            **_range(parameters),
            crypter_key=crypter_key,
            owner=owner,
            retry_in_s=retry_in_s,
        )

    async def run(
        self, cluster: Cluster, storage: Storage, listener: Listener, *, checkpoint_storage: Storage | None
    ) -> BackupSummary:
        """Back up."""
        return await self._backup(cluster, storage, self._options, listener)

    @staticmethod
    def event_extra(result: Mapping[str, Any]) -> dict[str, Any]:
        """What the events of outlet assets tell."""
        return {**_restorable(result), "api_version": result["dst_api_version"]}


class RestoreJob(TaskJob):
    """A restore."""

    def __init__(
        self, parameters: Mapping[str, Any], *, crypter_key: str, owner: str = "", retry_in_s: float | None = None
    ) -> None:
        from airflow_provider_tikvbr.rawbr.restore import restore

        names = (
            *("format", "ratelimit", "ratelimit_unit", "concurrency", "crypter_method", "crypter_key_file", "checksum"),
            *("checksum_concurrency", "online", "merge_region_size_bytes", "merge_region_key_count"),
            *("split_region_max_keys", "switch_mode_interval", "budget", "verify_files", "resume"),
        )
        self._restore = restore
        self._options = restore_options(
            **{name: parameters[name] for name in names}, **_range(parameters), crypter_key=crypter_key, owner=owner
        )

    async def run(
        self, cluster: Cluster, storage: Storage, listener: Listener, *, checkpoint_storage: Storage | None
    ) -> RestoreSummary:
        """Restore."""
        more: dict[str, Any] = {} if checkpoint_storage is None else {"checkpoint_storage": checkpoint_storage}
        return await self._restore(cluster, storage, self._options, listener, **more)

    @staticmethod
    def event_extra(result: Mapping[str, Any]) -> dict[str, Any]:
        """What the events of outlet assets tell."""
        return {**_restorable(result), "api_version": result["api_version"]}


class ChecksumJob(TaskJob):
    """A comparison of a backup with a cluster.

    :ivar on_missing: what it means that there is no backup, ``wait`` or ``fail``.
    """

    def __init__(
        self, parameters: Mapping[str, Any], *, crypter_key: str, owner: str = "", retry_in_s: float | None = None
    ) -> None:
        from airflow_provider_tikvbr.rawbr.checksum import verify_backup

        names = ("format", "crypter_method", "crypter_key_file", "checksum_concurrency", "budget")
        self._verify = verify_backup
        self._on_mismatch = _choice(parameters["on_mismatch"], parameter="on_mismatch", default=WAIT)
        self.on_missing = _choice(parameters["on_missing"], parameter="on_missing", default=FAIL)
        self._options = checksum_options(
            **{name: parameters[name] for name in names}, **_range(parameters), crypter_key=crypter_key
        )

    async def run(
        self, cluster: Cluster, storage: Storage, listener: Listener, *, checkpoint_storage: Storage | None
    ) -> ChecksumSummary:
        """Compare once."""
        return await self._verify(cluster, storage, self._options, listener)

    def judge(self, summary: ChecksumSummary) -> bool:
        """Whether the wait is over.

        :raises ChecksumMismatchError: the two differ, and that is to be an error.
        """
        if not summary.matches and self._on_mismatch == FAIL:
            raise ChecksumMismatchError(
                f"the cluster does not hold what the backup at {summary.storage} holds:"
                f" the backup has {summary.expected}, the cluster {summary.actual}",
                expected=summary.expected,
                actual=summary.actual,
            )
        return summary.matches

    @staticmethod
    def event_extra(result: Mapping[str, Any]) -> dict[str, Any]:
        """What the events of outlet assets tell."""
        return {
            "storage": result["storage"],
            "pairs": result["actual"]["total_kvs"],
            "bytes": result["actual"]["total_bytes"],
            "checksum": result["actual"],
            "cluster_id": result["cluster_id"],
        }


def key_text(value: object, *, parameter: str) -> str:
    """Take a key as a template made it.

    :raises InvalidOptionError: it is no text any more, so nobody can say which key was meant.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidOptionError(
            f"{parameter} is {value!r}, but a key is text: write it as such, or, if a template made it, turn"
            " render_template_as_native_obj off for this DAG",
            parameter=parameter,
        )
    return value


def _range(parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: key_text(parameters[name], parameter=name) for name in ("start", "end")}


def _restorable(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "storage": result["storage"],
        "pairs": result["total_kv"],
        "bytes": result["total_kv_size"],
        "checksum": result["checksum"],
        "backup_ts": result["backup_ts"],
        "cluster_id": result["cluster_id"],
    }


def _choice(value: object, *, parameter: str, default: str) -> str:
    word = parse_text(value, parameter=parameter).strip().lower() or default
    if word not in {WAIT, FAIL}:
        raise InvalidOptionError(f"{parameter} is {value!r}: give {WAIT} or {FAIL}", parameter=parameter)
    return word
