"""The documentation says what the code does: flags, parameters, defaults, links, examples."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import click
import pytest

from airflow_provider_tikvbr.cli.flags import GoBool
from airflow_provider_tikvbr.cli.main import tikvbr
from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.hooks.tikv import EXTRA_FIELDS
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from airflow_provider_tikvbr.storage.s3_location import S3_PARAMETERS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def page(name: str) -> str:
    return (ROOT / name).read_text()


def rows(text: str) -> dict[str, str]:
    """The default (second column) of everything that a table row is about."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) >= 3:
            names = re.findall(r"`([^`]+)`", cells[0])
            defaults = cells[1].split(", ") if len(names) > 1 else [cells[1]]
            for at, name in enumerate(names):
                found[name] = defaults[min(at, len(defaults) - 1)].strip("`")
    return found


def flags(*path: str) -> list[click.Option]:
    command: click.Command = tikvbr
    for word in path:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return [param for param in command.params if isinstance(param, click.Option) and param.expose_value]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("backup", "raw"), "docs/command.md"),
        (("restore", "raw"), "docs/command.md"),
        (("checksum",), "docs/command.md"),
        (("embedded",), "docs/embedded.md"),
    ],
)
def test_every_flag_is_documented_with_its_default(path: tuple[str, ...], name: str) -> None:
    documented = rows(page(name))
    for option in flags(*path):
        for spelling in option.opts:
            assert spelling in documented, spelling
        default = option.get_default(click.Context(tikvbr))
        if isinstance(default, (list, tuple)):
            default = ",".join(default)
        if isinstance(option.type, GoBool):
            default = str(default).lower()
        if isinstance(default, (str, int)) and default != "":
            assert documented[max(option.opts, key=len)] == str(default), option.name


def test_no_flag_is_documented_that_does_not_exist() -> None:
    exist = {s for path in (("backup", "raw"), ("restore", "raw"), ("checksum",)) for o in flags(*path) for s in o.opts}
    assert {name for name in rows(page("docs/command.md")) if name.startswith("-")} - exist <= {
        *("-h", "--help", "-V", "--version")
    }


@pytest.mark.parametrize("operator", [BackupRawOperator, RestoreRawOperator, ChecksumSensor])
def test_every_parameter_is_documented_with_its_default(operator: type[Any]) -> None:
    text = page("docs/operators.md")
    chapters = {part.splitlines()[0]: part for part in text.split("\n## ")[1:]}
    backup, own = chapters["BackupRawOperator"], chapters[operator.__name__]
    documented = rows(backup) | rows(own)
    for parameter in inspect.signature(operator.__init__).parameters.values():
        if parameter.name in ("self", "kwargs"):
            continue
        assert f"`{parameter.name}`" in own, parameter.name
        default = parameter.default
        if default not in (parameter.empty, ""):
            assert documented[parameter.name] == str(default), parameter.name


def test_every_field_of_a_connection_is_documented() -> None:
    text = page("docs/operators.md")
    assert [name for name in EXTRA_FIELDS if f"`{name}`" not in text] == []


def test_every_parameter_of_an_s3_url_is_documented() -> None:
    text = page("docs/operators.md")
    assert [name for name in sorted(S3_PARAMETERS) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles], target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_named_files_exist(path: Path) -> None:
    for name in re.findall(r"`((?:dags|docs|tests|rawbr|tikv|storage|embedded|cli)/[\w./]+\.\w+)`", path.read_text()):
        assert (ROOT / name).exists() or (ROOT / "airflow_provider_tikvbr" / name).exists(), name


def test_make_targets_are_documented() -> None:
    targets = re.findall(r"^(\w+):.*##", page("Makefile"), re.MULTILINE)
    text = page("CONTRIBUTING.md")
    assert [name for name in targets if name != "help" and f"| `make {name}` |" not in text] == []


def test_the_dag_of_the_readme_is_one() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page("README.md"), re.DOTALL)
    space: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), space)
    assert [task.task_id for task in space["dag"].topological_sort()] == ["backup", "rehearse", "verify"]


def test_every_error_of_the_tree_is_in_it() -> None:
    import airflow_provider_tikvbr.exceptions as module

    drawn = module.__doc__ or ""
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, TikvBrError)]
    assert [c.__name__ for c in classes if c.__name__ not in drawn] == []
