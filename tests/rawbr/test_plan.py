from __future__ import annotations

from collections.abc import Sequence

import pytest

from airflow_provider_tikvbr.exceptions import ApiVersionError, BackupFileError, BackupInvalidError, KeyRangeError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.meta import read_meta
from airflow_provider_tikvbr.rawbr.options import parse_cipher
from airflow_provider_tikvbr.rawbr.plan import PlannedFile, RestorePlan, make_plan, plan_splits
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, KeyRange, UserKey
from tests.support.golden import Golden, backups

V1 = KeyCodec(ApiVersion.V1)
V2 = KeyCodec(ApiVersion.V2)


def keys(start: bytes = b"", end: bytes = b"") -> KeyRange[UserKey]:
    return KeyRange(UserKey(start), UserKey(end))


def file(
    start: bytes, end: bytes, *, size: int = 100, kvs: int = 10, cf: str = "default", name: str = ""
) -> brpb_pb2.File:
    return brpb_pb2.File(
        name=name or f"{start.hex()}_default.sst", start_key=start, end_key=end, total_bytes=size, total_kvs=kvs, cf=cf
    )


def meta(
    files: Sequence[brpb_pb2.File] = (),
    *,
    start: bytes = b"",
    end: bytes = b"",
    api_version: ApiVersion = ApiVersion.V1,
) -> brpb_pb2.BackupMeta:
    return brpb_pb2.BackupMeta(
        is_raw_kv=True,
        files=files,
        raw_ranges=[brpb_pb2.RawRange(start_key=start, end_key=end, cf="default")],
        api_version=int(api_version),  # type: ignore[arg-type]
    )


def chosen(plan: RestorePlan) -> list[tuple[bytes, bytes, bool]]:
    return [(f.keys.start, f.keys.end, f.whole) for f in plan.files]


FILES = [file(b"", b"c"), file(b"c", b"f"), file(b"h", b"m"), file(b"m", b"")]


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        (keys(), [(b"", b"c", True), (b"c", b"f", True), (b"h", b"m", True), (b"m", b"", True)]),
        (keys(b"c", b"f"), [(b"c", b"f", True)]),
        # The end of the first file is the start of the range, and the end of the range the start of the last.
        (keys(b"c", b"h"), [(b"c", b"f", True)]),
        (keys(b"b", b"d"), [(b"b", b"c", False), (b"c", b"d", False)]),
        (keys(b"k"), [(b"k", b"m", False), (b"m", b"", True)]),
        (keys(b"", b"a"), [(b"", b"a", False)]),
        (keys(b"z"), [(b"z", b"", False)]),
        (keys(b"f", b"h"), []),
    ],
)
def test_chooses_the_files_of_a_range(wanted: KeyRange[UserKey], files: list[tuple[bytes, bytes, bool]]) -> None:
    plan = make_plan(meta(FILES[::-1]), V1, wanted)
    assert chosen(plan) == files
    assert V1.user_range(plan.keys) == wanted


@pytest.mark.parametrize(
    "wanted", [keys(b"a", b"d"), keys(b"c", b"n"), keys(b"c"), keys(b"", b"d"), keys(b"n", b"p"), keys(b"a", b"b")]
)
def test_refuses_a_range_that_was_not_backed_up(wanted: KeyRange[UserKey]) -> None:
    with pytest.raises(KeyRangeError, match=r"is not inside the backup's range \[62, 6d\)"):
        make_plan(meta([file(b"c", b"f")], start=b"b", end=b"m"), V1, wanted)


def test_no_range_means_all_of_the_backup() -> None:
    plan = make_plan(meta([file(b"c", b"f")], start=b"b", end=b"m"), V1, keys())
    assert (plan.keys.start, plan.keys.end) == (b"b", b"m")
    assert chosen(plan) == [(b"c", b"f", True)]


def test_v2_keys_carry_the_keyspace() -> None:
    whole = meta([file(b"r\0\0\0b", b"r\0\0\1")], start=b"r\0\0\0", end=b"r\0\0\1", api_version=ApiVersion.V2)
    assert chosen(make_plan(whole, V2, keys())) == [(b"r\0\0\0b", b"r\0\0\1", True)]
    assert chosen(make_plan(whole, V2, keys(b"c"))) == [(b"r\0\0\0c", b"r\0\0\1", False)]
    for wanted in (keys(), keys(b"c")):
        with pytest.raises(KeyRangeError):
            make_plan(whole, KeyCodec(ApiVersion.V2, 7), wanted)


@pytest.mark.parametrize("backup", list(ApiVersion))
@pytest.mark.parametrize("cluster", list(ApiVersion))
def test_api_versions_must_be_the_same(backup: ApiVersion, cluster: ApiVersion) -> None:
    codec = KeyCodec(backup)
    everything = codec.api_range(keys())
    found = meta(start=everything.start, end=everything.end, api_version=backup)
    if backup is cluster:
        assert make_plan(found, codec, keys()).files == ()
        return
    with pytest.raises(ApiVersionError, match=f"{backup.name} and the cluster has {cluster.name}"):
        make_plan(found, KeyCodec(cluster), keys())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (file(b"c", b"f", cf="write"), "column family 'write'"),
        (file(b"a", b"c"), "not inside the backup's"),
        (file(b"c", b""), "not inside the backup's"),
        (file(b"f", b"c"), "not inside the backup's"),
    ],
)
def test_refuses_a_file_that_cannot_belong_to_the_backup(bad: brpb_pb2.File, reason: str) -> None:
    # Also when the range would not need it.
    for wanted in (keys(), keys(b"l", b"m")):
        with pytest.raises(BackupFileError, match=reason) as caught:
            make_plan(meta([file(b"d", b"e"), bad], start=b"b", end=b"m"), V1, wanted)
        assert caught.value.file == bad.name


def test_refuses_an_empty_range_in_the_meta() -> None:
    with pytest.raises(BackupInvalidError, match="empty key range"):
        make_plan(meta(start=b"m", end=b"b"), V1, keys())


def planned(*files: brpb_pb2.File) -> list[PlannedFile]:
    return [PlannedFile(file=f, keys=KeyRange(ApiKey(f.start_key), ApiKey(f.end_key)), whole=True) for f in files]


@pytest.mark.parametrize(
    ("max_bytes", "max_keys", "splits"),
    [
        (1000, 1000, []),
        (1000, 20, [b"d"]),
        (250, 1000, [b"d"]),
        (199, 1000, [b"b", b"d", b"g"]),
        (1, 1, [b"b", b"d", b"g"]),
    ],
)
def test_neighbours_share_a_region_up_to_the_limits(max_bytes: int, max_keys: int, splits: list[bytes]) -> None:
    files = planned(file(b"a", b"b"), file(b"b", b"d"), file(b"e", b"g"), file(b"g", b""))
    assert list(plan_splits(files, max_bytes=max_bytes, max_keys=max_keys)) == splits


def test_the_last_region_ends_where_the_files_end() -> None:
    assert plan_splits(planned(file(b"a", b"b"), file(b"b", b"d")), max_bytes=1000, max_keys=1000) == (b"d",)
    assert plan_splits([], max_bytes=1, max_keys=1) == ()


def test_a_range_that_ends_inside_a_file_gets_no_border_there() -> None:
    cut = PlannedFile(file=file(b"b", b"d"), keys=KeyRange(ApiKey(b"b"), ApiKey(b"c")), whole=False)
    assert plan_splits([*planned(file(b"a", b"b")), cut], max_bytes=1, max_keys=1) == (b"b",)


def test_a_file_without_data_gets_no_region_of_its_own() -> None:
    files = planned(file(b"a", b"b"), file(b"b", b"c", size=0, kvs=0), file(b"c", b"d"))
    assert plan_splits(files, max_bytes=100, max_keys=10) == (b"c", b"d")


def test_plans_the_splits_of_very_many_files() -> None:
    # Comparing each file with each other would take hours.
    files = planned(*(file(b"%07d" % i, b"%07d" % (i + 1)) for i in range(200_000)))
    assert len(plan_splits(files, max_bytes=1000, max_keys=1000)) == 20_000


@pytest.mark.parametrize("golden", backups(), ids=str)
async def test_every_golden_backup_has_a_plan(golden: Golden) -> None:
    cipher = parse_cipher(golden.crypter.get("crypter_method", ""), golden.crypter.get("crypter_key", ""), "")
    found = await read_meta(open_storage(golden.url), cipher)
    codec = KeyCodec(golden.api_version)
    plan = make_plan(found, codec, keys())
    assert len(plan.files) == len(found.files)
    assert all(f.whole for f in plan.files)
    assert plan.data_size == sum(f.size for f in found.files)
    assert codec.user_range(plan.keys) == golden.keys
