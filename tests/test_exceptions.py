from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import pytest

from airflow_provider_tikvbr import exceptions as e
from airflow_provider_tikvbr.tikv.keys import RegionKey
from airflow_provider_tikvbr.tikv.model import Peer, Region

ALL = [cls for _, cls in inspect.getmembers(e, inspect.isclass) if issubclass(cls, e.TikvBrError)]
BRANCHES = (e.TikvBrError, e.TransientError, e.TerminalError)


def make(cls: type[e.TikvBrError]) -> e.TikvBrError:
    needs_kind = "kind" in inspect.signature(cls).parameters or issubclass(cls, (e.RegionError, e.RegionRefusedError))
    fields: dict[str, Any] = {"kind": "x"} if needs_kind else {}
    return cls("one sentence", **fields)


@pytest.mark.parametrize("cls", ALL)
def test_every_error_says_whether_to_try_again(cls: type[e.TikvBrError]) -> None:
    if cls not in BRANCHES:
        assert issubclass(cls, e.TransientError) != issubclass(cls, e.TerminalError)
    assert str(make(cls)) == "one sentence"


def test_the_tree_is_the_one_that_the_module_describes() -> None:
    drawn = set(re.findall(r"(\w+Error)\b", (e.__doc__ or "").partition("The public fields")[0]))
    assert {cls.__name__ for cls in ALL} == drawn - {"ValueError"}


def test_public_fields_are_given_back() -> None:
    error = e.DownloadFailedError("no", file="1.sst", store_id=4, address="a:1")
    assert error.attrs() == {"file": "1.sst", "store_id": 4, "address": "a:1"}
    assert e.RegionNotFoundError("no", kind="region_not_found", region_id=7).attrs() == {
        "kind": "region_not_found",
        "region_id": 7,
    }


def test_a_wrong_option_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="no"):
        raise e.InvalidOptionError("no", parameter="pd")


@pytest.mark.parametrize("cls", ALL)
def test_errors_travel_between_processes(cls: type[e.TikvBrError]) -> None:
    """Airflow and process pools pickle what a task raises."""
    error = make(cls)
    error.store_id = 4
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == "one sentence"
    assert copy.attrs() == error.attrs()


def test_what_an_error_carries_travels_with_it() -> None:
    region = Region(
        id=7, start=RegionKey(b"a"), end=RegionKey(b""), conf_ver=1, version=2, peers=(Peer(8, 1),), leader=Peer(8, 1)
    )
    error = e.EpochNotMatchError("changed", kind="epoch_not_match", current_regions=(region,), region_id=7)
    assert pickle.loads(pickle.dumps(error)).current_regions == (region,)
