"""Backups that a real TiKV wrote."""

from __future__ import annotations

import pytest

from airflow_provider_tikvbr.exceptions import BackupFileError
from airflow_provider_tikvbr.rawbr.expected import count_pairs, expected_checksum
from airflow_provider_tikvbr.rawbr.meta import read_meta
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, KeyRange
from tests.rawbr.jobs import checksum_of
from tests.support import golden


@pytest.mark.parametrize("name", ["v1/full", "v1/snappy", "v1/to_v2", "v1ttl/full", "v1ttl/to_v2", "v2/full"])
async def test_parts_of_real_backups(name: str) -> None:
    folder, _, which = name.partition("/")
    known = golden.Golden(folder, which)
    codec = KeyCodec(known.api_version)
    pairs = known.pairs
    async with open_storage(known.url) as storage:
        meta = await read_meta(storage)
        for first, last in [(0, len(pairs) - 1), (len(pairs) // 3, len(pairs) // 2), (17, 18)]:
            keys = codec.api_range(KeyRange(pairs[first].key, pairs[last].key))
            found = await expected_checksum(storage, meta, keys)
            assert found == checksum_of([(p.key, p.value) for p in pairs[first:last]], codec.prefix)


def test_a_file_of_another_api_version() -> None:
    known = golden.Golden("v1", "full")
    path = min(known.path.rglob("*.sst"))
    with pytest.raises(BackupFileError, match="is not a backup file of API version V2"):
        count_pairs(path.read_bytes(), ApiVersion.V2, KeyRange(ApiKey(b""), ApiKey(b"")), name=path.name)
