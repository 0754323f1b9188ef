"""How large the regions of a cluster become before TiKV splits them by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.rawbr.plan import REGION_KEYS, REGION_SIZE
from airflow_provider_tikvbr.tikv.cluster import Cluster

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
    for store in (await cluster.up_stores())[:STORES_TO_ASK]:
        try:
            return limits_of(await cluster.store_config(store, timeout_s=TIMEOUT_S))
        except (TikvBrError, ValueError):
            continue
    return RegionLimits()


def limits_of(config: Mapping[str, Any]) -> RegionLimits:
    """Read the limits from a store's configuration (section ``coprocessor``).

    :raises ValueError: it does not tell them.
    """
    section = config.get("coprocessor")
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
