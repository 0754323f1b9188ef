from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr import meta_bytes
from airflow_provider_tikvbr.rawbr.meta_bytes import dump_meta, parse_meta


def meta_of(count: int) -> brpb_pb2.BackupMeta:
    """A backupmeta with fields before and after its files."""
    return brpb_pb2.BackupMeta(
        cluster_id=7,
        cluster_version="8.5.0",
        files=[brpb_pb2.File(name=f"1/{i}.sst", sha256=bytes(range(32)), size=i << 30) for i in range(count)],
        end_version=1 << 60,
        is_raw_kv=True,
        raw_ranges=[brpb_pb2.RawRange(start_key=b"a", end_key=b"b", cf="default")],
        ddls=b"[]",
        br_version="BR",
        file_index=brpb_pb2.MetaFile(meta_files=[brpb_pb2.File(name="index")]),
        api_version=2,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_it_is_the_same_in_parts(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = meta_of(count)
    data = meta.SerializeToString(deterministic=True)
    monkeypatch.setattr(meta_bytes, "FILES_AT_ONCE", 3)
    assert dump_meta(meta) == data
    for size in (1, 50, 1 << 20):
        monkeypatch.setattr(meta_bytes, "BYTES_AT_ONCE", size)
        assert parse_meta(data) == meta


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_what_is_cut_short_is_no_backupmeta(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta_bytes, "BYTES_AT_ONCE", size)
    data = meta_of(2).SerializeToString()
    whole = 0
    for end in range(len(data)):
        try:
            parse_meta(data[:end])
        except DecodeError:
            with pytest.raises(DecodeError):
                brpb_pb2.BackupMeta.FromString(data[:end])
        else:
            whole += 1
            brpb_pb2.BackupMeta.FromString(data[:end])
    assert 0 < whole < 15


@pytest.mark.parametrize("data", [b"\x0b\x0c", b"\x22\xff", b"\xff" * 12, b"\x08" + b"\x80" * 11, b"\x0f"])
def test_bytes_that_are_no_message(data: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_meta(data)
