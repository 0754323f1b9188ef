"""What a restore will do, worked out from backupmeta alone: which files, which part of each, where to split regions.

Nothing here talks to anybody. Keys are API keys, as backupmeta holds them (protocol: ``brpb.proto``, messages
``BackupMeta``, ``RawRange`` and ``File``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from airflow_provider_tikvbr.exceptions import ApiVersionError, BackupFileError, BackupInvalidError, KeyRangeError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.files import file_range
from airflow_provider_tikvbr.rawbr.meta import RAW_CF, backup_range
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, KeyRange, UserKey
from airflow_provider_tikvbr.tikv.redaction import show_key

# What a region holds at most unless the cluster says otherwise (TiKV before 8.4: coprocessor.region-split-size and
# region-split-keys).
REGION_SIZE = 96 << 20
REGION_KEYS = 960_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """One backup file and the part of its range that is wanted.

    :param file: its entry in backupmeta.
    :param keys: the wanted part of its range.
    :param whole: whether that is all of it.
    """

    file: brpb_pb2.File
    keys: KeyRange[ApiKey]
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """What a restore will do.

    :param keys: the range that will be restored.
    :param files: the files that touch it, in key order.
    """

    keys: KeyRange[ApiKey]
    files: tuple[PlannedFile, ...]

    @property
    def data_size(self) -> int:
        """Bytes of the files as they are stored."""
        return sum(f.file.size for f in self.files)


def make_plan(meta: brpb_pb2.BackupMeta, codec: KeyCodec, keys: KeyRange[UserKey]) -> RestorePlan:
    """Choose the files of a backup that hold the wanted keys.

    :param meta: the backup, as :func:`~airflow_provider_tikvbr.rawbr.meta.read_meta` gives it.
    :param codec: key forms of the cluster that is restored into.
    :param keys: the wanted user keys; a range without start and end means all that the backup holds.
    :raises ApiVersionError: the cluster has another API version than the backup.
    :raises KeyRangeError: the range is not inside the one that was backed up.
    :raises BackupInvalidError: the backup contradicts itself.
    """
    check_api_version(ApiVersion(int(meta.api_version)), codec.api_version)
    covered = backup_range(meta)
    if covered.end and covered.start >= covered.end:
        raise BackupInvalidError(f"the backup names the empty key range {show_range(covered)}")
    wanted = wanted_range(covered, codec, keys)
    return RestorePlan(keys=wanted, files=select_files(meta.files, covered, wanted))


def check_api_version(backup: ApiVersion, cluster: ApiVersion) -> None:
    """Refuse a backup that a cluster cannot hold: TiKV converts pairs at backup, never at restore.

    :raises ApiVersionError: the two API versions differ.
    """
    if backup is cluster:
        return
    remedy = f"restore it into a cluster of API version {backup.name}"
    if cluster is ApiVersion.V2:
        remedy += ", or take a backup with dst_api_version=v2"
    raise ApiVersionError(f"the backup has API version {backup.name} and the cluster has {cluster.name}: {remedy}")


def wanted_range(covered: KeyRange[ApiKey], codec: KeyCodec, keys: KeyRange[UserKey]) -> KeyRange[ApiKey]:
    """The range to restore.

    :param covered: what the backup covers.
    :param keys: what is wanted; a range without start and end means all of the backup.
    :raises KeyRangeError: the backup does not cover it, or belongs to another keyspace.
    """
    if keys.start or keys.end:
        wanted = codec.api_range(keys)
        if not covered.covers(wanted):
            raise KeyRangeError(
                f"the range {show_range(wanted)} is not inside the backup's range {show_range(covered)} (API keys in "
                "hexadecimal digits): give start and end inside it, or neither of them for all of it"
            )
        return wanted
    if not codec.api_range(keys).covers(covered):
        raise KeyRangeError(
            f"the backup covers {show_range(covered)} (API keys in hexadecimal digits), which is not in keyspace "
            f"{codec.keyspace_id}: restore it into the keyspace that it was taken from"
        )
    return covered


def select_files(
    files: Iterable[brpb_pb2.File], covered: KeyRange[ApiKey], wanted: KeyRange[ApiKey]
) -> tuple[PlannedFile, ...]:
    """The files that share keys with a range, in key order. Every file is looked at, wanted or not.

    Ends are exclusive throughout: a file that ends where the range starts is left out.

    :param files: all of the backup's.
    :param covered: what the backup covers.
    :raises BackupFileError: a file cannot belong to this backup.
    """
    chosen: list[PlannedFile] = []
    for file in files:
        if file.cf not in ("", RAW_CF):
            raise BackupFileError(
                f"file {file.name} is of column family {file.cf!r}: a backup of raw pairs has only {RAW_CF!r}",
                file=file.name,
            )
        own = file_range(file)
        if (own.end and own.start >= own.end) or not covered.covers(own):
            raise BackupFileError(
                f"file {file.name} has the key range {show_range(own)}, which is not inside the backup's "
                f"{show_range(covered)}",
                file=file.name,
            )
        part = own.intersect(wanted)
        if part is not None:
            chosen.append(PlannedFile(file=file, keys=part, whole=part == own))
    chosen.sort(key=lambda f: f.keys.start)
    return tuple(chosen)


def plan_splits(files: Sequence[PlannedFile], *, max_bytes: int, max_keys: int) -> tuple[ApiKey, ...]:
    """Where to split regions so that each holds as many neighbouring files as fit into one.

    A file that was cut counts in full, since backupmeta does not say where its pairs lie.

    :param files: in key order.
    :param max_bytes: bytes of keys and values of one region.
    :param max_keys: pairs of one region.
    :return: the end of each group of files, ascending, without repetition and without the open end.
    """
    ends: list[ApiKey] = []
    size = pairs = 0
    end: ApiKey | None = None
    for planned in files:
        size += planned.file.total_bytes
        pairs += planned.file.total_kvs
        # A file without data never opens a region of its own.
        if end is not None and planned.file.total_bytes and (size > max_bytes or pairs > max_keys):
            ends.append(end)
            size, pairs = planned.file.total_bytes, planned.file.total_kvs
        end = planned.keys.end
    # What lies after the last wanted key stays as it is: a range that ends inside a file needs no border there.
    if end is not None and end == files[-1].file.end_key:
        ends.append(end)
    return tuple(sorted({e for e in ends if e}))


def borders_of(keys: Iterable[ApiKey], files: Sequence[PlannedFile]) -> tuple[ApiKey, ...]:
    """Those of some keys that lie in a file or at its ends.

    :param keys: ascending.
    :param files: in key order.
    """
    found: list[ApiKey] = []
    rest = iter(files)
    file = next(rest, None)
    for key in keys:
        while file is not None and file.keys.end and file.keys.end < key:
            file = next(rest, None)
        if file is None:
            break
        if file.keys.start <= key:
            found.append(key)
    return tuple(found)


def show_range(keys: KeyRange[ApiKey]) -> str:
    """A range for people, in hexadecimal digits."""
    return f"[{show_key(keys.start, empty='the beginning')}, {show_key(keys.end, empty='the end')})"
