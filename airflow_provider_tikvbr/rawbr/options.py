"""What a job is told, as typed values, and the one place where they are read from what people type.

The ``*_options`` helpers serve the command line, whose flags are text, and operators, whose parameters are native values
or what a template made of them. An empty text and None mean the default.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.rawbr.keyformat import KeyFormat, parse_key
from airflow_provider_tikvbr.rawbr.parsing import (
    MIB,
    Duration,
    Number,
    parse_duration,
    parse_flag,
    parse_rate,
    parse_text,
    parse_whole,
)
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiVersion, KeyRange, UserKey
from airflow_provider_tikvbr.tikv.redaction import show_typed_key

MAX_UINT32 = (1 << 32) - 1
MAX_INT32 = (1 << 31) - 1
# As many seconds as PD can count: more than anybody will wait.
MAX_GC_TTL_S = (1 << 62) - 1

DEFAULT_GC_TTL_S = 300
DEFAULT_SAFE_INTERVAL_S = 60
DEFAULT_BUDGET_S = 600.0
DEFAULT_CHECKSUM_CONCURRENCY = 512
DEFAULT_RESTORE_CONCURRENCY = 512
DEFAULT_SPLIT_REGION_MAX_KEYS = 1024
DEFAULT_SWITCH_MODE_INTERVAL_S = 300


class Compression(enum.IntEnum):
    """How backup files are compressed; the numbers are those of ``backup.CompressionType``."""

    LZ4 = 1
    SNAPPY = 2
    ZSTD = 3

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Read a name in any case.

        :raises InvalidOptionError: there is no such compression.
        """
        try:
            return cls[text.strip().upper()]
        except KeyError:
            raise InvalidOptionError(
                f"compression {text!r} is not known: give lz4, snappy or zstd", parameter="compression"
            ) from None


class GcTtlFrom(enum.Enum):
    """From when on a backup's ``gcttl`` counts."""

    START = "start"
    END = "end"

    @classmethod
    def parse(cls, text: str | GcTtlFrom | None) -> GcTtlFrom:
        """Read one in any case; empty means the start, as with tikv-br.

        :raises InvalidOptionError: there is no such moment.
        """
        if isinstance(text, GcTtlFrom):
            return text
        word = parse_text(text, parameter="gcttl_from").strip().lower() or "start"
        try:
            return cls(word)
        except ValueError:
            raise InvalidOptionError(
                f"gcttl_from {text!r} is not known: give start or end", parameter="gcttl_from"
            ) from None


class VerifyFiles(enum.Enum):
    """How thoroughly a backup's files are looked at before anything of it is restored.

    ``off`` looks at none, ``size`` compares presence and size of all with one listing, ``sha256`` reads each.
    """

    OFF = "off"
    SIZE = "size"
    SHA256 = "sha256"

    @classmethod
    def parse(cls, text: str | VerifyFiles | None) -> VerifyFiles:
        """Read one in any case; empty means ``size``.

        :raises InvalidOptionError: there is no such depth.
        """
        if isinstance(text, VerifyFiles):
            return text
        word = parse_text(text, parameter="verify_files").strip().lower() or "size"
        try:
            return cls(word)
        except ValueError:
            raise InvalidOptionError(
                f"verify_files {text!r} is not known: give off, size or sha256", parameter="verify_files"
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOptions:
    """What a backup is told.

    :param keys: which user keys.
    :param dst_api_version: API version of the backup; None means the cluster's.
    :param compression: how the files are compressed.
    :param compression_level: level of the compression; 0 leaves it to TiKV.
    :param rate_limit: bytes per second that each store may write; 0 means no limit.
    :param concurrency: sent to TiKV, which goes by its own ``backup.num-threads`` instead.
    :param cipher: how the files and backupmeta are encrypted.
    :param gc_ttl_s: in V2, seconds for which GC is held back if the job succeeds; while it runs GC is held in any case.
    :param gcttl_from: whether these seconds count from the start or from the end of the job.
    :param safe_interval_s: in V2, seconds by which backup-ts lies in the past.
    :param checksum: whether the backup is compared with the cluster afterwards.
    :param checksum_concurrency: regions that are counted at a time.
    :param remove_schedulers: whether PD's balancing is paused meanwhile.
    :param budget_s: seconds without progress after which the job gives up.
    :param owner: who writes, for the lock; the same owner may take up an abandoned lock. Empty means nobody else.
    :param resume: go on with what an earlier try of the same owner has finished; otherwise start over.
    :param retry_in_s: when the job will be tried again should it fail, in seconds from then; None if nobody knows. GC is
        held back for that long.
    """

    keys: KeyRange[UserKey] = field(default=EVERYTHING)
    dst_api_version: ApiVersion | None = None
    compression: Compression = Compression.ZSTD
    compression_level: int = 0
    rate_limit: int = 0
    concurrency: int = 0
    cipher: Cipher = field(default=PLAINTEXT)
    gc_ttl_s: int = DEFAULT_GC_TTL_S
    gcttl_from: GcTtlFrom = GcTtlFrom.START
    safe_interval_s: float = DEFAULT_SAFE_INTERVAL_S
    checksum: bool = False
    checksum_concurrency: int = DEFAULT_CHECKSUM_CONCURRENCY
    remove_schedulers: bool = False
    budget_s: float = DEFAULT_BUDGET_S
    owner: str = ""
    resume: bool = True
    retry_in_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """What a restore is told.

    :param keys: which user keys; they must lie in the backup's range.
    :param rate_limit: bytes per second that each store may download; 0 means no limit.
    :param concurrency: files at a time.
    :param cipher: how the backup is encrypted.
    :param checksum: whether the cluster is compared with the backup afterwards.
    :param checksum_concurrency: regions that are counted at a time.
    :param online: leave the cluster in normal mode and its schedulers running.
    :param merge_region_size: bytes up to which neighbouring files share a region; None means the default.
    :param merge_region_keys: pairs up to which neighbouring files share a region; None means the default.
    :param split_region_max_keys: split keys of one request.
    :param switch_mode_interval_s: seconds after which import mode is asked for again; TiKV leaves it after 600.
    :param budget_s: seconds without progress after which the job gives up.
    :param verify_files: how thoroughly the files are looked at before anything is restored.
    :param owner: who restores, for the lock of the checkpoint; the same owner may take up an abandoned lock.
    :param resume: go on with what an earlier try of the same owner has finished; otherwise start over.
    """

    keys: KeyRange[UserKey] = field(default=EVERYTHING)
    rate_limit: int = 0
    concurrency: int = DEFAULT_RESTORE_CONCURRENCY
    cipher: Cipher = field(default=PLAINTEXT)
    checksum: bool = False
    checksum_concurrency: int = DEFAULT_CHECKSUM_CONCURRENCY
    online: bool = False
    merge_region_size: int | None = None
    merge_region_keys: int | None = None
    split_region_max_keys: int = DEFAULT_SPLIT_REGION_MAX_KEYS
    switch_mode_interval_s: float = DEFAULT_SWITCH_MODE_INTERVAL_S
    budget_s: float = DEFAULT_BUDGET_S
    verify_files: VerifyFiles = VerifyFiles.SIZE
    owner: str = ""
    resume: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksumOptions:
    """What a comparison is told.

    :param keys: which user keys; None means the backup's whole range.
    :param cipher: how the backup is encrypted.
    :param concurrency: regions that are counted at a time.
    :param budget_s: seconds without progress after which the job gives up.
    """

    keys: KeyRange[UserKey] | None = None
    cipher: Cipher = field(default=PLAINTEXT)
    concurrency: int = DEFAULT_CHECKSUM_CONCURRENCY
    budget_s: float = DEFAULT_BUDGET_S


def backup_options(
    *,
    start: str = "",
    end: str = "",
    format: str = "hex",  # noqa: A002 - the option's own name
    dst_api_version: str | ApiVersion = "",
    compression: str | Compression = "zstd",
    compression_level: Number = 0,
    ratelimit: Number = 0,
    ratelimit_unit: Number = MIB,
    concurrency: Number = 0,
    crypter_method: str = "plaintext",
    crypter_key: str = "",
    crypter_key_file: str = "",
    gcttl: Duration = "5m",
    gcttl_from: str | GcTtlFrom = "start",
    safe_interval: Duration = "1m",
    checksum: bool | str = False,
    checksum_concurrency: Number = DEFAULT_CHECKSUM_CONCURRENCY,
    remove_schedulers: bool | str = False,
    budget: Duration = DEFAULT_BUDGET_S,
    resume: bool | str = True,
    owner: str = "",
    retry_in_s: float | None = None,
) -> BackupOptions:
    """Read a backup's options; ``ratelimit`` counts in units of ``ratelimit_unit`` bytes per second and store.

    :raises InvalidOptionError: one of them cannot be right; it names which.
    """
    # PD counts whole seconds.
    gc_ttl_s = math.ceil(parse_duration(gcttl, parameter="gcttl", default=DEFAULT_GC_TTL_S))
    if gc_ttl_s > MAX_GC_TTL_S:
        raise InvalidOptionError(f"gcttl is {gcttl}: PD cannot count so far, give less", parameter="gcttl")
    return BackupOptions(
        keys=parse_key_range(start, end, format),
        dst_api_version=parse_api_version(dst_api_version, parameter="dst_api_version"),
        compression=compression if isinstance(compression, Compression) else parse_compression(compression),
        compression_level=parse_whole(
            compression_level, parameter="compression_level", default=0, minimum=-MAX_INT32, maximum=MAX_INT32
        ),
        rate_limit=parse_rate(ratelimit, ratelimit_unit),
        concurrency=parse_whole(concurrency, parameter="concurrency", default=0, maximum=MAX_UINT32),
        cipher=parse_cipher(crypter_method, crypter_key, crypter_key_file),
        gc_ttl_s=gc_ttl_s,
        gcttl_from=GcTtlFrom.parse(gcttl_from),
        safe_interval_s=parse_duration(safe_interval, parameter="safe_interval", default=DEFAULT_SAFE_INTERVAL_S),
        checksum=parse_flag(checksum, parameter="checksum"),
        checksum_concurrency=_parse_checksum_concurrency(checksum_concurrency),
        remove_schedulers=parse_flag(remove_schedulers, parameter="remove_schedulers"),
        budget_s=parse_duration(budget, parameter="budget", default=DEFAULT_BUDGET_S),
        resume=parse_flag(resume, parameter="resume", default=True),
        owner=owner,
        retry_in_s=retry_in_s,
    )


def restore_options(
    *,
    start: str = "",
    end: str = "",
    format: str = "hex",  # noqa: A002 - the option's own name
    ratelimit: Number = 0,
    ratelimit_unit: Number = MIB,
    concurrency: Number = 0,
    crypter_method: str = "plaintext",
    crypter_key: str = "",
    crypter_key_file: str = "",
    checksum: bool | str = False,
    checksum_concurrency: Number = DEFAULT_CHECKSUM_CONCURRENCY,
    online: bool | str = False,
    merge_region_size_bytes: Number | None = None,
    merge_region_key_count: Number | None = None,
    split_region_max_keys: Number = DEFAULT_SPLIT_REGION_MAX_KEYS,
    switch_mode_interval: Duration = "5m",
    budget: Duration = DEFAULT_BUDGET_S,
    verify_files: str | VerifyFiles = "size",
    resume: bool | str = True,
    owner: str = "",
) -> RestoreOptions:
    """Read a restore's options; ``concurrency`` 0 means the default.

    :raises InvalidOptionError: one of them cannot be right; it names which.
    """
    files = parse_whole(concurrency, parameter="concurrency", default=0)
    return RestoreOptions(
        keys=parse_key_range(start, end, format),
        rate_limit=parse_rate(ratelimit, ratelimit_unit),
        concurrency=files or DEFAULT_RESTORE_CONCURRENCY,
        cipher=parse_cipher(crypter_method, crypter_key, crypter_key_file),
        checksum=parse_flag(checksum, parameter="checksum"),
        checksum_concurrency=_parse_checksum_concurrency(checksum_concurrency),
        online=parse_flag(online, parameter="online"),
        merge_region_size=_parse_limit(merge_region_size_bytes, parameter="merge_region_size_bytes"),
        merge_region_keys=_parse_limit(merge_region_key_count, parameter="merge_region_key_count"),
        split_region_max_keys=parse_whole(
            split_region_max_keys,
            parameter="split_region_max_keys",
            default=DEFAULT_SPLIT_REGION_MAX_KEYS,
            minimum=1,
        ),
        switch_mode_interval_s=parse_duration(
            switch_mode_interval,
            parameter="switch_mode_interval",
            default=DEFAULT_SWITCH_MODE_INTERVAL_S,
            minimum_s=1,
        ),
        budget_s=parse_duration(budget, parameter="budget", default=DEFAULT_BUDGET_S),
        verify_files=VerifyFiles.parse(verify_files),
        resume=parse_flag(resume, parameter="resume", default=True),
        owner=owner,
    )


def checksum_options(
    *,
    start: str = "",
    end: str = "",
    format: str = "hex",  # noqa: A002 - the option's own name
    crypter_method: str = "plaintext",
    crypter_key: str = "",
    crypter_key_file: str = "",
    checksum_concurrency: Number = DEFAULT_CHECKSUM_CONCURRENCY,
    budget: Duration = DEFAULT_BUDGET_S,
) -> ChecksumOptions:
    """Read a comparison's options; without start and end it covers what the backup covers.

    :raises InvalidOptionError: one of them cannot be right; it names which.
    """
    keys = parse_key_range(start, end, format)
    return ChecksumOptions(
        keys=keys if keys != EVERYTHING else None,
        cipher=parse_cipher(crypter_method, crypter_key, crypter_key_file),
        concurrency=_parse_checksum_concurrency(checksum_concurrency),
        budget_s=parse_duration(budget, parameter="budget", default=DEFAULT_BUDGET_S),
    )


def parse_compression(value: str | None) -> Compression:
    """Read how files are compressed; empty means zstd.

    :raises InvalidOptionError: there is no such compression.
    """
    return Compression.parse(parse_text(value, parameter="compression") or "zstd")


def parse_key_range(start: str, end: str, format: str | KeyFormat) -> KeyRange[UserKey]:  # noqa: A002
    """Read a range ``[start, end)`` of user keys.

    :raises InvalidOptionError: a key is not in that format, or the range is empty.
    """
    kind = format if isinstance(format, KeyFormat) else KeyFormat.parse(parse_text(format, parameter="format") or "hex")
    keys = KeyRange(parse_key(start, kind, parameter="start"), parse_key(end, kind, parameter="end"))
    if keys.end and keys.start >= keys.end:
        raise InvalidOptionError(
            f"start {show_typed_key(start)} is not less than end {show_typed_key(end)} (format {kind.value}): such a range holds no key",
            parameter="start",
        )
    return keys


def parse_api_version(value: str | ApiVersion | None, *, parameter: str) -> ApiVersion | None:
    """Read an API version; empty means none was given.

    :raises InvalidOptionError: there is no such version.
    """
    if isinstance(value, ApiVersion):
        return value
    text = parse_text(value, parameter=parameter)
    if not text.strip():
        return None
    try:
        return ApiVersion.parse(text)
    except ValueError as err:
        raise InvalidOptionError(f"{parameter} {err}", parameter=parameter) from None


def parse_cipher(method: str, key: str, key_file: str) -> Cipher:
    """Read how a backup is encrypted.

    :raises InvalidOptionError: there is no such method, or the key does not fit it.
    """
    return Cipher.parse(
        parse_text(method, parameter="crypter_method"),
        key_hex=key or None,
        key_file=parse_text(key_file, parameter="crypter_key_file") or None,
    )


def _parse_checksum_concurrency(value: Number) -> int:
    return parse_whole(value, parameter="checksum_concurrency", default=DEFAULT_CHECKSUM_CONCURRENCY, minimum=1)


def _parse_limit(value: Number | None, *, parameter: str) -> int | None:
    """Read a limit of merged regions; empty, None and 0 leave it to the default."""
    return parse_whole(value, parameter=parameter, default=0) or None
