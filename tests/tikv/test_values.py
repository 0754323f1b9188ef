from __future__ import annotations

import pytest

from airflow_provider_tikvbr.tikv.keys import ApiVersion
from airflow_provider_tikvbr.tikv.values import RawValue, decode_value, encode_value

V1, V1TTL, V2 = ApiVersion.V1, ApiVersion.V1TTL, ApiVersion.V2


@pytest.mark.parametrize(
    ("version", "value", "expire_at", "deleted", "stored"),
    [
        (V1, b"b", 0, False, "62"),
        (V1, b"", 0, False, ""),
        (V1TTL, b"b", 0, False, "620000000000000000"),
        (V1TTL, b"b", 0xFFFF, False, "62000000000000ffff"),
        (V1TTL, b"", 1, False, "0000000000000001"),
        (V2, b"b", 0, False, "6200"),
        (V2, b"", 0, False, "00"),
        (V2, b"b", 0xFFFF, False, "62000000000000ffff01"),
        (V2, b"", 0, True, "02"),
        (V2, b"b", 7, True, "62000000000000000703"),
    ],
)
def test_both_ways(version: ApiVersion, value: bytes, expire_at: int, deleted: bool, stored: str) -> None:
    assert encode_value(version, value, expire_at=expire_at, deleted=deleted).hex() == stored
    assert decode_value(version, bytes.fromhex(stored)) == (value, expire_at, deleted)


@pytest.mark.parametrize(
    ("version", "stored", "says"),
    [
        (V1TTL, "00000000000000", "7 bytes is too short"),
        (V2, "", "without its flag byte"),
        (V2, "6204", "unknown flags 0x04"),
        (V2, "0000000000000001", "8 bytes is too short"),
    ],
)
def test_what_cannot_be_a_value(version: ApiVersion, stored: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode_value(version, bytes.fromhex(stored))


def test_what_a_version_cannot_hold() -> None:
    with pytest.raises(ValueError, match="V1 values cannot expire"):
        encode_value(V1, b"b", expire_at=1)
    for version in (V1, V1TTL):
        with pytest.raises(ValueError, match="cannot mark a deletion"):
            encode_value(version, b"", deleted=True)


def test_who_is_live() -> None:
    assert RawValue(b"b").is_live(now=1 << 40)
    assert RawValue(b"b", expire_at=11).is_live(now=10)
    assert not RawValue(b"b", expire_at=10).is_live(now=10)
    assert not RawValue(b"", deleted=True).is_live(now=0)
