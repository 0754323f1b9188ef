from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
import pytest

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.rawbr.options import (
    BackupOptions,
    ChecksumOptions,
    Compression,
    GcTtlFrom,
    RestoreOptions,
    backup_options,
    checksum_options,
    restore_options,
)
from airflow_provider_tikvbr.storage.cipher import Cipher, CipherMethod
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, UserKey


def test_the_defaults_are_those_of_tikv_br() -> None:
    assert backup_options() == BackupOptions()
    assert restore_options() == RestoreOptions()
    assert checksum_options() == ChecksumOptions()
    options = BackupOptions()
    assert (options.compression, options.gc_ttl_s, options.safe_interval_s) == (Compression.ZSTD, 300, 60)
    assert RestoreOptions().concurrency == 512


def test_text_and_native_values_mean_the_same() -> None:
    native = backup_options(
        start="61",
        end="7a",
        dst_api_version=ApiVersion.V2,
        compression=Compression.LZ4,
        compression_level=-3,
        ratelimit=2,
        ratelimit_unit=1000,
        concurrency=4,
        gcttl=timedelta(minutes=10),
        gcttl_from=GcTtlFrom.END,
        safe_interval=90,
        checksum=True,
        checksum_concurrency=7,
        remove_schedulers=True,
        owner="run",
    )
    text = backup_options(
        start="a",
        end=r"\x7a",
        format="escaped",
        dst_api_version="v2",
        compression="LZ4",
        compression_level="-3",
        ratelimit="2",
        ratelimit_unit="1000",
        concurrency="4",
        gcttl="10m",
        gcttl_from="End",
        safe_interval="90",
        checksum="True",
        checksum_concurrency="7",
        remove_schedulers="true",
        owner="run",
    )
    assert native == text
    assert text.keys == KeyRange(UserKey(b"a"), UserKey(b"z"))
    assert text.rate_limit == 2000


@pytest.mark.parametrize("empty", ["", None])
def test_what_is_empty_means_the_default(empty: Any) -> None:
    def empties(names: str) -> dict[str, Any]:
        return dict.fromkeys(names.split(), empty)

    names = "format dst_api_version compression compression_level ratelimit ratelimit_unit concurrency crypter_method"
    names += " crypter_key_file gcttl gcttl_from safe_interval checksum checksum_concurrency remove_schedulers budget"
    assert backup_options(**empties(names)) == BackupOptions()
    names = "merge_region_size_bytes merge_region_key_count split_region_max_keys switch_mode_interval online budget"
    assert restore_options(**empties(names)) == RestoreOptions()
    assert checksum_options(format=empty, budget=empty) == ChecksumOptions()


@pytest.mark.parametrize(
    "five_minutes", [timedelta(minutes=5), pendulum.duration(minutes=5), "5m", "300", "300s", 300, 300.0]
)
def test_durations_of_every_kind(five_minutes: Any) -> None:
    backup = backup_options(gcttl=five_minutes, safe_interval=five_minutes, budget=five_minutes)
    assert (backup.gc_ttl_s, backup.safe_interval_s, backup.budget_s) == (300, 300, 300)
    restore = restore_options(switch_mode_interval=five_minutes, budget=five_minutes)
    assert (restore.switch_mode_interval_s, restore.budget_s) == (300, 300)
    assert checksum_options(budget=five_minutes).budget_s == 300


@pytest.mark.parametrize(("gcttl", "seconds"), [(0, 0), ("0s", 0), ("1h30m", 5400), ("300ms", 1), ("2900ms", 3)])
def test_gc_is_held_for_whole_seconds(gcttl: Any, seconds: int) -> None:
    assert backup_options(gcttl=gcttl).gc_ttl_s == seconds


def test_rate_limit_counts_in_mebibytes() -> None:
    assert backup_options(ratelimit=128).rate_limit == 128 << 20
    assert restore_options(ratelimit="128").rate_limit == 128 << 20


def test_restore_limits() -> None:
    options = restore_options(merge_region_size_bytes="1024", merge_region_key_count=5, concurrency=3)
    assert (options.merge_region_size, options.merge_region_keys, options.concurrency) == (1024, 5, 3)
    assert restore_options(merge_region_size_bytes=0, concurrency="0").merge_region_size is None


def test_checksum_range() -> None:
    assert checksum_options(start="61").keys == KeyRange(UserKey(b"a"), UserKey(b""))
    assert checksum_options().keys is None


def test_cipher(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("00" * 16 + "\n")
    expected = Cipher(method=CipherMethod.AES128_CTR, key=bytes(16))
    assert backup_options(crypter_method="aes128-ctr", crypter_key="00" * 16).cipher == expected
    assert restore_options(crypter_method="AES128-CTR", crypter_key_file=str(file)).cipher == expected
    assert "00" * 16 not in repr(checksum_options(crypter_method="aes128-ctr", crypter_key="00" * 16))


@pytest.mark.parametrize(
    ("given", "parameter"),
    [
        ({"start": "6"}, "start"),
        ({"end": "zz"}, "end"),
        ({"format": "base64"}, "format"),
        ({"start": "62", "end": "61"}, "start"),
        ({"start": "61", "end": "61"}, "start"),
        ({"dst_api_version": "v3"}, "dst_api_version"),
        ({"compression": "gzip"}, "compression"),
        ({"compression_level": "high"}, "compression_level"),
        ({"compression_level": 1 << 31}, "compression_level"),
        ({"ratelimit": -1}, "ratelimit"),
        ({"ratelimit": 1.5}, "ratelimit"),
        ({"ratelimit": True}, "ratelimit"),
        ({"ratelimit": 1 << 50}, "ratelimit"),
        ({"ratelimit_unit": 0}, "ratelimit_unit"),
        ({"concurrency": 1 << 32}, "concurrency"),
        ({"crypter_method": "rot13"}, "crypter_method"),
        ({"crypter_method": "aes128-ctr"}, "crypter_key"),
        ({"gcttl": "5 minutes"}, "gcttl"),
        ({"gcttl": "-1s"}, "gcttl"),
        ({"gcttl": 1e19}, "gcttl"),
        ({"gcttl_from": "middle"}, "gcttl_from"),
        ({"gcttl_from": 5}, "gcttl_from"),
        ({"gcttl": True}, "gcttl"),
        ({"gcttl": float("nan")}, "gcttl"),
        ({"gcttl": float("inf")}, "gcttl"),
        ({"safe_interval": "-1m"}, "safe_interval"),
        ({"checksum": "perhaps"}, "checksum"),
        ({"checksum_concurrency": 0}, "checksum_concurrency"),
        ({"remove_schedulers": "2"}, "remove_schedulers"),
        # what a template with native values may make of an option
        ({"format": 16}, "format"),
        ({"dst_api_version": 2}, "dst_api_version"),
        ({"compression": 3}, "compression"),
        ({"crypter_method": 256}, "crypter_method"),
        ({"crypter_key_file": 1}, "crypter_key_file"),
        ({"gcttl": [5]}, "gcttl"),
        ({"budget": {}}, "budget"),
        ({"checksum": 2}, "checksum"),
        ({"checksum": [True]}, "checksum"),
    ],
)
def test_bad_options_name_their_parameter(given: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        backup_options(**given)
    assert caught.value.parameter == parameter
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "parameter"),
    [
        ({"split_region_max_keys": 0}, "split_region_max_keys"),
        ({"switch_mode_interval": "0"}, "switch_mode_interval"),
        ({"merge_region_size_bytes": "big"}, "merge_region_size_bytes"),
        ({"merge_region_key_count": -1}, "merge_region_key_count"),
        ({"online": "maybe"}, "online"),
        ({"concurrency": -1}, "concurrency"),
    ],
)
def test_bad_restore_options_name_their_parameter(given: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        restore_options(**given)
    assert caught.value.parameter == parameter
