"""Every single request that was recorded at real stores, sent to embedded ones holding the same data."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from airflow_provider_tikvbr.embedded.cluster import EmbeddedCluster
from airflow_provider_tikvbr.embedded.records import PeerState, RegionState
from airflow_provider_tikvbr.proto import brpb_pb2, import_sstpb_pb2, kvrpcpb_pb2, metapb_pb2, methods, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiKey, ApiVersion, KeyCodec, RegionKey, UserKey
from tests.embedded.stores import Stores
from tests.support import golden
from tests.support.recordings import METHODS
from tests.support.replay import messages

RECORDING = Path(__file__).parent / "recordings" / "store.jsonl.gz"
CAS_KEY = UserKey(b"user:00000700cas")
# At the time of the recording the other clusters held the golden keys with other values, and had seen these requests
# once before.
SAME_DATA = "v1"


def cases(folder: str) -> list[dict[str, Any]]:
    """The recorded requests to one cluster, in order."""
    with gzip.open(RECORDING, "rt") as lines:
        return [row for row in map(json.loads, lines) if row["cluster"] == folder]


def responses(case: dict[str, Any]) -> list[Any]:
    """The recorded answers."""
    return [METHODS[case["method"]].response.FromString(base64.b64decode(r)) for r in case["responses"]]


def seen(recorded: dict[str, dict[str, Any]], codec: KeyCodec) -> list[tuple[UserKey, bytes]]:
    """The pairs that recorded answers show."""
    get = recorded["raw_get"]
    request = kvrpcpb_pb2.RawGetRequest.FromString(base64.b64decode(get["request"]))
    pairs = [(codec.user_key(ApiKey(request.key)), responses(get)[0].value)]
    for name in ("raw_scan_3", "raw_scan_reverse_3"):
        pairs += [(codec.user_key(ApiKey(p.key)), p.value) for p in responses(recorded[name])[0].kvs if p.key]
    return pairs


class Translation:
    """Puts the ids, epochs and paths of an embedded cluster into recorded messages."""

    def __init__(self, stores: Stores, recorded: list[pdpb_pb2.GetRegionResponse], damaged: Path) -> None:
        self.topology = stores.cluster.topology
        self.damaged = damaged
        self.recorded = {r.region.id: r for r in recorded}
        self.home = self.region(recorded[0].region.id)

    def region(self, region_id: int) -> RegionState:
        """The region here that a recorded one is."""
        return self.topology.region_of(RegionKey(self.recorded[region_id].region.start_key))

    def peer(self, peer_id: int) -> PeerState | None:
        """The peer here that a recorded one is."""
        for region_id, response in self.recorded.items():
            ours = self.region(region_id)
            if response.leader.id == peer_id:
                return ours.leader
            if any(p.id == peer_id for p in response.region.peers):
                return next(p for p in ours.peers if p is not ours.leader)
        return None

    def translate(self, message: Message) -> None:
        """Change a message in place."""
        for holder in (*messages(message, kvrpcpb_pb2.Context), *messages(message, import_sstpb_pb2.SSTMeta)):
            known = self.recorded.get(holder.region_id)
            if known is not None:
                ours = self.region(holder.region_id)
                holder.region_id = ours.id
                if holder.region_epoch == known.region.region_epoch:
                    holder.region_epoch.CopyFrom(ours.epoch())
        for peer in messages(message, metapb_pb2.Peer):
            found = self.peer(peer.id)
            if found is not None:
                stranger = all(peer.store_id != p.store_id for r in self.recorded.values() for p in r.region.peers)
                peer.CopyFrom(metapb_pb2.Peer(id=found.id, store_id=peer.store_id if stranger else found.store_id))
        for local in messages(message, brpb_pb2.Local):
            if local.path == "/backups/damaged":
                local.path = str(self.damaged)
            elif local.path.startswith("/nonexistent/"):
                local.path = str(self.damaged.with_name("missing"))
            elif local.path.startswith("/backups/"):
                local.path = str(golden.ROOT / local.path.removeprefix("/backups/"))

    def store(self, request: Any) -> int:
        """Which store a translated request goes to."""
        context = getattr(request, "context", None)
        if context is not None and context.peer.store_id in self.topology.stores:
            return int(context.peer.store_id)
        sst = getattr(request, "sst", None)
        if sst is not None:
            region = self.topology.by_id(sst.region_id)
            return (region or self.region([*self.recorded][1])).leader_store_id
        return self.home.leader_store_id


def masked(text: str) -> str:
    """A message without what differs between clusters: numbers and paths."""
    text = re.sub(r"(local://)?/[\w./-]+", "PATH", text)
    return re.sub(r"\d+", "N", text)


def told(error: Any) -> Any:
    """What a region error says."""
    current = error.epoch_not_match.current_regions[:1]
    return {
        "fields": sorted(f.name for f, _ in error.ListFields()),
        "message": masked(error.message),
        "current": [(r.start_key, r.end_key, r.region_epoch.conf_ver, len(r.peers)) for r in current],
        "key": (error.key_not_in_region.key, error.key_not_in_region.start_key, error.key_not_in_region.end_key),
        "leader": bool(error.not_leader.leader.id),
    }


def file_told(file: brpb_pb2.File, *, same_data: bool) -> Any:
    """What a backup file says that does not differ from run to run."""
    name = re.sub(r"^\d+_\d+_\d+_([0-9a-f]{64})_\d{13}_", r"store_region_epoch_\1_millis_", file.name)
    fields = ["start_key", "end_key", "start_version", "end_version", "total_kvs", "cf"]
    if same_data:
        fields += ["crc64xor", "total_bytes"]
    lengths = len(file.sha256), len(file.cipher_iv), file.size > 0
    return name, lengths, *(getattr(file, f) for f in fields)


def meaning(case: str, response: Any, *, same_data: bool) -> Any:
    """What a response says, without what differs between clusters."""
    if isinstance(response, brpb_pb2.BackupResponse):
        return {
            "error": masked(response.error.msg),
            "keys": (response.start_key, response.end_key),
            "api": response.api_version,
            "files": [file_told(f, same_data=same_data) for f in response.files],
        }
    if isinstance(response, methods.IMPORT_DOWNLOAD.response):
        message = masked(response.error.message)
        if "Corruption" in message:
            # How RocksDB goes on is told in other words here.
            message = message[: message.index("mismatch" if "mismatch" in message else ":")]
        return message, response.range, response.is_empty
    if isinstance(response, methods.IMPORT_INGEST.response):
        return told(response.error)
    if response.DESCRIPTOR.name == "RawGetKeyTTLResponse":
        return response.ttl in (999, 1000)
    if response.DESCRIPTOR.fields_by_name.get("region_error") and response.HasField("region_error"):
        return told(response.region_error)
    if case == "raw_get_key_not_in_region":
        return re.search(r"unknown error .*Key FFFFFF is out of \[region", response.error) is not None
    return response


@pytest.mark.parametrize("folder", ["v1", "v1ttl", "v2"])
async def test_stores_answer_recorded_requests_as_real_ones_did(folder: str, tmp_path: Path) -> None:
    recorded = {c["case"]: c for c in cases(folder)}
    regions = [responses(recorded[name])[0] for name in ("region_of_key", "region_of_file")]
    api = ApiVersion.parse(folder)
    codec = KeyCodec(api)
    borders = {k for r in regions for k in (r.region.start_key, r.region.end_key) if k}
    split_keys = [codec.user_key(codec.api_key_of_region_key(RegionKey(k))) for k in borders]
    damaged = tmp_path / "damaged"
    shutil.copytree(golden.ROOT / folder / "full", damaged)
    for sst in damaged.rglob("*.sst"):
        data = bytearray(sst.read_bytes())
        data[100] ^= 1
        sst.write_bytes(data)
    async with (
        EmbeddedCluster(
            data_dir=tmp_path / "data", api_version=api, stores=3, replicas=3, split_keys=split_keys
        ) as cluster,
        Stores(cluster) as stores,
    ):
        await cluster.put((p.key, p.value, p.ttl) for p in golden.truth(folder))
        if folder != SAME_DATA:
            await cluster.put([(CAS_KEY, b"1"), *seen(recorded, codec)])
        translation = Translation(stores, regions, damaged)
        for name, case in recorded.items():
            if case["method"] == methods.PD_GET_REGION.path:
                continue
            await check(case, name, stores, translation)


async def check(case: dict[str, Any], name: str, stores: Stores, translation: Translation) -> None:
    """Send one request and compare the answer."""
    method = METHODS[case["method"]]
    request = method.request.FromString(base64.b64decode(case["request"]))
    translation.translate(request)
    expected = responses(case)
    for response in expected:
        translation.translate(response)
    store_id = translation.store(request)
    found: list[Any] = []
    code, details = "OK", None
    try:
        if method.server_streams:
            found = [r async for r in stores.stream(method, request, store_id)]
        else:
            found = [await stores.call(method, request, store_id)]
    except grpc.aio.AioRpcError as error:
        code, details = error.code().name, error.details()
    assert (code, details) == (case["code"], case.get("details")), name
    if name == "backup_empty_keys" and expected[0].files:
        # Which regions the store led is another matter than what it said of each.
        assert found, name
        assert {r.api_version for r in found} == {r.api_version for r in expected}, name
        assert all(r.files and not r.HasField("error") for r in found), name
        return
    same = case["cluster"] == SAME_DATA
    assert [meaning(name, r, same_data=same) for r in found] == [meaning(name, r, same_data=same) for r in expected], (
        name
    )
