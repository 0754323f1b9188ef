"""The checksum of raw pairs: the same for a region of a cluster and for a backup file.

Per pair CRC-64/XZ of API key and user value, combined with XOR, so the order of pairs and the way they are cut into
regions do not matter (TiKV, ``src/coprocessor/checksum.rs``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastcrc import crc64

from airflow_provider_tikvbr.embedded.raw import LivePair


@dataclass(slots=True)
class Digest:
    """Numbers over some pairs.

    :param crc64xor: XOR of the pairs' CRC-64.
    :param kvs: how many pairs.
    :param bytes: length of their API keys and user values.
    """

    crc64xor: int = 0
    kvs: int = 0
    bytes: int = 0


def digest_of(pairs: Iterable[LivePair]) -> Digest:
    """The numbers over some pairs."""
    digest = crc64.xz
    crc = kvs = size = 0
    for pair in pairs:
        data = pair.key + pair.value
        crc ^= digest(data)
        kvs += 1
        size += len(data)
    return Digest(crc, kvs, size)
