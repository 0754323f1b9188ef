from __future__ import annotations

import pytest

from airflow_provider_tikvbr.exceptions import RegionNotReadyError
from airflow_provider_tikvbr.proto import kvrpcpb_pb2, metapb_pb2, pdpb_pb2
from airflow_provider_tikvbr.tikv.keys import ApiVersion, KeyRange, RegionKey
from airflow_provider_tikvbr.tikv.model import Peer, Region, Store, StoreState

MESSAGE = metapb_pb2.Region(
    id=32,
    start_key=b"a",
    end_key=b"c",
    region_epoch=metapb_pb2.RegionEpoch(conf_ver=5, version=8),
    peers=[metapb_pb2.Peer(id=33, store_id=1), metapb_pb2.Peer(id=34, store_id=5, role="Learner")],
)


def test_a_store_as_pd_tells_it() -> None:
    message = metapb_pb2.Store(
        id=4,
        address="kv:20160",
        peer_address="kv-inner:20160",
        status_address="kv:20180",
        version="8.5.0",
        labels=[metapb_pb2.StoreLabel(key="zone", value="z1")],
        node_state="Serving",
    )
    store = Store.of(message)
    assert store == Store(
        id=4,
        address="kv:20160",
        peer_address="kv-inner:20160",
        status_address="kv:20180",
        version="8.5.0",
        labels={"zone": "z1"},
    )
    assert store.is_up
    assert not store.is_tiflash
    assert store.data_address == "kv-inner:20160"


def test_without_a_peer_address_data_calls_go_to_the_address() -> None:
    assert Store(id=4, address="kv:20160").data_address == "kv:20160"


def test_which_stores_take_part() -> None:
    assert not Store.of(metapb_pb2.Store(id=1, state="Offline")).is_up
    assert not Store.of(metapb_pb2.Store(id=1, state="Tombstone")).is_up
    assert not Store.of(metapb_pb2.Store(id=1, node_state="Removed")).is_up
    assert Store(id=1, address="", labels={"engine": "tiflash"}).is_tiflash
    assert Store(id=1, address="", labels={"engine": "tiflash_compute"}).is_tiflash
    assert not Store(id=1, address="", labels={"engine": "tikv"}).is_tiflash


def test_states_have_the_numbers_of_the_protocol() -> None:
    assert {state.name: state.value for state in StoreState} == {
        name.upper(): number for name, number in metapb_pb2.StoreState.items()
    }


def test_a_region_as_pd_tells_it() -> None:
    region = Region.of(MESSAGE, metapb_pb2.Peer(id=33, store_id=1))
    assert region == Region(
        id=32,
        start=region.start,
        end=region.end,
        conf_ver=5,
        version=8,
        peers=(Peer(33, 1), Peer(34, 5, 1)),
        leader=Peer(33, 1),
    )
    assert region.keys == KeyRange(RegionKey(b"a"), RegionKey(b"c"))
    assert region.epoch == MESSAGE.region_epoch
    assert Region.of_pd(pdpb_pb2.Region(region=MESSAGE, leader=metapb_pb2.Peer(id=33, store_id=1))) == region


def test_an_empty_leader_is_none() -> None:
    assert Region.of(MESSAGE).leader is None
    assert Region.of(MESSAGE, metapb_pb2.Peer()).leader is None
    assert Region.of_pd(pdpb_pb2.Region(region=MESSAGE)).leader is None


def test_a_request_context_carries_v1_or_v2_only() -> None:
    region = Region.of(MESSAGE)
    for version, stamped in ((ApiVersion.V1, "V1"), (ApiVersion.V1TTL, "V1"), (ApiVersion.V2, "V2")):
        context = region.context(region.peers[1], version)
        assert context.api_version == kvrpcpb_pb2.APIVersion.Value(stamped)
        assert (context.region_id, context.region_epoch, context.peer) == (32, MESSAGE.region_epoch, MESSAGE.peers[1])
    assert region.context(region.peers[0]).api_version == kvrpcpb_pb2.V1


def test_a_region_without_leader_is_not_ready() -> None:
    assert Region.of(MESSAGE, metapb_pb2.Peer(id=33, store_id=1)).known_leader() == Peer(33, 1)
    with pytest.raises(RegionNotReadyError, match="region 32 has no leader") as caught:
        Region.of(MESSAGE).known_leader()
    assert (caught.value.kind, caught.value.region_id) == ("no_leader", 32)
