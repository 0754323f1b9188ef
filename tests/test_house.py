"""The rules of the house that no linter checks: who may import whom, and what a module may be like."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import airflow_provider_tikvbr

ROOT = Path(airflow_provider_tikvbr.__file__).parent
PACKAGE = ROOT.name
MAX_LINES = 450
KEY_NAMES = {"key", "keys", "start", "end", "start_key", "end_key"}
# What each part may import from the package besides itself; a dotted name is one module of a part.
# The forms of a key and of a value are words that everybody speaks.
ARROWS: Mapping[str, set[str]] = {
    "__init__": set(),
    "exceptions": set(),
    "logfile": {"exceptions"},
    "secret_text": set(),
    "timelimit": set(),
    "proto": set(),
    "storage": {"exceptions", "proto", "secret_text", "tikv.keys", "timelimit"},
    "tikv": {"exceptions", "proto", "secret_text", "timelimit"},
    "rawbr": {"__init__", "exceptions", "proto", "secret_text", "storage", "tikv", "timelimit"},
    "embedded": {"exceptions", "proto", "storage", "tikv.keys", "tikv.values", "timelimit"},
    "cli": {"__init__", "embedded", "exceptions", "logfile", "rawbr", "secret_text", "storage", "tikv"},
    # Everything else: what gives the engine an Airflow to live in, and alone knows Airflow.
    "front": {"__init__", "exceptions", "logfile", "rawbr", "secret_text", "storage", "tikv", "timelimit"},
}

MODULES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for path in sorted(ROOT.rglob("*.py"))
    if not path.stem.endswith("_pb2")
}


def part_of(name: str) -> str:
    """The part of the package that a module belongs to, by its path or its dotted name below the package."""
    part = re.split(r"[/.]", name or "__init__")[0]
    return part if part in ARROWS else "front"


def imports(node: ast.AST) -> Iterator[str]:
    """The modules that a piece of code imports, but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield "." * child.level + (child.module or "")
        yield from imports(child)


def may_import(part: str, module: str) -> bool:
    top, _, rest = module.partition(".")
    if top == "airflow":
        return part == "front"
    if top == PACKAGE:
        return part_of(rest) in {part, *ARROWS[part]} or rest in ARROWS[part]
    return top != ""  # imports are absolute


def test_imports_go_one_way() -> None:
    wrong = [
        f"{name} imports {module}"
        for name, tree in MODULES.items()
        for module in imports(tree)
        if not may_import(part_of(name), module)
    ]
    assert wrong == []


def test_every_module_begins_as_all_do() -> None:
    for name, tree in MODULES.items():
        assert ast.get_docstring(tree), f"{name} says what it is"
        if len(tree.body) > 1:
            assert ast.unparse(tree.body[1]) == "from __future__ import annotations", name


def test_modules_are_short() -> None:
    assert [name for name in MODULES if len((ROOT / name).read_text().splitlines()) > MAX_LINES] == []


def test_the_package_asserts_nothing() -> None:
    assert [name for name, tree in MODULES.items() if any(isinstance(n, ast.Assert) for n in ast.walk(tree))] == []


def test_no_cancellation_is_lost() -> None:
    """Before Python 3.12, ``asyncio.wait_for`` drops one that comes just as what it waits for ends."""
    users = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "asyncio.wait_for"
    ]
    assert users == []


def test_a_key_has_a_type_of_its_own() -> None:
    """A bare ``bytes`` could be any of the four forms of a key."""
    bare = [
        f"{name}:{function.lineno} {function.name}({argument.arg})"
        for name, tree in MODULES.items()
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        if argument.arg in KEY_NAMES and argument.annotation and "bytes" in ast.unparse(argument.annotation)
    ]
    assert bare == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 knows the modules of some distributions only")
def test_what_is_imported_is_declared() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT.parent / "setup.cfg")
    always = declared(setup["options"]["install_requires"])
    extras = {name: declared(text) for name, text in setup["options.extras_require"].items()}
    makers = importlib.metadata.packages_distributions()
    undeclared = [
        f"{name} imports {module}"
        for name, tree in MODULES.items()
        for module in imports(tree)
        # Airflow's namespace is filled by a family of distributions.
        if (top := module.split(".")[0]) not in {*sys.stdlib_module_names, PACKAGE, "airflow"}
        and not {maker.lower().replace("_", "-") for maker in makers[top]}
        & (always | extras.get(extra_of(name), set()))
    ]
    assert undeclared == []


def extra_of(name: str) -> str:
    """The extra that a module may count on: nobody comes to it without."""
    if part_of(name) == "embedded":
        return "embedded"
    stem = Path(name).stem.partition("_")[0]
    return {"azure": "azure", "gcs": "gcs", "google": "gcs"}.get(stem, "")


def declared(requirements: str) -> set[str]:
    return {re.split(r"[\[<>=]", line)[0] for line in requirements.split()}


def test_all_modules_import_without_a_warning() -> None:
    names = [f"{PACKAGE}/{name}".removesuffix("/__init__.py").removesuffix(".py").replace("/", ".") for name in MODULES]
    code = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    # Google's library tells users of Python 3.10 that its own newer releases will do without it.
    google = "ignore:You are using a non-supported Python version"
    subprocess.run([sys.executable, "-W", "error", "-W", google, "-c", code], check=True)


def test_a_dag_is_parsed_without_the_clients() -> None:
    """Airflow parses DAGs all the time; what only a running task needs can wait."""
    code = (
        "import sys, airflow.sdk, airflow.providers.common.compat.sdk as sdk\n"
        "sdk.BaseSensorOperator, sdk.BaseHook, sdk.conf\n"
        "before = set(sys.modules)\n"
        "import airflow_provider_tikvbr.operators.backup, airflow_provider_tikvbr.operators.restore\n"
        "import airflow_provider_tikvbr.sensors.checksum, airflow_provider_tikvbr.macros\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) & {"aiohttp", "boto3", "cramjam", "grpc", "httpx", "rocksdict"} == set()
