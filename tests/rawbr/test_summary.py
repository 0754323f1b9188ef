from __future__ import annotations

import json
from typing import Any

from airflow_provider_tikvbr.rawbr.summary import BackupSummary, Checksum, ChecksumSummary, RestoreSummary
from airflow_provider_tikvbr.tikv.keys import ApiVersion


def backup_summary(**changes: Any) -> BackupSummary:
    fields: dict[str, Any] = {
        "total_ranges": 3,
        "ranges_succeed": 3,
        "backup_total_regions": 3,
        "total_take_s": 5.050265883,
        "backup_ts": 436120585518448641,
        "total_kv": 100000,
        "total_kv_size": 106_600_000,
        "backup_data_size": 78_300_000,
        "api_version": ApiVersion.V2,
        "dst_api_version": ApiVersion.V2,
        "storage": "local:///backup",
        "cluster_id": 7,
    }
    return BackupSummary(**{**fields, **changes})


def test_backup_line() -> None:
    assert backup_summary().line() == (
        '["Raw backup success summary"] [total-ranges=3] [ranges-succeed=3] [ranges-failed=0]'
        " [backup-total-regions=3] [total-take=5.050265883s] [backup-ts=436120585518448641] [total-kv=100000]"
        " [total-kv-size=106.6MB] [average-speed=21.11MB/s] [backup-data-size(after-compressed)=78.3MB]"
    )


def test_backup_line_without_backup_ts() -> None:
    line = backup_summary(backup_ts=None, api_version=ApiVersion.V1).line()
    assert "[total-take=5.050265883s] [total-kv=100000]" in line


def test_restore_line() -> None:
    summary = RestoreSummary(
        total_ranges=3,
        ranges_succeed=3,
        restore_files=3,
        total_take_s=0.950460846,
        restore_data_size=78_300_000,
        total_kv=100000,
        total_kv_size=108_700_000,
        api_version=ApiVersion.V1,
        storage="local:///backup",
        cluster_id=7,
    )
    assert summary.line() == (
        '["Raw restore success summary"] [total-ranges=3] [ranges-succeed=3] [ranges-failed=0] [restore-files=3]'
        " [total-take=950.460846ms] [restore-data-size(after-compressed)=78.3MB] [total-kv=100000]"
        " [total-kv-size=108.7MB] [average-speed=114.4MB/s]"
    )
    assert json.loads(json.dumps(summary.as_dict()))["average_speed"] == summary.average_speed


def test_backup_as_dict_is_json() -> None:
    summary = backup_summary(checksum=Checksum(2**64 - 1, 100000, 106_600_000))
    data = json.loads(json.dumps(summary.as_dict()))
    assert data["checksum"] == {"crc64xor": 2**64 - 1, "total_kvs": 100000, "total_bytes": 106_600_000}
    assert data["dst_api_version"] == "V2"
    assert data["files"] == 3


def test_checksums_add_up() -> None:
    both = Checksum(0b1100, 2, 10) + Checksum(0b1010, 3, 5)
    assert both == Checksum(0b0110, 5, 15)
    assert str(both) == "crc64xor=6 total-kvs=5 total-bytes=15"


def test_checksum_lines() -> None:
    one, other = Checksum(1, 2, 3), Checksum(4, 5, 6)
    equal = ChecksumSummary(expected=one, actual=one, total_take_s=1.5, regions=4, method="raw-checksum")
    assert equal.matches
    assert equal.line() == (
        '["Raw checksum success summary"] [crc64xor=1] [total-kvs=2] [total-bytes=3] [regions=4]'
        " [method=raw-checksum] [total-take=1.5s]"
    )
    differ = ChecksumSummary(expected=one, actual=other, total_take_s=1.5, regions=4, method="raw-checksum")
    assert not differ.matches
    assert "[expected-total-kvs=2]" in differ.line()
    assert "[total-kvs=5]" in differ.line()
    assert json.loads(json.dumps(differ.as_dict()))["matches"] is False
