"""When rules strike, alike for a seed, and which ones make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Place, Rule
from airflow_provider_tikvbr.embedded.faults import Event, Faults
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.proto import brpb_pb2, methods
from tests.support.clock import Clock

GET = Event(place=Place.CALL, name=methods.KV_RAW_GET.path, store_id=1)


def struck(faults: Faults, calls: int, event: Event = GET) -> list[bool]:
    return [bool(faults.strikes(event)) for _ in range(calls)]


def test_after_and_times() -> None:
    faults = Faults()
    rule = faults.add(Rule(kind=Kind.STATUS, after=2, times=3))
    assert struck(faults, 7) == [False] * 2 + [True] * 3 + [False] * 2
    assert (rule.hits, rule.armed) == (3, False)


def test_a_time_of_its_own() -> None:
    clock = Clock(100.0)
    faults = Faults(clock=clock)
    clock.now += 5
    faults.add(Rule(kind=Kind.STATUS, from_s=10, until_s=20))
    found = []
    for _ in range(4):
        found += struck(faults, 1)
        clock.now += 7
    assert found == [False, False, True, False]


def test_the_first_that_can_strikes_and_the_others_do_not_count_it() -> None:
    faults = Faults()
    first = faults.add(Rule(kind=Kind.STATUS, times=2))
    second = faults.add(Rule(kind=Kind.HANG))
    struck(faults, 5)
    assert (first.hits, second.hits, second.seen) == (2, 3, 3)


def test_chances_are_alike_for_a_seed() -> None:
    def run(seed: int, calls: int = 300) -> list[list[bool]]:
        faults = Faults()
        faults.seed(seed)
        for store_id in (1, 2):
            faults.add(Rule(kind=Kind.STATUS, probability=0.25, store_id=store_id))
        other = Event(place=Place.CALL, name=methods.KV_RAW_PUT.path, store_id=2)
        return [struck(faults, calls), struck(faults, calls, other)]

    assert run(7) == run(7)
    assert run(7) != run(8)
    one, two = run(7)
    assert one != two
    assert 45 < sum(one) < 105


def test_a_decision_depends_on_nothing_but_seed_rule_and_call() -> None:
    alone, among = Faults(), Faults()
    for faults in (alone, among):
        faults.seed(3)
        faults.add(Rule(kind=Kind.STATUS, probability=0.5))
    among.add(Rule(kind=Kind.DELAY, delay_s=0, probability=0.5, method="Download"))
    found = []
    for _ in range(50):
        found += struck(among, 1)
        struck(among, 2, Event(place=Place.CALL, name=methods.IMPORT_DOWNLOAD.path, store_id=2))
        struck(among, 1, Event(place=Place.HTTP, name="GET /pd/api/v1/stores"))
    assert struck(alone, 200)[::4] == found
    # What is known of one run must not change in a later release without being noticed: seeds stand in bug reports.
    alone.seed(3)
    assert "".join("x" if hit else "." for hit in struck(alone, 20)) == "x..x..x..x..xx..x..."


def test_seeding_starts_the_counts_anew_and_clearing_the_numbers() -> None:
    faults = Faults()
    rule = faults.add(Rule(kind=Kind.STATUS, probability=0.5))
    first = struck(faults, 40)
    faults.seed(0)
    assert (rule.number, struck(faults, 40)) == (0, first)
    faults.clear()
    assert faults.rules == ()
    assert faults.add(Rule(kind=Kind.STATUS, probability=0.5)).number == 0
    assert struck(faults, 40) == first


def test_names() -> None:
    rule = Rule(kind=Kind.DELAY, delay_s=0, method="POST /pd/api/v1/schedulers/*")
    assert rule.names("POST /pd/api/v1/schedulers/balance-leader-scheduler")
    assert not rule.names("GET /pd/api/v1/schedulers/balance-leader-scheduler")
    assert not rule.names(methods.PD_TSO.path)
    all_of_pd = Rule(kind=Kind.STATUS, method="/pdpb.PD/*")
    assert all_of_pd.names(methods.PD_TSO.path)
    assert not all_of_pd.names(methods.KV_RAW_GET.path)
    assert not all_of_pd.names("GET /pd/api/v1/stores")
    everything = Rule(kind=Kind.STATUS)
    assert everything.names("GET /pd/api/v1/stores")
    assert everything.names(methods.BACKUP.path)


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"kind": Kind.DELAY}, "delay_s"),
        ({"kind": Kind.SLOW}, "delay_s"),
        ({"kind": Kind.LATE}, "delay_s"),
        ({"kind": Kind.STORAGE_DELAY}, "delay_s"),
        ({"kind": Kind.HANG, "delay_s": -1}, "delay_s"),
        ({"kind": Kind.ANSWER}, "response"),
        ({"kind": Kind.STATUS, "response": brpb_pb2.BackupResponse()}, "response"),
        ({"kind": Kind.ANSWER, "response": brpb_pb2.BackupResponse(), "method": methods.PD_TSO}, "method"),
        ({"kind": Kind.REGION_ERROR}, "error"),
        ({"kind": Kind.REGION_ERROR, "error": "no_leader"}, "error"),
        ({"kind": Kind.REGION_ERROR, "error": "not_leader", "method": methods.PD_GET_REGION}, "method"),
        ({"kind": Kind.PD_ERROR, "error": "OK"}, "error"),
        ({"kind": Kind.PD_ERROR, "error": "UNKNOWN", "method": methods.KV_RAW_GET}, "method"),
        ({"kind": Kind.STATUS, "error": "not_leader"}, "error"),
        ({"kind": Kind.TEXT_ERROR, "method": methods.IMPORT_INGEST}, "method"),
        ({"kind": Kind.RESET, "method": methods.KV_RAW_GET}, "method"),
        ({"kind": Kind.DUPLICATE, "method": "/nonsuch"}, "method"),
        ({"kind": Kind.SILENT, "method": "nonsuch"}, "method"),
        ({"kind": Kind.STORAGE_503, "method": methods.KV_RAW_GET}, "method"),
        ({"kind": Kind.STATUS, "probability": 1.5}, "probability"),
        ({"kind": Kind.STATUS, "times": -1}, "times"),
        ({"kind": Kind.STATUS, "after": -1}, "after"),
        ({"kind": Kind.RESET, "messages": -1}, "messages"),
        ({"kind": Kind.STATUS, "from_s": float("nan")}, "from_s"),
    ],
)
def test_rules_that_make_no_sense(fields: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidOptionError) as error:
        Rule(**fields)
    assert error.value.parameter == parameter
