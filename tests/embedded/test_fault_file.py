"""Rules of faults from a JSON file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from airflow_provider_tikvbr.embedded.fault_file import faults_of, read_faults
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.weather_events import events_from_json
from airflow_provider_tikvbr.exceptions import InvalidOptionError

EVERY_FIELD: dict[str, Any] = {
    "kind": "region_error",
    "method": "Raw*",
    "store_id": 2,
    "pd_member": "pd-1",
    "region_id": 5,
    "file": "1/*",
    "after": 1,
    "times": 3,
    "probability": 0.5,
    "from_s": 1,
    "until_s": 2.5,
    "messages": 4,
    "error": "not_leader",
    "code": "INTERNAL",
    "status": 500,
    "details": "why",
    "delay_s": 0.1,
}


def test_every_field(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps({"seed": 7, "rules": [EVERY_FIELD, {"kind": "hang", "times": None}]}))
    seed, (rule, plain), events = read_faults(path)
    assert events == ()
    assert seed == 7
    expected = {**EVERY_FIELD, "kind": Kind.REGION_ERROR, "code": grpc.StatusCode.INTERNAL}
    assert {name: getattr(rule, name) for name in EVERY_FIELD} == expected
    assert {f.name for f in dataclasses.fields(Rule) if f.init} - set(EVERY_FIELD) == {"response"}
    assert (plain.kind, plain.method, plain.times, plain.probability) == (Kind.HANG, "*", None, 1.0)


def test_a_list_alone() -> None:
    seed, rules, _ = faults_of([{"kind": kind, **fields} for kind, fields in PLAIN.items()])
    assert (seed, [rule.kind.value for rule in rules]) == (0, list(PLAIN))


PLAIN: dict[str, dict[str, Any]] = {
    **{kind.value: {} for kind in Kind if kind is not Kind.ANSWER},
    **{kind: {"delay_s": 1} for kind in ("delay", "slow", "late", "storage_delay")},
    "region_error": {"error": "not_leader"},
    "pd_error": {"error": "NOT_BOOTSTRAPPED"},
}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "a list of rules"),
        ({"rules": {}}, "a list of rules"),
        ({"rules": [], "sead": 1}, "a list of rules"),
        ({"rules": [], "seed": "x"}, "a list of rules"),
        ({"events": {}}, "events are a list of objects"),
        ({"events": [{"kind": "rain"}]}, "event 0: kind='rain' is none of shuffle_leaders, "),
        ([3], "rule 0 is not an object"),
        ([{"kind": "hang"}, {}], "rule 1 has no kind"),
        ([{"kind": "hangs"}], "kind='hangs' is none of status, "),
        ([{"kind": "hang", "stores": 1}], "field 'stores'; known are kind, method"),
        ([{"kind": "hang", "store_id": "1"}], "store_id='1' is not of type int"),
        ([{"kind": "hang", "after": True}], "after=True is not of type int"),
        ([{"kind": "hang", "after": None}], "after=None is not of type int"),
        ([{"kind": "hang", "times": 1.5}], "times=1.5 is not of type int"),
        ([{"kind": "hang", "method": 3}], "method=3 is not of type str"),
        ([{"kind": "status", "code": "OK"}], "code='OK' is none of CANCELLED, "),
        ([{"kind": "answer", "response": {}}], "field 'response'"),
        ([{"kind": "delay"}], "rule 0: a fault delay needs delay_s"),
    ],
)
def test_files_that_hold_no_rules(tmp_path: Path, value: object, said: str) -> None:
    path = tmp_path / "faults.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InvalidOptionError) as error:
        read_faults(path)
    assert str(path) in error.value.message
    assert said in error.value.message
    assert error.value.parameter == "faults"


def test_events_beside_rules() -> None:
    events = [{"kind": "stop_store", "at_s": 1, "store_id": 2, "for_s": 60}, {"kind": "shuffle_leaders", "every_s": 1}]
    assert faults_of({"seed": 7, "events": events}).rules == []
    script = faults_of({"rules": [{"kind": "hang"}], "events": events})
    assert len(script.rules) == 1
    assert script.events == events_from_json(events)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="cannot be read: No such file"):
        read_faults(tmp_path / "none")
    (tmp_path / "broken").write_text("{")
    with pytest.raises(InvalidOptionError, match="is not JSON"):
        read_faults(tmp_path / "broken")
