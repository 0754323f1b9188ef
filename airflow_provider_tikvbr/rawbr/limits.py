"""How large the regions of a cluster become before TiKV splits them by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

import httpx

from airflow_provider_tikvbr.rawbr.plan import REGION_KEYS, REGION_SIZE
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.http import http_client
from airflow_provider_tikvbr.tikv.status import status_address

TIMEOUT_S = 3.0
STORES_TO_ASK = 3

# TiKV writes sizes with these, each 1024 of the one before; some versions leave the "i" out.
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionLimits:
    """What a region should hold at most.

    :param size: bytes of keys and values.
    :param keys: pairs.
    """

    size: int = REGION_SIZE
    keys: int = REGION_KEYS


async def region_limits(cluster: Cluster) -> RegionLimits:
    """The size at which the cluster's own stores split regions; a usual one if none of a few stores tells."""
    options = cluster.options
    scheme = "https" if options.tls else "http"
    async with http_client(options.tls, timeout_s=TIMEOUT_S) as client:
        for store in (await cluster.up_stores())[:STORES_TO_ASK]:
            if not store.status_address:
                continue
            try:
                response = await client.get(f"{scheme}://{status_address(store)}/config")
                return limits_of(response.json())
            except (httpx.HTTPError, ValueError):
                continue
    return RegionLimits()


def limits_of(config: object) -> RegionLimits:
    """Read the limits from a store's configuration (section ``coprocessor``).

    :raises ValueError: it does not tell them.
    """
    section = config.get("coprocessor") if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise ValueError("the configuration has no coprocessor section")
    keys = section.get("region-split-keys")
    size = parse_size(str(section.get("region-split-size")))
    if not isinstance(keys, int) or keys <= 0 or size <= 0:
        raise ValueError("the configuration does not tell at what size regions split")
    return RegionLimits(size=size, keys=keys)


def parse_size(text: str) -> int:
    """Read a size as TiKV writes it, such as ``256MiB``.

    :raises ValueError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)i?B?", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size")
    return int(float(found[1]) * 1024 ** UNITS[found[2]])
