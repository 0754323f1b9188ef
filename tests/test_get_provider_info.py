from __future__ import annotations

import json
from importlib import import_module
from importlib.metadata import distribution, entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, validate  # type: ignore[import-untyped]
from packaging.utils import canonicalize_name

from airflow_provider_tikvbr import __version__
from airflow_provider_tikvbr.get_provider_info import get_provider_info
from airflow_provider_tikvbr.hooks.tikv import EXTRA_FIELDS, TiKVHook

AIRFLOW = Path(str(files("airflow")))


def schema(name: str) -> Any:
    return json.loads((AIRFLOW / name).read_text())


def test_airflow_takes_it() -> None:
    validate(get_provider_info(), schema("provider_info.schema.json"))


def test_its_name_is_the_distributions() -> None:
    # Any other name makes every command of Airflow fail.
    info = get_provider_info()
    assert info["package-name"] == canonicalize_name(distribution("airflow-provider-tikvbr").metadata["name"])
    assert info["versions"] == [__version__]


def test_airflow_finds_it() -> None:
    found = [e for e in entry_points(group="apache_airflow_provider") if e.load() is get_provider_info]
    assert len(found) == 1


@pytest.mark.parametrize("part", ["integrations", "connection-types", "hooks", "operators", "sensors"])
def test_each_part_is_as_airflows_own_providers_write_it(part: str) -> None:
    whole = schema("provider.yaml.schema.json")
    part_schema = {**whole["properties"][part], "definitions": whole.get("definitions", {})}
    value = get_provider_info()[part]
    if part == "integrations":
        # their tags are a closed list of Airflow's own pages
        value = [{k: v for k, v in entry.items() if k != "tags"} for entry in value]
        part_schema["items"] = {**part_schema["items"], "required": ["integration-name"]}
    Draft7Validator(part_schema).validate(value)


@pytest.mark.parametrize("part", ["hooks", "operators", "sensors"])
def test_its_modules_exist(part: str) -> None:
    for entry in get_provider_info()[part]:
        for name in entry["python-modules"]:
            import_module(name)


def test_the_connection_type_is_the_hooks() -> None:
    (kind,) = get_provider_info()["connection-types"]
    module, _, name = kind["hook-class-name"].rpartition(".")
    assert getattr(import_module(module), name) is TiKVHook
    assert kind["connection-type"] == TiKVHook.conn_type
    assert kind["hook-name"] == TiKVHook.hook_name


def test_the_form_offers_what_the_hook_reads() -> None:
    (kind,) = get_provider_info()["connection-types"]
    assert set(kind["conn-fields"]) == set(EXTRA_FIELDS)


def test_the_private_key_is_masked() -> None:
    (kind,) = get_provider_info()["connection-types"]
    assert kind["conn-fields"]["private_key"]["schema"]["format"] == "password"


def test_each_choice_has_a_name_in_the_form() -> None:
    (kind,) = get_provider_info()["connection-types"]
    choices = kind["conn-fields"]["api_version"]["schema"]
    assert {"null"} == set(choices["values_display"]) == {"null" for choice in choices["enum"] if choice is None}
