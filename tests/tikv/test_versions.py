from __future__ import annotations

import pytest
from packaging.version import Version

from airflow_provider_tikvbr.exceptions import ProtocolError, UnsupportedError
from airflow_provider_tikvbr.tikv.model import Store
from airflow_provider_tikvbr.tikv.versions import check_stores, oldest_version, parse_version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("8.5.0", "8.5.0"),
        ("v6.1.1", "6.1.1"),
        ("9.0.0-beta.2", "9.0.0b2"),
        ("6.2.0-alpha", "6.2.0a0"),
        ("6.2.0-alpha-12-g0123abc-dirty", "6.2.0a0"),
        ("5.0.0-rc.1", "5.0.0rc1"),
        ("5.4.3-20230101-0123abc", "5.4.3"),
        ("7.1.0+build", "7.1.0"),
        ("7.1.0-dirty", "7.1.0"),
        (" 7.1.0\n", "7.1.0"),
    ],
)
def test_versions_as_pd_and_tikv_write_them(text: str, version: str) -> None:
    assert parse_version(text) == Version(version)


def test_a_stage_comes_before_the_release() -> None:
    assert parse_version("6.2.0-alpha") < parse_version("6.2.0")
    assert parse_version("5.0.0-rc.1") < parse_version("5.0.0")
    assert parse_version("5.0.0-12-g0123abc") >= parse_version("5.0.0")


@pytest.mark.parametrize("text", ["", "8.5", "latest", "8.5.x"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(ProtocolError, match="is not a version"):
        parse_version(text)


def store(number: int, version: str, **fields: object) -> Store:
    return Store(id=number, address=f"s{number}:20160", version=version, **fields)  # type: ignore[arg-type]


def test_requirements() -> None:
    check_stores([store(1, "5.0.0"), store(2, "v8.5.0"), store(3, "9.0.0-beta.2")])


def test_an_old_store_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"TiKV 5\.0\.0 or newer .*store 2 \(s2:20160, version 4\.0\.16\)"):
        check_stores([store(1, "5.0.0"), store(2, "4.0.16")])


def test_tiflash_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"TiFlash nodes.*store 3 \(s3:20160"):
        check_stores([store(1, "5.0.0"), store(3, "v8.5.0", labels={"engine": "tiflash"})])


def test_the_oldest_store_counts() -> None:
    stores = [store(1, "v6.2.0"), store(2, "6.1.0"), store(3, "5.0.0", labels={"engine": "tiflash"}), store(4, "")]
    assert oldest_version("6.2.0", stores) == (parse_version("6.1.0"), f"6.1.0 on store 2 ({stores[1].address})")
    assert oldest_version("6.1.0", stores) == (parse_version("6.1.0"), "6.1.0")
    assert oldest_version("6.0.0", []) == (parse_version("6.0.0"), "6.0.0")
