"""The embedded cluster answers the requests that tikv-br once sent to real servers as those servers did."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.proto import (
    brpb_pb2,
    import_sstpb_pb2,
    kvrpcpb_pb2,
    metapb_pb2,
    methods,
    pdpb_pb2,
    tikvpb_pb2,
)
from airflow_provider_tikvbr.rawbr.options import restore_options
from airflow_provider_tikvbr.rawbr.restore import restore
from airflow_provider_tikvbr.storage.factory import open_storage
from airflow_provider_tikvbr.tikv.cluster import Cluster
from airflow_provider_tikvbr.tikv.keys import ApiVersion, RegionKey
from airflow_provider_tikvbr.tikv.options import ClusterOptions
from tests.support.recordings import ROOT, Call, calls, http, names, shape
from tests.support.replay import Replay, messages

# What differs from cluster to cluster without meaning anything: the fields below are not compared.
NOT_COMPARED = {
    # PD's and TiKV's build and place.
    "members.deploy_path", "members.git_hash", "leader.deploy_path", "leader.git_hash", "etcd_leader.deploy_path",
    "etcd_leader.git_hash", "members.binary_version", "leader.binary_version", "etcd_leader.binary_version",
    "members.peer_urls", "leader.peer_urls", "etcd_leader.peer_urls",
    "stores.git_hash", "stores.deploy_path", "stores.last_heartbeat", "stores.start_timestamp", "stores.version",
    "store.git_hash", "store.deploy_path", "store.last_heartbeat", "store.start_timestamp", "store.version",
    "stores.peer_address", "store.peer_address",
    # What a store reports of its load.
    *(f"stats.{f.name}" for f in pdpb_pb2.StoreStats.DESCRIPTOR.fields),
    "stats",
    # A timestamp's logical part may be zero.
    "timestamp.logical",
    # Right after a split a real follower has not caught up yet.
    "pending_peers", "pending_peers.id", "pending_peers.store_id",
}  # fmt: skip
DATA = {"v1": "full", "v2": "v2"}


def api_version(name: str) -> ApiVersion:
    """API version of the cluster that a run was recorded on."""
    return ApiVersion.V2 if name.split("_")[1] == "v2" else ApiVersion.V1


def borders(recorded: list[Call], codec: Any) -> list[RegionKey]:
    """Where regions began and ended when the recording started."""
    found: set[bytes] = set()
    for call in recorded:
        if call.method is methods.KV_SPLIT_REGION:
            break
        asked = {k for r in call.requests if isinstance(r, brpb_pb2.BackupRequest) for k in (r.start_key, r.end_key)}
        for response in call.responses:
            if isinstance(response, brpb_pb2.BackupResponse):
                # A piece ends at the region's border or at the request's.
                found |= {codec.region_key(k) for k in (response.start_key, response.end_key) if k not in asked}
            else:
                found |= {k for r in messages(response, metapb_pb2.Region) for k in (r.start_key, r.end_key)}
    return sorted(RegionKey(k) for k in found if k)


def meaning(responses: list[Message]) -> Any:
    """What the responses of a call say, ids and times aside."""
    if not responses:
        return None
    first = responses[0]
    if isinstance(first, brpb_pb2.BackupResponse):
        return Counter(
            (
                *(r.start_key, r.end_key, r.api_version, r.error.WhichOneof("detail"), bool(r.error.msg)),
                *((f.start_key, f.end_key, f.crc64xor, f.total_kvs, f.total_bytes, f.cf) for f in r.files),
            )
            for r in responses
            if isinstance(r, brpb_pb2.BackupResponse)
        )
    if isinstance(first, kvrpcpb_pb2.RawChecksumResponse):
        return first.checksum, first.total_kvs, first.total_bytes
    if isinstance(first, kvrpcpb_pb2.SplitRegionResponse):
        return [(r.start_key, r.end_key, len(r.peers)) for r in first.regions]
    if isinstance(first, import_sstpb_pb2.DownloadResponse):
        return first.range.start, first.range.end, first.is_empty, bool(first.error.message)
    if isinstance(first, import_sstpb_pb2.IngestResponse):
        return [field.name for field, _ in first.error.ListFields() if field.name != "message"]
    if isinstance(first, pdpb_pb2.ScanRegionsResponse):
        return [(r.start_key, r.end_key) for r in first.region_metas]
    if isinstance(first, pdpb_pb2.GetRegionResponse):
        return first.region.start_key, first.region.end_key
    if isinstance(first, pdpb_pb2.GetOperatorResponse):
        # No operator, and one that has ended, both say that the scatter is done.
        return bool(first.header.error.type) or first.status != pdpb_pb2.RUNNING
    if isinstance(first, tikvpb_pb2.BatchCommandsResponse):
        return [one.RawScan.kvs[:] for r in responses for one in getattr(r, "responses", ())]
    if isinstance(first, pdpb_pb2.GetAllStoresResponse):
        return [(s.state, s.node_state) for s in first.stores]
    return None


def shapes(responses: list[Message]) -> set[str]:
    """Which fields the responses set, those aside that mean nothing."""
    return set().union(*(shape(r) for r in responses)) - NOT_COMPARED


@pytest.mark.parametrize("name", names())
async def test_answers_as_recorded(name: str, tmp_path: Path) -> None:
    recorded = calls(name)
    version = api_version(name)
    paths = {}
    for folder in ("full", "to_v2", "range_to_v2", "v2"):
        paths[folder] = tmp_path / folder
        if name.startswith("restore"):
            shutil.copytree(ROOT / "backups" / folder, paths[folder])
        else:
            paths[folder].mkdir()
    embedded = EmbeddedCluster(data_dir=tmp_path / "data", api_version=version, stores=3, replicas=3, version="9.0.0")
    async with embedded:
        for key in borders(recorded, embedded.topology.codec):
            embedded.topology.split(embedded.topology.region_of(key).id, [key])
        replay = Replay(embedded, recorded, paths)
        replay.lead_as_recorded()
        if name.startswith("backup"):
            async with await Cluster.connect(ClusterOptions(pd=(embedded.pd_address,))) as cluster:
                source = open_storage(f"local://{ROOT / 'backups' / DATA[version.name.lower()]}")
                await restore(cluster, source, restore_options())
        backups: dict[bool, list[Message]] = {True: [], False: []}
        for call in recorded:
            answered, code = await replay.send(call)
            replay.learn(call)
            where = f"{call.method.path} call {call.number}"
            if call.code:
                assert code == call.code, where
            if call.method is methods.BACKUP:
                # Leaders lead elsewhere here, so which store answers which piece differs: compare all stores together.
                backups[True] += call.responses
                backups[False] += answered
                continue
            if (
                call.method is not methods.KV_BATCH_COMMANDS
            ):  # a store puts as many answers into one message as it likes
                assert len(answered) == len(call.responses), where
            if call.method not in (methods.PD_GET_OPERATOR, methods.KV_BATCH_COMMANDS):
                assert shapes(answered) == shapes(list(call.responses)), where
            if call.method is methods.IMPORT_DOWNLOAD and not call.responses[0].ByteSize():
                continue
            assert meaning(answered) == meaning(list(call.responses)), where
        assert meaning(backups[False]) == meaning(backups[True])
        assert shapes(backups[False]) == shapes(backups[True])


@pytest.mark.parametrize("name", names())
async def test_pd_answers_http_as_recorded(name: str, tmp_path: Path) -> None:
    embedded = EmbeddedCluster(
        data_dir=tmp_path, api_version=api_version(name), stores=3, replicas=3, version="9.0.0-beta.2"
    )
    async with embedded, httpx.AsyncClient(base_url=f"http://{embedded.pd_address}") as client:
        for exchange in http(name):
            response = await client.request(exchange.verb, exchange.target, content=exchange.body.encode())
            assert response.status_code == exchange.status, exchange.target
            if exchange.verb == "GET" and exchange.target != "/pd/api/v1/ping":
                here, there = response.json(), json.loads(exchange.answer)
                assert type(here) is type(there), exchange.target
                if isinstance(there, dict):
                    # PD tells hundreds of settings; those that a job reads must be there, of the same type.
                    common = here.keys() & there.keys()
                    assert common >= there.keys() & WANTED, exchange.target
                    assert all(type(here[k]) is type(there[k]) for k in common), exchange.target
                elif isinstance(there, list):
                    assert set(here) >= {s for s in there if s.startswith("balance-")}
                else:
                    assert here == there


WANTED = {
    "max-merge-region-keys", "max-merge-region-size", "leader-schedule-limit", "region-schedule-limit",
    "max-snapshot-count", "enable-location-replacement", "max-pending-peer-count", "count",
}  # fmt: skip
