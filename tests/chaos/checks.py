"""What has to hold of a cluster, of a backup and of this process whatever has happened; each tells what does not."""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.raw import region_bounds
from airflow_provider_tikvbr.proto import brpb_pb2, methods
from airflow_provider_tikvbr.proto.methods import Method
from airflow_provider_tikvbr.rawbr.summary import BackupSummary
from airflow_provider_tikvbr.storage.cipher import IV_LENGTH, Cipher
from airflow_provider_tikvbr.storage.sst import SstReader
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyCodec, KeyRange
from airflow_provider_tikvbr.tikv.values import decode_value
from tests.chaos.world import Pair, Pairs, World, checksum_of

PACKAGE = "airflow_provider_tikvbr"
META = "backupmeta"
# PD before 6.1 cannot drop a temporary setting, so that it is left for a second.
SETTING_GRACE_S = 1.0
GRACE_S = 3.0
# Modules whose objects belong to jobs; keys and values are those of the embedded cluster too.
OURS = re.compile(rf"{PACKAGE}\.(rawbr|storage|tikv(?!\.keys|\.values))")


# --- clusters ---

# By which call the states below are set that end by themselves.
SET_BY: Mapping[str, Method[Any, Any]] = {
    "import mode": methods.IMPORT_SWITCH_MODE,
    "the download speed limit": methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT,
    "the GC safepoint of the backup": methods.PD_UPDATE_SERVICE_GC_SAFE_POINT,
}


@dataclass(frozen=True, slots=True)
class ClusterState:
    """What jobs change of a cluster for their time, by the names that their messages use.

    :param settings: PD's lasting schedule settings.
    """

    left: Mapping[str, Any]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, cluster: EmbeddedCluster) -> ClusterState:
        """What it is now."""
        pd = cluster.pd
        found: dict[str, Any] = {
            "import mode": [s for s, on in cluster.import_modes().items() if on],
            "the download speed limit": {s: rate for s, rate in cluster.download_limits().items() if rate},
            "the pause of PD's schedulers": {
                **pd.schedulers.paused(),
                **pd.config.ttl_values(after_s=SETTING_GRACE_S),
            },
            "the GC safepoint of the backup": pd.safe_points.services(),
        }
        return cls({name: value for name, value in found.items() if value}, pd.config.values())


def wrong_on_replicas(cluster: EmbeddedCluster) -> Iterator[str]:
    """Peers that do not hold what their leader holds."""
    for region in list(cluster.topology.regions):
        bounds = region_bounds(region.keys)
        wanted = list(cluster.engines[region.leader_store_id].items(bounds))
        for store_id in region.store_ids:
            if not cluster.topology.stores[store_id].running:
                continue
            if store_id != region.leader_store_id and list(cluster.engines[store_id].items(bounds)) != wanted:
                yield f"store {store_id} holds something else of region {region.id} than its leader"


def difference(found: Pairs, wanted: Pairs) -> str:
    """How two sets of pairs differ; empty if they do not."""
    missing, more = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    other = sorted(key for key in set(found) & set(wanted) if found[key] != wanted[key])
    parts = [
        f"{len(keys)} {name} such as {keys[0].hex()[:80]}"
        for name, keys in (("missing", missing), ("too many", more), ("other", other))
        if keys
    ]
    return ", ".join(parts)


# --- backups ---


def wrong_in_backup(place: Path, world: World, summary: BackupSummary | None) -> Iterator[str]:
    """What is not as it has to be in a finished backup, read without the package's own reader of backupmeta."""
    meta = _read_meta(place, world.backup.cipher)
    codec = world.dst_codec
    wanted_range = codec.api_range(world.keys)
    if [(r.start_key, r.end_key, r.cf) for r in meta.raw_ranges] != [(wanted_range.start, wanted_range.end, "default")]:
        yield f"backupmeta covers {meta.raw_ranges}"
    if meta.api_version != int(codec.api_version) or not meta.is_raw_kv:
        yield f"backupmeta is of API version {meta.api_version}"
    found: Pairs = {}
    before = b""
    for file in meta.files:
        if file.start_key < before:
            yield f"{file.name} begins before the file before it ends"
        before = file.end_key or b"\xff" * 9999
        stored = (place / file.name).read_bytes()
        if len(stored) != file.size or hashlib.sha256(stored).digest() != file.sha256:
            yield f"{file.name} is not what backupmeta says"
        part = _read_file(stored, file, world.backup.cipher, codec)
        own = KeyRange(ApiKey(file.start_key), ApiKey(file.end_key))
        if strays := [key for key in part if not own.contains(key)]:
            yield f"{file.name} holds {len(strays)} pairs that do not belong there"
        numbers = checksum_of(part)
        if (numbers.crc64xor, numbers.total_kvs, numbers.total_bytes) != (
            file.crc64xor,
            file.total_kvs,
            file.total_bytes,
        ):
            yield f"{file.name} holds {numbers}, which backupmeta does not say"
        if twice := set(part) & set(found):
            yield f"{file.name} holds {len(twice)} pairs that another file holds too"
        found.update(part)
    if differs := difference(found, world.wanted):
        yield f"the backup does not hold what the source holds: {differs}"
    if summary is not None:
        numbers = checksum_of(world.wanted)
        said = (summary.checksum, summary.total_kv, summary.total_kv_size, summary.backup_data_size, summary.files)
        right = (
            numbers,
            numbers.total_kvs,
            numbers.total_bytes,
            sum(f.size for f in meta.files),
            len(meta.files),
        )
        if said != right:
            yield f"the summary says {said} instead of {right}"
    yield from _wrong_names(place, {file.name for file in meta.files})


def _read_meta(place: Path, cipher: Cipher) -> brpb_pb2.BackupMeta:
    data = (place / META).read_bytes()
    if not cipher.is_plain:
        data = cipher.decrypt(data[IV_LENGTH:], data[:IV_LENGTH])
    return brpb_pb2.BackupMeta.FromString(data)


def _read_file(stored: bytes, file: brpb_pb2.File, cipher: Cipher, codec: KeyCodec) -> Pairs:
    reader = SstReader(stored if cipher.is_plain else cipher.decrypt(stored, file.cipher_iv), name=file.name)
    reader.verify()
    found: Pairs = {}
    for engine_key, data in reader:
        key, ts = codec.split_engine_key(engine_key)
        value = decode_value(codec.api_version, data)
        found[key] = Pair(bytes(value.value), value.expire_at, ts)
    return found


def _wrong_names(place: Path, files: set[str]) -> Iterator[str]:
    odd = {name for name in names(place) if not name.endswith(".sst")} - {META}
    if odd:
        yield f"beside the backup lie {sorted(odd)}"
    if lost := files - set(names(place)):
        yield f"{sorted(lost)} are missing"


def names(place: Path) -> list[str]:
    """What lies in a place, hidden files too."""
    if not place.exists():
        return []
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


# --- this process ---


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What a process holds that a run has to give back."""

    files: int
    threads: frozenset[str]
    objects: Counter[str]

    @classmethod
    def now(cls) -> ProcessState:
        """What it is."""
        for each in gc.get_objects():
            # The web server of the embedded cluster caches its handlers, and with them a cluster that is over.
            if isinstance(each, functools._lru_cache_wrapper) and each.__module__.startswith("aiohttp"):
                each.cache_clear()
        gc.collect()
        objects = Counter(
            f"{kind.__module__}.{kind.__qualname__}"
            for kind in map(type, gc.get_objects())
            if OURS.match(str(kind.__module__))
        )
        threads = frozenset(t.name for t in threading.enumerate() if t.name.startswith(("tikvbr", "store-")))
        return cls(len(os.listdir("/proc/self/fd")), threads, objects)  # noqa: PTH208  a count, no paths

    def grown(self, before: ProcessState) -> Iterator[str]:
        """What has grown since."""
        if self.files > before.files:
            yield f"{self.files - before.files} file descriptors are left"
        if more := self.threads - before.threads:
            yield f"threads are left: {sorted(more)}"
        if alive := self.objects - before.objects:
            yield f"objects are left: {dict(alive)}"


def open_channels() -> list[grpc.aio.Channel]:
    """gRPC channels that nobody closed."""
    return [c for c in gc.get_objects() if isinstance(c, grpc.aio.Channel) and not c._channel.closed()]


def our_tasks() -> set[asyncio.Task[Any]]:
    """Tasks that run the package's code, without the embedded cluster's own."""
    found = set()
    for task in asyncio.all_tasks():
        code = getattr(task.get_coro(), "cr_code", None)
        path = code.co_filename if code is not None else ""
        if f"/{PACKAGE}/" in path and "/embedded/" not in path and task is not asyncio.current_task():
            found.add(task)
    return found


def waits_at(task: asyncio.Task[Any]) -> str:
    """Where a task waits, through all that it awaits."""
    lines = []
    waiting: Any = task.get_coro()
    while (frame := getattr(waiting, "cr_frame", None)) is not None:
        lines.append(f"  {frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {frame.f_code.co_name}")
        waiting = waiting.cr_await
    return "\n".join(lines) + "\n"


async def tasks_left(before: set[asyncio.Task[Any]]) -> Sequence[str]:
    """Tasks that a job has left running, after a moment's grace."""
    deadline = asyncio.get_running_loop().time() + GRACE_S
    while left := our_tasks() - before:
        if asyncio.get_running_loop().time() > deadline:
            return [repr(task) for task in left]
        await asyncio.sleep(0.01)
    return ()


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
