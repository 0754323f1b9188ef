from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.addresses import AddressMap, Target

MAP = AddressMap.parse("tikv-0:20160=10.0.0.5:30160, tikv-0:20180=10.0.0.5:30180\nTiKV-1=10.0.0.6,,[fd00::1]=node\n")


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("tikv-0:20160", "10.0.0.5:30160"),
        ("tikv-0:20180", "10.0.0.5:30180"),
        # An entry with a port means that port alone; one without means the host, whatever the port.
        ("tikv-0:1", "tikv-0:1"),
        ("tikv-1:20160", "10.0.0.6:20160"),
        ("TIKV-1:5", "10.0.0.6:5"),
        ("tikv-10:20160", "tikv-10:20160"),
        ("[fd00::1]:20160", "node:20160"),
        ("[fd00::2]:20160", "[fd00::2]:20160"),
    ],
)
def test_where_an_address_is_reached(address: str, reach: str) -> None:
    assert MAP.target(address) == Target(address=address, reach=reach)


def test_an_entry_with_a_port_goes_first() -> None:
    found = AddressMap.parse("a=b,a:1=c:2,a:3=d")
    assert [found.target(f"a:{port}").reach for port in (1, 2, 3)] == ["c:2", "b:2", "d:3"]


def test_no_map() -> None:
    empty: list[Any] = [None, "", " ", "\n,", {}]
    for nothing in empty:
        found = AddressMap.parse(nothing)
        assert found == AddressMap()
        assert not found
        assert found.target("a:1") == Target.at("a:1")
    assert MAP


def test_a_mapping_is_read_like_text() -> None:
    assert AddressMap.parse({"a:1": "b:2", "c": "[::1]"}) == AddressMap.parse("a:1=b:2,c=[::1]")


def test_messages_name_both_addresses() -> None:
    assert str(MAP.target("tikv-0:20160")) == "tikv-0:20160 (reached at 10.0.0.5:30160)"
    assert str(MAP.target("tikv-9:20160")) == "tikv-9:20160"
    assert MAP.target("[fd00::1]:1").host == "fd00::1"


def test_who_answers_at_an_address_that_was_given() -> None:
    found = AddressMap.parse("pd-0:2379=10.0.0.5:32379,tikv-0=10.0.0.6,tikv-1=10.0.0.7,pd-1=10.0.0.7")
    assert found.behind("10.0.0.5:32379") == Target(address="pd-0:2379", reach="10.0.0.5:32379")
    assert found.behind("10.0.0.6:1") == Target(address="tikv-0:1", reach="10.0.0.6:1")
    # Two names lead there, or none: whose certificate it is cannot be told.
    for address in ("10.0.0.7:1", "10.0.0.5:1", "pd-0:2379"):
        assert found.behind(address) == Target.at(address)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tikv-0", "'tikv-0' is no entry of an address map: write host:port=host:port or host=host"),
        ("a:1=", "'' in the address map is neither host:port nor a host"),
        ("=a:1", "'' in the address map is neither host:port nor a host"),
        ("a=b=c", "'b=c' in the address map is neither host:port nor a host"),
        ("a:0=b:1", "'a:0' in the address map is neither host:port nor a host"),
        ("a:1=b:65536", "'b:65536' in the address map is neither host:port nor a host"),
        ("http://a:1=b:1", "'http://a:1' in the address map is neither host:port nor a host"),
        ("fd00::1=b", "'fd00::1' in the address map is neither host:port nor a host"),
        ("user:hunter2@a:1=b:1", "'a:1' in the address map is neither host:port nor a host"),
        ("a=b:1", "a=b:1 in the address map gives a port on the right side only"),
        ("[::1]=b:1", "gives a port on the right side only"),
        ("a:1=b:1,A:1=c:1", "A:1 is mapped to b:1 and to c:1 in the address map: give it once"),
        ({"a:1": 5}, "the entry of 'a:1' in the address map is not text"),
    ],
)
def test_what_is_no_map_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        AddressMap.parse(value)
    assert caught.value.parameter == "address_map"
    text = str(caught.value)
    assert "address map" in text
    assert message in text
    assert "hunter2" not in text
    assert "\n" not in text
