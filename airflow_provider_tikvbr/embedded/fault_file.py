"""Faults as a JSON file: a list of rules, or an object with ``seed``, ``rules`` and ``events``, which are weather."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.embedded.weather_events import WeatherEvent, events_from_json
from airflow_provider_tikvbr.exceptions import InvalidOptionError

# A message cannot be given in a file.
_FIELDS = {f.name: str(f.type) for f in dataclasses.fields(Rule) if f.init and f.name != "response"}
_TYPES: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}


class FaultScript(NamedTuple):
    """What a file of faults holds.

    :param seed: for all that is left to chance.
    :param rules: what goes wrong at calls and files.
    :param events: what happens to the cluster.
    """

    seed: int
    rules: list[Rule]
    events: tuple[WeatherEvent, ...]


def read_faults(path: Path) -> FaultScript:
    """What a file holds.

    :raises InvalidOptionError: the file cannot be read, or does not hold faults.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as err:
        raise _wrong(f"cannot be read: {err.strerror}", path) from err
    except ValueError as err:
        raise _wrong(f"is not JSON: {err}", path) from err
    try:
        return faults_of(value)
    except InvalidOptionError as err:
        raise _wrong(err.message, path) from err


def faults_of(value: object) -> FaultScript:
    """What a JSON value holds.

    :raises InvalidOptionError: it does not hold faults.
    """
    given = value if isinstance(value, dict) else {"rules": value}
    seed, rules = given.get("seed", 0), given.get("rules", [] if "events" in given else None)
    if given.keys() - {"seed", "rules", "events"} or not isinstance(rules, list) or type(seed) is not int:
        raise InvalidOptionError(
            "faults are a list of rules, or an object with seed, rules and events", parameter="faults"
        )
    return FaultScript(
        seed, [_rule(at, each) for at, each in enumerate(rules)], events_from_json(given.get("events", []))
    )


def _rule(at: int, value: object) -> Rule:
    if not isinstance(value, dict):
        raise InvalidOptionError(f"rule {at} is not an object", parameter="faults")
    fields: dict[str, Any] = {name: _field(at, name, each) for name, each in value.items()}
    if "kind" not in fields:
        raise InvalidOptionError(f"rule {at} has no kind", parameter="faults")
    try:
        return Rule(**fields)
    except InvalidOptionError as err:
        raise InvalidOptionError(f"rule {at}: {err.message}", parameter="faults") from err


def _field(at: int, name: str, value: object) -> object:
    if name not in _FIELDS:
        known = ", ".join(_FIELDS)
        raise InvalidOptionError(f"rule {at} has a field {name!r}; known are {known}", parameter="faults")
    if name == "kind":
        return _one_of(at, name, value, {kind.value: kind for kind in Kind})
    if name == "code":
        return _one_of(at, name, value, {code.name: code for code in grpc.StatusCode if code is not grpc.StatusCode.OK})
    words = {word.strip() for word in _FIELDS[name].split("|")}
    if value is None and "None" in words:
        return None
    (kind,) = words & _TYPES.keys()
    if not isinstance(value, _TYPES[kind]) or isinstance(value, bool):
        raise InvalidOptionError(f"rule {at}: {name}={value!r} is not of type {kind}", parameter="faults")
    return value


def _one_of(at: int, name: str, value: object, known: Mapping[str, object]) -> object:
    if not isinstance(value, str) or value not in known:
        raise InvalidOptionError(f"rule {at}: {name}={value!r} is none of {', '.join(known)}", parameter="faults")
    return known[value]


def _wrong(what: str, path: Path) -> InvalidOptionError:
    return InvalidOptionError(f"the file of faults {path}: {what}", parameter="faults")
