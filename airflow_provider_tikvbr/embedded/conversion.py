"""From the API version of a cluster to that of its backup: TiKV converts pairs while it backs them up.

Source: TiKV, ``components/backup/src/utils.rs``.
"""

from __future__ import annotations

from collections.abc import Iterator

from airflow_provider_tikvbr.embedded.engine import DATA_PREFIX, DataKey
from airflow_provider_tikvbr.embedded.raw import LivePair
from airflow_provider_tikvbr.tikv.keys import (
    CONVERTED_TS,
    ApiKey,
    ApiVersion,
    KeyCodec,
    KeyRange,
    encode_desc_ts,
    encode_memcomparable,
)
from airflow_provider_tikvbr.tikv.values import encode_value


class Conversion:
    """Turns pairs of the cluster's API version into those of the backup's.

    :param source: the cluster's.
    :param target: the backup's; the same, or V2.
    """

    def __init__(self, source: ApiVersion, target: ApiVersion) -> None:
        self._changes = source is not target
        self._source = KeyCodec(source)
        self._target = KeyCodec(target)

    def api_range(self, keys: KeyRange[ApiKey]) -> KeyRange[ApiKey]:
        """A range of the cluster in the backup's form."""
        return self._target.api_range(self._source.user_range(keys)) if self._changes else keys

    def rows(self, pairs: Iterator[LivePair]) -> Iterator[tuple[DataKey, bytes, bytes]]:
        """RocksDB key and stored value as they go into the file, and the bytes that the checksum is made of."""
        if not self._changes:
            for pair in pairs:
                yield pair.data_key, pair.stored, pair.key + pair.value
            return
        # What engine_key does, with all that is the same for every pair worked out before.
        prefix, ts = self._target.prefix, encode_desc_ts(CONVERTED_TS)
        for key, value, expire, _, _ in pairs:
            api_key = prefix + key
            data_key = DataKey(DATA_PREFIX + encode_memcomparable(api_key) + ts)
            yield data_key, encode_value(ApiVersion.V2, value, expire_at=expire), api_key + value
