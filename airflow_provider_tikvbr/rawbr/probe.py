"""Whether a cluster holds pairs in some range, found out with a scan for one of them."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.rawbr.pieces import FileWork
from airflow_provider_tikvbr.rawbr.tasks import for_each
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyRange

REGIONS_TO_LOOK_INTO = 64
# Enough to notice that a range was dropped, and next to nothing beside half a million files.
FILES_TO_LOOK_FOR = 64
LOOKS_AT_ONCE = 16


async def holds_data(cluster: Cluster, keys: KeyRange[ApiKey]) -> bool | None:
    """Whether one of the first regions of a range holds a pair.

    :return: None if none does, but some could not be looked into.
    :raises TikvBrError: PD or a store does not answer.
    """
    codec = cluster.codec
    wanted = codec.region_range(keys)
    regions = await cluster.pd.scan_regions(wanted, REGIONS_TO_LOOK_INTO)
    all_seen = len(regions) < REGIONS_TO_LOOK_INTO
    for region in regions:
        part = region.keys.intersect(wanted)
        if part is None:
            continue
        if region.leader is None:
            all_seen = False
            continue
        where = codec.api_range_of_regions(part)
        client = await cluster.client(region.leader.store_id)
        version = cluster.api_version
        if await client.raw_scan(region, region.leader, where, limit=1, key_only=True, api_version=version):
            return True
    return False if all_seen else None


async def was_dropped(cluster: Cluster, works: Sequence[FileWork]) -> bool:
    """Whether what an earlier try has restored is no longer there, as far as a few dozen of its files tell.

    A file of a backup holds pairs, so its range has to hold some after it was restored. With API V1 one empty range
    tells enough; with the others pairs may have outlived their TTL meanwhile, so all of the ranges have to be empty.

    :param works: the files, in key order. Those that are restored in part, or wanted in part, prove nothing.
    """
    done = [work.planned for work in works if not work.todo and work.planned.whole and work.planned.file.total_kvs]
    step = max(1, len(done) // FILES_TO_LOOK_FOR)
    empty = full = 0

    async def look(keys: KeyRange[ApiKey]) -> None:
        nonlocal empty, full
        try:
            found = await holds_data(cluster, keys)
        except TikvBrError:
            # No answer is no proof; the restore itself will meet the trouble and has the time to wait for its end.
            return
        full += found is True
        empty += found is False

    await for_each([planned.keys for planned in done[::step]], look, concurrency=LOOKS_AT_ONCE)
    return empty > 0 and (cluster.api_version is ApiVersion.V1 or not full)
