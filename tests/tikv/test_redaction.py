from __future__ import annotations

import asyncio

import pytest

from airflow_provider_tikvbr.engine_job import EngineJob
from airflow_provider_tikvbr.exceptions import EpochNotMatchError, InvalidOptionError, ProtocolError
from airflow_provider_tikvbr.proto import errorpb_pb2, metapb_pb2
from airflow_provider_tikvbr.rawbr.events import Listener
from airflow_provider_tikvbr.rawbr.options import parse_key_range
from airflow_provider_tikvbr.rawbr.plan import show_range
from airflow_provider_tikvbr.tikv.errors import from_kv_error, from_region_error
from airflow_provider_tikvbr.tikv.keys import ApiKey, KeyRange
from airflow_provider_tikvbr.tikv.redaction import redacting, show_answer, show_key, show_typed_key

SECRET = b"alice@example.org"


@pytest.mark.parametrize(("on", "shown"), [(False, SECRET.hex()), (True, "?")])
def test_a_key_is_shown_or_not(on: bool, shown: str) -> None:
    with redacting(on):
        assert show_key(SECRET) == shown
        assert show_key(b"", empty="the start") == "the start"
        assert show_range(KeyRange(ApiKey(SECRET), ApiKey(b""))) == f"[{shown}, the end)"
    assert show_key(SECRET) == SECRET.hex()


def test_jobs_side_by_side_choose_for_themselves() -> None:
    async def job(on: bool) -> str:
        with redacting(on):
            await asyncio.sleep(0)
            return show_key(SECRET)

    async def both() -> list[str]:
        return list(await asyncio.gather(job(True), job(False)))

    assert asyncio.run(both()) == ["?", SECRET.hex()]


def test_the_choice_reaches_the_thread_of_a_job() -> None:
    async def work(_: Listener) -> str:
        return await asyncio.to_thread(show_key, SECRET)

    with redacting(True):
        assert EngineJob(work).run() == "?"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("key 7A72000000616C69 is not in region 42", "key ? is not in region 42"),
        ('Key { key: "z\\\\x00alice" } of region 7', "Key { key: ? } of region 7"),
        ("key [97, 108, 105] not found on store 3", "key ? not found on store 3"),
        ("region 123456 is not ready, epoch 12 34", "region 123456 is not ready, epoch 12 34"),
        ("the deadbeef decade at 10.0.0.5:20160", "the deadbeef decade at 10.0.0.5:20160"),
    ],
)
def test_keys_in_the_text_of_a_server(text: str, shown: str) -> None:
    assert show_answer(text) == text
    with redacting(True):
        assert show_answer(text) == shown


@pytest.mark.parametrize(("start", "form"), [("zz" + "alice", "hex"), ("alice\\q", "escaped")])
def test_a_key_that_cannot_be_read_is_not_shown(start: str, form: str) -> None:
    with pytest.raises(InvalidOptionError, match="alice"):
        parse_key_range(start, "", form)
    with redacting(True), pytest.raises(InvalidOptionError, match=r"start \? is not a key") as caught:
        parse_key_range(start, "", form)
    assert "alice" not in str(caught.value)


def test_a_range_that_is_none_is_not_shown() -> None:
    with redacting(True), pytest.raises(InvalidOptionError, match=r"start \? is not less than end \?"):
        parse_key_range("bob", "alice", "raw")
    with redacting(True):
        assert show_typed_key("") == "''"


def test_errors_of_stores_hide_keys() -> None:
    region = metapb_pb2.Region(id=7, start_key=SECRET, end_key=SECRET + b"z")
    answer = errorpb_pb2.Error(
        message=f"key {SECRET.hex().upper()} is not in it",
        epoch_not_match=errorpb_pb2.EpochNotMatch(current_regions=[region]),
    )
    with redacting(True):
        error = from_region_error(answer, region_id=7, store_id=1, address="s:1")
        refused = from_kv_error(f'"{SECRET.decode()}"', method="/a/b", region_id=7, store_id=1, address="s:1")
        shown = f"{error} {error.attrs()} {refused}".lower()
    assert isinstance(error, EpochNotMatchError)
    assert isinstance(refused, ProtocolError)
    assert "alice" not in shown
    assert SECRET.hex() not in shown
    assert "region(id=7, keys=keyrange(start=?, end=?)" in shown
