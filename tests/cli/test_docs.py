"""The documentation says what the code does: flags, parameters, defaults, exit codes, links, examples."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import click
import pytest
from airflow.models import Connection
from packaging.version import Version

from airflow_provider_tikvbr.cli.flags import GoBool, canonical
from airflow_provider_tikvbr.cli.main import main, tikvbr
from airflow_provider_tikvbr.cli.options import Ignored
from airflow_provider_tikvbr.embedded.fault_file import faults_of
from airflow_provider_tikvbr.embedded.fault_rules import Kind, Rule
from airflow_provider_tikvbr.exceptions import TikvBrError
from airflow_provider_tikvbr.hooks.tikv import EXTRA_FIELDS, TiKVHook
from airflow_provider_tikvbr.operators.backup import BackupRawOperator
from airflow_provider_tikvbr.operators.restore import RestoreRawOperator
from airflow_provider_tikvbr.rawbr import gates, gates_storage
from airflow_provider_tikvbr.sensors.checksum import ChecksumSensor
from airflow_provider_tikvbr.storage.azure_location import AZURE_PARAMETERS, TIERS
from airflow_provider_tikvbr.storage.gcs_location import GCS_PARAMETERS, PREDEFINED_ACLS, STORAGE_CLASSES
from airflow_provider_tikvbr.storage.s3_location import S3_PARAMETERS, VIRTUAL_HOST_PROVIDERS
from airflow_provider_tikvbr.storage.url import parse_url
from airflow_provider_tikvbr.tikv import versions

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TIKV_BR = "docs/coming-from-tikv-br.md"

COMMANDS = {
    "backup raw": "docs/command/backup-raw.md",
    "restore raw": "docs/command/restore-raw.md",
    "checksum": "docs/command/checksum.md",
    "repair": "docs/command/repair.md",
    "debug decode": "docs/command/debug.md",
    "debug encode": "docs/command/debug.md",
    "debug reset-pd-config-as-default": "docs/command/debug.md",
    "embedded": "docs/embedded.md",
    "demo": "docs/demo.md",
}
TASKS = {
    BackupRawOperator: "docs/operators/backup.md",
    RestoreRawOperator: "docs/operators/restore.md",
    ChecksumSensor: "docs/sensors/checksum.md",
}
STORAGES = {"S3": S3_PARAMETERS, "Google Cloud Storage": GCS_PARAMETERS, "Azure Blob Storage": AZURE_PARAMETERS}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def chapter(text: str, title: str) -> str:
    """What stands below a title, up to the next one of its level."""
    (found,) = re.findall(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found[1])


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


def examples(text: str, kind: str) -> list[str]:
    """The blocks of code of a language."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def all_examples(kind: str) -> list[Any]:
    return [
        pytest.param(code, id=f"{of(path)}-{at}")
        for path in PAGES
        for at, code in enumerate(examples(path.read_text(), kind))
    ]


def command_at(path: str) -> click.Command:
    command: click.Command = tikvbr
    for word in path.split():
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def flags(path: str) -> list[click.Option]:
    return [option for option in command_at(path).params if isinstance(option, click.Option)]


def flags_of_tikv_br() -> set[str]:
    lines = (Path(__file__).parent / "data" / "flags.txt").read_text().splitlines()
    return {f"--{line.split('|')[1]}" for line in lines if not line.startswith("#")}


@pytest.mark.parametrize(("path", "name"), COMMANDS.items())
def test_every_flag_is_documented_with_its_default(path: str, name: str) -> None:
    text = page(name)
    documented = rows(text)
    for option in flags(path):
        if isinstance(option, Ignored):
            assert f"`{option.opts[0]}`" in text, f"{name} has to name {option.opts[0]}, which has no effect"
            continue
        for spelling in option.opts:
            assert spelling in documented, f"{name} has no row for {spelling}"
        default = None if option.required else option.get_default(click.Context(tikvbr))
        if isinstance(default, (list, tuple)):
            default = ",".join(default)
        if isinstance(option.type, GoBool):
            default = str(default).lower()
        if isinstance(default, (str, int)) and default != "":
            assert documented[max(option.opts, key=len)] == str(default), f"{name}: {option.name}"


@pytest.mark.parametrize("name", sorted(set(COMMANDS.values())))
def test_no_flag_is_documented_that_does_not_exist(name: str) -> None:
    exist = {s for path, there in COMMANDS.items() if there == name for option in flags(path) for s in option.opts}
    assert {flag for flag in rows(page(name)) if flag.startswith("-")} - exist == set()


@pytest.mark.parametrize("name", [name for name in sorted(set(COMMANDS.values())) if name.startswith("docs/command/")])
def test_what_help_does_not_show_is_marked(name: str) -> None:
    options = {s: o for path, there in COMMANDS.items() if there == name for o in flags(path) for s in o.opts}
    for line in page(name).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `-") and len(cells) == 5:
            first, _, _, hidden, _ = cells
            for spelling in re.findall(r"`([^`]+)`", first):
                assert (hidden == "yes") == options[spelling].hidden, spelling


def test_what_becomes_of_every_flag_of_tikv_br_is_told() -> None:
    text = page(TIKV_BR)
    documented = set(rows(chapter(text, "Flags")))
    theirs, ours = (
        flags_of_tikv_br(),
        {s for path in COMMANDS if path not in ("embedded", "demo") for o in flags(path) for s in o.opts},
    )
    assert theirs - documented == set()
    assert {name for name in documented if name.startswith("--")} - theirs == set()
    alone = chapter(text, "Flags").rpartition("Ours alone")[2]
    assert [name for name in sorted(ours - theirs) if name.startswith("--") and f"`{name}`" not in alone] == []


@pytest.mark.parametrize(("task", "name"), TASKS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_every_parameter_is_documented_with_its_default(task: type[Any], name: str) -> None:
    documented = rows(chapter(page(name), "Parameters"))
    parameters = inspect.signature(task.__init__).parameters.values()
    for parameter in parameters:
        if parameter.name in ("self", "kwargs"):
            continue
        assert parameter.name in documented, f"{name} has no row for {parameter.name}"
        if parameter.default not in (parameter.empty, "", None):
            assert documented[parameter.name] == str(parameter.default), f"{name}: {parameter.name}"
    assert set(documented) - {parameter.name for parameter in parameters} == set()


@pytest.mark.parametrize(("task", "name"), TASKS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_every_parameter_is_given_beside_tikv_brs_name(task: type[Any], name: str) -> None:
    theirs = flags_of_tikv_br()
    for line in chapter(page(name), "Parameters").splitlines():
        if line.startswith("| `"):
            cell = line.split("|")[4]
            named = re.findall(r"`([^`]+)`", cell)
            assert named or cell.strip() in ("none", "environment"), line
            assert set(named) <= theirs, line


def test_every_number_of_a_summary_is_documented() -> None:
    from airflow_provider_tikvbr.rawbr.summary import BackupSummary, RestoreSummary

    for kind, name in ((BackupSummary, "docs/operators/backup.md"), (RestoreSummary, "docs/operators/restore.md")):
        told = {n for row in rows_of_first_cells(chapter(page(name), "What it returns")) for n in row}
        fields = {*(each.name for each in dataclasses.fields(kind)), "files", "average_speed"}
        assert fields - told == set(), name
        assert told - fields == set(), name


def rows_of_first_cells(text: str) -> list[list[str]]:
    return [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in text.splitlines() if line.startswith("| `")]


def test_every_field_of_a_connection_is_documented() -> None:
    documented = rows(chapter(page("docs/hooks/tikv.md"), "Fields"))
    assert set(documented) == set(EXTRA_FIELDS)


@pytest.mark.parametrize(("kind", "parameters"), STORAGES.items())
def test_every_parameter_of_a_storage_url_is_documented(kind: str, parameters: frozenset[str]) -> None:
    assert set(rows(chapter(page("docs/storage.md"), kind))) == set(parameters)
    text = chapter(page(TIKV_BR), "Parameters of storage URLs")
    assert [name for name in sorted(parameters) if f"`{name}`" not in text] == []


def test_every_word_that_a_storage_parameter_may_be_is_documented() -> None:
    text = page("docs/storage.md")
    for word in (*STORAGE_CLASSES, *PREDEFINED_ACLS, *TIERS, *VIRTUAL_HOST_PROVIDERS):
        assert f"`{word}`" in text, word


def test_every_version_that_something_needs_is_documented() -> None:
    cells = [
        line.split("|")[1] for line in chapter(page("docs/operations.md"), "What is needed").splitlines() if "|" in line
    ]
    told = set(re.findall(r"\d+\.\d+\.\d+", " ".join(cells)))
    needed = {
        str(v) for module in (gates, gates_storage, versions) for v in vars(module).values() if isinstance(v, Version)
    }
    assert told == needed


@pytest.mark.parametrize("path", PAGES, ids=of)
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


def test_every_page_is_in_the_table_of_contents() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", page("docs/index.md"))
    there = {str(path.relative_to(ROOT / "docs")) for path in PAGES if (ROOT / "docs") in path.parents}
    assert there - set(linked) == {"index.md"}


@pytest.mark.parametrize("path", PAGES, ids=of)
def test_named_files_exist(path: Path) -> None:
    for name in re.findall(r"`((?:dags|docs|tests|rawbr|tikv|storage|embedded|cli)/[\w./-]+\.\w+)`", path.read_text()):
        assert (ROOT / name).exists() or (ROOT / "airflow_provider_tikvbr" / name).exists(), name


def test_make_targets_are_documented() -> None:
    targets = re.findall(r"^(\w+):.*##", page("Makefile"), re.MULTILINE)
    text = page("CONTRIBUTING.md")
    assert [name for name in targets if name != "help" and f"| `make {name}` |" not in text] == []
    named = {name for path in PAGES for name in re.findall(r"(?:`|\$ )make (\w+)", path.read_text())}
    assert named - set(targets) == set()


@pytest.mark.parametrize(
    ("line", "code"),
    re.findall(
        r"^\| `tikvbr ([^`]+)` \| (\d+) \|$", chapter(page("docs/command/index.md"), "Exit codes"), re.MULTILINE
    ),
)
def test_exit_codes_are_as_documented(line: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)) == int(code)
    said = capsys.readouterr()
    assert ("Error: " in said.err) == (code != "0")
    assert "this is a bug" not in said.err


def typed(code: str) -> list[str]:
    """The command lines that a reader types."""
    joined = re.sub(r"\\\n\s*", "", code)
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ tikvbr ")]


@pytest.mark.parametrize("code", [*all_examples("console")])
def test_command_lines_can_be_read(code: str) -> None:
    for line in typed(code):
        words = canonical(tikvbr, shlex.split(line)[1:])
        command: click.Command = tikvbr
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        context = command.make_context("tikvbr", words)
        if storage := context.params.get("storage"):
            parse_url(storage)


def test_there_are_command_lines() -> None:
    found = [line for path in PAGES for code in examples(path.read_text(), "console") for line in typed(code)]
    assert len(found) > 20


@pytest.mark.parametrize("code", all_examples("json"))
def test_json_can_be_read(code: str) -> None:
    said = json.loads(code)
    if {"rules", "events"} & set(said):
        faults_of(said)
        return
    assert {"conn_type"} <= set(said)
    if said["conn_type"] == "tikv":
        assert set(said["extra"]) <= set(EXTRA_FIELDS)


@pytest.mark.parametrize("uri", re.findall(r"`(tikv://[^`]+)`", page("docs/hooks/tikv.md")))
def test_uris_of_connections_are_read_as_documented(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if uri == "tikv://pd0:2379,pd1:2379":  # told as one that Airflow cannot read
        with pytest.raises(ValueError, match="2379,pd1"):
            Connection(uri=uri)
        return
    monkeypatch.setenv("AIRFLOW_CONN_TIKV_OF_THE_DOCS", uri)
    options = TiKVHook("tikv_of_the_docs").cluster_options()
    assert options.pd == ("pd0:2379", "pd1:2379", "pd2:2379")


@pytest.mark.parametrize(
    "url",
    sorted({
        url
        for path in PAGES
        for url in re.findall(r"`((?:s3|gcs|gs|azure|azblob|hdfs|local|file|noop)://[^`\s]*)`", path.read_text())
        if not any(mark in url for mark in ("...", "{{"))
    } - {"local://", "s3://", "gs://", "azure://", "azblob://", "gcs://", "hdfs://"}),
)  # fmt: skip
def test_storage_urls_can_be_read(url: str) -> None:
    parse_url(url)


@pytest.mark.parametrize("code", all_examples("python"))
def test_python_can_be_read_and_dags_parsed(code: str) -> None:
    space: dict[str, Any] = {}
    compiled = compile(code, "example", "exec")
    if "DAG(" in code:
        exec(compiled, space)
        assert space["dag"].topological_sort()


def test_the_dag_of_the_readme_is_one() -> None:
    (code,) = examples(page("README.md"), "python")
    space: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), space)
    assert [task.task_id for task in space["dag"].topological_sort()] == ["backup", "rehearse", "verify"]


def test_extras_are_documented() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"]) - {"dev"}
    assert [name for name in sorted(extras) if f"[{name}]'" not in page("README.md")] == []


def test_every_field_and_kind_of_a_fault_is_documented() -> None:
    text = chapter(page("docs/embedded.md"), "Faults")
    documented = rows(text.partition("| Kind |")[0])
    fields = {f.name: f.default for f in dataclasses.fields(Rule) if f.init}
    assert set(documented) == set(fields)
    for name, default in fields.items():
        if default not in (None, "", dataclasses.MISSING):
            assert documented[name] == getattr(default, "name", str(default)), name
    assert set(rows(text.partition("| Kind |")[2])) == {kind.value for kind in Kind}


def test_every_error_of_the_tree_is_in_it() -> None:
    import airflow_provider_tikvbr.exceptions as module

    drawn = module.__doc__ or ""
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, TikvBrError)]
    assert [c.__name__ for c in classes if c.__name__ not in drawn] == []
