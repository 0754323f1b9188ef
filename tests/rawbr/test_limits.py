from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.rawbr.limits import RegionLimits, limits_of, parse_size, region_limits
from tests.support.target import target

USUAL = RegionLimits(size=96 << 20, keys=960_000)


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MiB", 256 << 20), ("96MB", 96 << 20), ("1.5GiB", 3 << 29), ("512KiB", 1 << 19), ("7B", 7), ("1000", 1000)],
)
def test_reads_sizes_as_tikv_writes_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "12 parsecs", "None", "-1MiB"])
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


def test_reads_the_configuration_of_a_store() -> None:
    # What a TiKV 9 answers, all other sections left out.
    config = json.loads('{"coprocessor": {"region-split-size": "256MiB", "region-split-keys": 2560000}}')
    assert limits_of(config) == RegionLimits(size=256 << 20, keys=2_560_000)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"coprocessor": 1},
        {"coprocessor": {"region-split-size": "256MiB"}},
        {"coprocessor": {"region-split-size": "", "region-split-keys": 1}},
        {"coprocessor": {"region-split-size": "0KiB", "region-split-keys": 1}},
        {"coprocessor": {"region-split-size": "1MiB", "region-split-keys": 0}},
    ],
)
def test_refuses_a_configuration_without_limits(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"coprocessor|not a size|at what size"):
        limits_of(config)


async def test_asks_the_stores_and_has_an_answer_without_them(tmp_path: Path) -> None:
    async with target(tmp_path, stores=2) as (embedded, cluster):
        found = await region_limits(cluster)
        assert found.size > 0
        assert found.keys > 0
        for store in embedded.topology.stores.values():
            store.status_address = ""
            assert await region_limits(cluster) == (found if store.id == 1 else USUAL)
        for store_id in list(embedded.topology.stores):
            await embedded.stop_store(store_id)
        assert await region_limits(cluster) == USUAL
