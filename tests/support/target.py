"""An embedded cluster with a client that is connected to it, and what must be true of it after a restore."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.rawbr.events import Event, Note
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import EVERYTHING, ApiVersion, KeyRange, UserKey
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from tests.support.golden import Golden


@contextlib.asynccontextmanager
async def target(
    directory: Path,
    api_version: ApiVersion = ApiVersion.V1,
    *,
    stores: int = 1,
    replicas: int = 1,
    split_keys: Sequence[bytes] = (),
    **more: Any,
) -> AsyncIterator[tuple[EmbeddedCluster, Cluster]]:
    """A cluster and a connection to it."""
    embedded = EmbeddedCluster(
        data_dir=directory / "data",
        api_version=api_version,
        stores=stores,
        replicas=replicas,
        split_keys=[UserKey(k) for k in split_keys],
        **more,
    )
    async with embedded, await Cluster.connect(ClusterOptions(pd=(embedded.pd_address,))) as cluster:
        yield embedded, cluster


async def held(embedded: EmbeddedCluster, keys: KeyRange[UserKey] = EVERYTHING) -> list[tuple[bytes, bytes]]:
    """The live pairs, after checking that every peer of every region holds the same."""
    pairs: list[tuple[bytes, bytes]] = [(p.key, p.value) for p in await embedded.pairs(keys)]
    stores = set(embedded.topology.stores)
    if all(region.store_ids and set(region.store_ids) == stores for region in embedded.topology.regions):
        for store_id in stores:
            assert [(p.key, p.value) for p in await embedded.data.pairs(keys, store_id=store_id)] == pairs
    return pairs


def expected(golden: Golden, keys: KeyRange[UserKey] = EVERYTHING) -> list[tuple[bytes, bytes]]:
    """What a golden backup holds of a range."""
    return [(p.key, p.value) for p in golden.pairs if keys.contains(p.key)]


def is_as_before(embedded: EmbeddedCluster) -> bool:
    """Whether nothing temporary is left on the cluster: import mode, speed limits, pauses, settings."""
    return (
        not any(e.import_mode.is_on for e in embedded.engines.values())
        and not any(e.download_limiter.rate for e in embedded.engines.values())
        and not embedded.pd.schedulers.paused()
        and not embedded.pd.config.ttl_values(after_s=1)
    )


def warnings_in(events: Sequence[Event]) -> list[str]:
    """The warnings among events."""
    return [e.message for e in events if isinstance(e, Note) and e.level == "warning"]
