"""What a finished job reports: the fields of ``tikv-br``'s summary line, and those numbers as data.

``line()`` is the success line field for field; ``as_dict()`` is the same and more, ready for JSON and XCom.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from airflow_provider_tikvbr.rawbr.humanize import human_duration, human_rate, human_size
from airflow_provider_tikvbr.tikv.keys import ApiVersion


@dataclass(frozen=True, slots=True)
class Checksum:
    """Three numbers that describe a set of pairs, whatever their order.

    :param crc64xor: CRC-64/XZ of each API key followed by its value, all of them XORed.
    :param total_kvs: pairs.
    :param total_bytes: bytes of API keys and values.
    """

    crc64xor: int = 0
    total_kvs: int = 0
    total_bytes: int = 0

    def __add__(self, other: Checksum) -> Checksum:
        """The checksum of both sets together; they must not share a pair."""
        return Checksum(
            self.crc64xor ^ other.crc64xor,
            self.total_kvs + other.total_kvs,
            self.total_bytes + other.total_bytes,
        )

    def __str__(self) -> str:
        return f"crc64xor={self.crc64xor} total-kvs={self.total_kvs} total-bytes={self.total_bytes}"

    def as_dict(self) -> dict[str, int]:
        """The numbers by name."""
        return {"crc64xor": self.crc64xor, "total_kvs": self.total_kvs, "total_bytes": self.total_bytes}


def _line(title: str, fields: Mapping[str, object]) -> str:
    return " ".join([f'["{title}"]', *(f"[{name}={value}]" for name, value in fields.items())])


@dataclass(frozen=True, slots=True, kw_only=True)
class _JobSummary(ABC):
    """What a backup and a restore both report.

    :param total_ranges: backup files that were to be written or restored; ``tikv-br`` calls them ranges.
    :param ranges_succeed: those that were.
    :param ranges_failed: those that were not; a job that succeeds has none.
    :param total_take_s: seconds from the first step to the last, the checksum's included.
    :param total_kv: pairs.
    :param total_kv_size: bytes of their API keys and values, in the backup's API version.
    :param checksum: the checksum of these pairs.
    :param verified: whether it was compared with the cluster.
    :param backup_ts: the timestamp from which change capture may go on; None if the backup has none, as outside of V2.
    :param api_version: API version of the cluster.
    :param storage: where the backup is, without secrets.
    :param cluster_id: the cluster.
    :param cluster_version: its version.
    :param start: first user key of the range, in hexadecimal digits; empty for no bound.
    :param end: user key after the range, in hexadecimal digits; empty for no bound.
    """

    title: ClassVar[str]

    total_ranges: int
    ranges_succeed: int
    ranges_failed: int = 0
    total_take_s: float
    total_kv: int
    total_kv_size: int
    checksum: Checksum = field(default_factory=Checksum)
    verified: bool = False
    backup_ts: int | None = None
    api_version: ApiVersion
    storage: str
    cluster_id: int
    cluster_version: str = ""
    start: str = ""
    end: str = ""

    @property
    def files(self) -> int:
        """Backup files."""
        return self.total_ranges

    @property
    def average_speed(self) -> float:
        """Bytes of keys and values per second of the whole job."""
        return self.total_kv_size / self.total_take_s if self.total_take_s > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name; versions as text."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        versions = {name: value.name for name, value in found.items() if isinstance(value, ApiVersion)}
        derived = {
            "checksum": self.checksum.as_dict(),
            "files": self.files,
            "average_speed": self.average_speed,
        }
        return {**found, **versions, **derived}

    def line(self) -> str:
        """The success line."""
        return _line(self.title, self.parts())

    @abstractmethod
    def parts(self) -> dict[str, object]:
        """The fields of the line, as ``tikv-br`` names and writes them."""

    def _ranges(self) -> dict[str, object]:
        return {
            "total-ranges": self.total_ranges,
            "ranges-succeed": self.ranges_succeed,
            "ranges-failed": self.ranges_failed,
        }

    def _pairs(self) -> dict[str, object]:
        return {
            "total-kv": self.total_kv,
            "total-kv-size": human_size(self.total_kv_size),
            "average-speed": human_rate(self.total_kv_size, self.total_take_s),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSummary(_JobSummary):
    """What a backup did.

    :param backup_total_regions: regions of the range.
    :param backup_data_size: bytes of the backup files.
    :param dst_api_version: API version of the backup.
    """

    title: ClassVar[str] = "Raw backup success summary"

    backup_total_regions: int
    backup_data_size: int
    dst_api_version: ApiVersion

    def parts(self) -> dict[str, object]:
        """The fields of the line."""
        return {
            **self._ranges(),
            "backup-total-regions": self.backup_total_regions,
            "total-take": human_duration(self.total_take_s),
            **({} if self.backup_ts is None else {"backup-ts": self.backup_ts}),
            **self._pairs(),
            "backup-data-size(after-compressed)": human_size(self.backup_data_size),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSummary(_JobSummary):
    """What a restore did.

    :param restore_files: backup files that the range touches.
    :param restore_data_size: bytes of those files.
    """

    title: ClassVar[str] = "Raw restore success summary"

    restore_files: int
    restore_data_size: int

    def parts(self) -> dict[str, object]:
        """The fields of the line."""
        return {
            **self._ranges(),
            "restore-files": self.restore_files,
            "total-take": human_duration(self.total_take_s),
            "restore-data-size(after-compressed)": human_size(self.restore_data_size),
            **self._pairs(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksumSummary:
    """What a comparison of a backup with a cluster found.

    :param expected: checksum of the backup, over the range that was compared.
    :param actual: checksum of the cluster, over the same range.
    :param total_take_s: seconds it took.
    :param regions: regions that answered.
    :param method: how the cluster was counted: ``raw-checksum``, or ``backup`` for a converted backup.
    :param storage: where the backup is, without secrets.
    :param cluster_id: the cluster it was compared with.
    """

    expected: Checksum
    actual: Checksum
    total_take_s: float
    regions: int
    method: str
    storage: str = ""
    cluster_id: int = 0

    @property
    def matches(self) -> bool:
        """Whether both sides hold the same pairs."""
        return self.expected == self.actual

    @property
    def title(self) -> str:
        """What the line says before its fields."""
        return f"Raw checksum {'success' if self.matches else 'mismatch'} summary"

    def parts(self) -> dict[str, object]:
        """The fields of the line."""
        expected: dict[str, object] = {
            "expected-crc64xor": self.expected.crc64xor,
            "expected-total-kvs": self.expected.total_kvs,
            "expected-total-bytes": self.expected.total_bytes,
        }
        return {
            **({} if self.matches else expected),
            "crc64xor": self.actual.crc64xor,
            "total-kvs": self.actual.total_kvs,
            "total-bytes": self.actual.total_bytes,
            "regions": self.regions,
            "method": self.method,
            "total-take": human_duration(self.total_take_s),
        }

    def line(self) -> str:
        """One line for a log, whatever was found."""
        return _line(self.title, self.parts())

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name."""
        return {
            "matches": self.matches,
            "expected": self.expected.as_dict(),
            "actual": self.actual.as_dict(),
            "total_take_s": self.total_take_s,
            "regions": self.regions,
            "method": self.method,
            "storage": self.storage,
            "cluster_id": self.cluster_id,
        }
