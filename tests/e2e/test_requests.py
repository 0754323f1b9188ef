"""Our requests carry what tikv-br's carried in the recordings; each difference is named here and in docs/coming-from-tikv-br.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.proto import brpb_pb2, import_sstpb_pb2, kvrpcpb_pb2, metapb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.rawbr.backup import backup
from airflow_provider_tikvbr.rawbr.options import backup_options, restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.channel import Connection
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from tests.e2e.test_replay import api_version, borders
from tests.support.recordings import ROOT, Call, calls
from tests.support.replay import messages

# tikv-br stands ten FF bytes in for "no end", and so loses the keys from there on; ours leaves the end open. What a store
# then tells of the last file differs as well: its last key is one that tikv-br leaves out.
TIKV_BR_OPEN_END = b"\xff" * 10
LAST_KEYS = b"\xff" * 9

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "backup_v1_full_checksum": ("full", {"checksum": True, "ratelimit": 128}),
    "backup_v1_full_to_v2": ("full", {"dst_api_version": "v2"}),
    "backup_v1_range_to_v2_checksum": (
        "full",
        {"dst_api_version": "v2", "start": "a", "end": "user:00000350", "format": "raw", "checksum": True},
    ),
    "backup_v2_full_checksum": ("v2", {"checksum": True, "gcttl": "10m", "remove_schedulers": True}),
    "restore_v1_full_checksum": ("full", {"checksum": True, "ratelimit": 64}),
    "restore_v1_range": ("full", {"start": "a", "end": "user:00000350", "format": "raw"}),
    "restore_v2_converted_split_checksum": (
        "to_v2",
        # tikv-br takes the number of keys for the size as well, so that no files are merged.
        {"checksum": True, "merge_region_key_count": 50, "merge_region_size_bytes": 50, "split_region_max_keys": 2},
    ),
    "restore_v2_range": ("v2", {"start": "idx", "end": "user:00000350", "format": "raw"}),
}

Sent = list[tuple[methods.Method[Any, Any], Message]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Every request that our client sends."""
    found: Sent = []

    def tap(name: str) -> None:
        real: Callable[..., Any] = getattr(Connection, name)

        def tapped(self: Connection, method: methods.Method[Any, Any], request: Message, **options: Any) -> Any:
            copy = type(request)()
            copy.CopyFrom(request)
            found.append((method, copy))
            return real(self, method, request, **options)

        monkeypatch.setattr(Connection, name, tapped)

    for name in ("call", "stream", "exchange"):
        tap(name)
    return found


def neutral(request: Message) -> Message:
    """The request without what names one cluster, one run or one place."""
    copy = type(request)()
    copy.CopyFrom(request)
    for header in messages(copy, pdpb_pb2.RequestHeader):
        header.cluster_id = 1
    for local in messages(copy, brpb_pb2.Local):
        local.path = "/place"
    for context in messages(copy, kvrpcpb_pb2.Context):
        context.region_id = 0
        context.ClearField("region_epoch")
        context.ClearField("peer")
    for epoch in messages(copy, metapb_pb2.RegionEpoch):
        epoch.Clear()
    for sst in messages(copy, import_sstpb_pb2.SSTMeta):
        assert len(sst.uuid) == 16
        sst.uuid = b"u"
        sst.region_id = 0
        if sst.range.end == TIKV_BR_OPEN_END:
            sst.range.end = b""
        elif sst.range.end.startswith(LAST_KEYS):
            sst.range.end = LAST_KEYS
    if isinstance(copy, brpb_pb2.BackupRequest):
        copy.cluster_id = 1
    return copy


def of(found: Sent | list[Call], method: methods.Method[Any, Any]) -> set[bytes]:
    """The neutral requests of one method, as a set: who is asked, in what order and how often is another matter."""
    requests: list[Message] = []
    for one in found:
        if isinstance(one, Call):
            requests += one.requests if one.method is method else ()
        elif one[0] is method:
            requests.append(one[1])
    return {neutral(r).SerializeToString(deterministic=True) for r in requests}


@pytest.mark.parametrize("name", RUNS)
async def test_requests_carry_what_tikv_br_sent(name: str, sent: Sent, tmp_path: Path) -> None:
    source, options = RUNS[name]
    recorded = calls(name)
    place = tmp_path / source
    embedded = EmbeddedCluster(data_dir=tmp_path / "data", api_version=api_version(name), stores=3, replicas=3)
    async with embedded, await Cluster.connect(ClusterOptions(pd=(embedded.pd_address,))) as cluster:
        for key in borders(recorded, embedded.topology.codec):
            embedded.topology.split(embedded.topology.region_of(key).id, [key])
        if name.startswith("backup"):
            await restore(cluster, open_storage(f"local://{ROOT / 'backups' / source}"), restore_options())
            sent.clear()
            await backup(cluster, open_storage(f"local://{place}"), backup_options(**options))
        else:
            shutil.copytree(ROOT / "backups" / source, place)
            await restore(cluster, open_storage(f"local://{place}"), restore_options(**options))

    exact: list[methods.Method[Any, Any]] = [
        methods.BACKUP,
        methods.IMPORT_DOWNLOAD,
        methods.IMPORT_SWITCH_MODE,
        methods.IMPORT_SET_DOWNLOAD_SPEED_LIMIT,
    ]
    for method in exact:
        ours, theirs = of(sent, method), of(recorded, method)
        if method is methods.BACKUP and "range_to_v2_checksum" in name:
            # tikv-br scans all pairs out of the cluster to check a conversion; ours asks for a backup into no storage.
            ours = {
                r for r in ours if brpb_pb2.BackupRequest.FromString(r).storage_backend.WhichOneof("backend") != "noop"
            }
        assert ours == theirs, method.path

    ours_ssts, their_ssts = (
        {
            sst.SerializeToString(deterministic=True)
            for r in of(found, methods.IMPORT_MULTI_INGEST)
            for sst in import_sstpb_pb2.MultiIngestRequest.FromString(r).ssts
        }
        for found in (sent, recorded)
    )
    assert ours_ssts == their_ssts  # ours may put several of a region into one request

    split_keys = [
        {
            key
            for r in of(found, methods.KV_SPLIT_REGION)
            for key in kvrpcpb_pb2.SplitRegionRequest.FromString(r).split_keys
            if kvrpcpb_pb2.SplitRegionRequest.FromString(r).is_raw_kv
        }
        for found in (sent, recorded)
    ]
    assert split_keys[0] == split_keys[1]

    for found in (sent, recorded):
        for r in of(found, methods.KV_RAW_CHECKSUM):
            context = kvrpcpb_pb2.RawChecksumRequest.FromString(r).context
            assert int(context.api_version) == int(api_version(name).in_context)

    ours_points = [
        pdpb_pb2.UpdateServiceGCSafePointRequest.FromString(r)
        for r in of(sent, methods.PD_UPDATE_SERVICE_GC_SAFE_POINT)
    ]
    their_points = [
        pdpb_pb2.UpdateServiceGCSafePointRequest.FromString(r)
        for r in of(recorded, methods.PD_UPDATE_SERVICE_GC_SAFE_POINT)
    ]
    # Both let the service safepoint run out; ours says once more at the end how long.
    ttls = {p.TTL for p in their_points}
    assert {max(p.TTL for p in ours_points)} == ttls if ttls else not ours_points
    assert all(max(ttls) - 60 < p.TTL for p in ours_points)
    assert bool(of(sent, methods.PD_SCATTER_REGION)) == bool(of(recorded, methods.PD_SCATTER_REGION))
