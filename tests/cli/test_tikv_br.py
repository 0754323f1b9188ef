"""Every flag of tikv-br is here, on the same command and of the same form: data/flags.txt holds tikv-br's."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from airflow_provider_tikvbr.cli.flags import GoBool
from airflow_provider_tikvbr.cli.main import main, tikvbr
from airflow_provider_tikvbr.cli.options import Ignored
from airflow_provider_tikvbr.cli.raw import backup_raw, restore_raw
from airflow_provider_tikvbr.cli.raw import checksum as checksum_command
from airflow_provider_tikvbr.cli.settings import CLUSTER
from airflow_provider_tikvbr.rawbr import options as engine
from airflow_provider_tikvbr.rawbr.humanize import parse_go_duration

COMMANDS = (
    *("backup raw", "restore raw", "debug checksum", "debug decode", "debug encode"),
    *("debug reset-pd-config-as-default", "debug backupmeta validate"),
)
# Flags that by default leave to the cluster, or to nobody, what tikv-br decides (docs/command/index.md).
OTHER_DEFAULT = {"merge-region-size-bytes": "", "merge-region-key-count": "", "grpc-max-recv-msg-size": ""}
# Flags that tikv-br does not have.
OURS = {
    "backup raw": {"keyspace", "address-map", "budget", "gcttl-from", "resume"},
    "restore raw": {"keyspace", "address-map", "budget", "resume", "checkpoint-storage", "verify-files"},
    "debug checksum": {"keyspace", "address-map", "budget", "start", "end", "format"},
}


class Flag(NamedTuple):
    short: str
    default: str
    hidden: bool
    kind: str


def of_tikv_br(command: str) -> dict[str, Flag]:
    lines = (Path(__file__).parent / "data" / "flags.txt").read_text().splitlines()
    rows = [line.split("|") for line in lines if not line.startswith("#")]
    return {
        name: Flag(short, OTHER_DEFAULT.get(name, default), hidden == "hidden", kind)
        for where, name, short, default, hidden, kind in rows
        if where in ("*", command)
    }


def command_at(path: str) -> click.Command:
    command: click.Command = tikvbr
    for word in path.split():
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def options(command: click.Command) -> Iterator[tuple[str, click.Option]]:
    for param in command.params:
        assert isinstance(param, click.Option)
        yield max(param.opts, key=len).removeprefix("--"), param


def default_of(option: click.Option, kind: str) -> str:
    value = None if option.required else option.get_default(click.Context(tikvbr))
    if isinstance(value, (list, tuple)):
        value = ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value or (0 if kind.startswith("uint") else ""))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_flag_of_tikv_br_is_here(path: str) -> None:
    ours = dict(options(command_at(path)))
    theirs = of_tikv_br(path)
    assert len(theirs) > 40
    assert set(theirs) - set(ours) == set()
    assert set(ours) - set(theirs) == OURS.get(path, {"keyspace", "address-map"})
    for name, flag in theirs.items():
        option = ours[name]
        assert [s for s in option.opts if not s.startswith("--")] == ([f"-{flag.short}"] if flag.short else []), name
        assert option.hidden == flag.hidden, name
        assert isinstance(option.type, GoBool) == (flag.kind == "bool"), name
        default = default_of(option, "" if name in OTHER_DEFAULT else flag.kind)
        if flag.kind == "duration":
            assert parse_go_duration(default, parameter=name) == parse_go_duration(flag.default, parameter=name), name
        else:
            assert default == flag.default, name


def test_the_aliases_and_the_root() -> None:
    assert command_at("validate decode") is command_at("debug decode")
    assert command_at("debug").hidden
    assert command_at("debug backupmeta validate").hidden
    assert {s for param in tikvbr.params for s in param.opts} >= {"--version", "-V"}


@pytest.mark.parametrize(
    ("command", "build"),
    [
        (backup_raw, engine.backup_options),
        (restore_raw, engine.restore_options),
        (checksum_command, engine.checksum_options),
    ],
)
def test_no_flag_of_a_command_is_lost_on_the_way_to_the_engine(command: click.Command, build: Any) -> None:
    shared = set(of_tikv_br("")) | {name.replace("_", "-") for name in CLUSTER}
    own = {name for name, option in options(command) if name not in shared and not isinstance(option, Ignored)}
    taken = {name.replace("_", "-") for name in signature(build).parameters}
    # This one is a storage, which the engine is handed open.
    assert own - taken <= {"checkpoint-storage"}
    assert taken - {name.replace(".", "-") for name, _ in options(command)} - {"owner", "retry-in-s"} == set()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--lastbackupts -1", "-1 is not in the range"),
        ("--lastbackupts x", "is not a valid integer"),
        ("--timeago 5", "'5' is not a duration"),
        ("--ignore-stats=maybe", "neither true nor false"),
    ],
)
def test_a_flag_without_effect_still_has_its_type(
    typed: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backup", "raw", "-s", "/b", *typed.split()]) == 1
    assert sentence in capsys.readouterr().err


def test_the_log_warns_of_flags_without_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--timeago", "1h", "--status-addr=:8080", "--use-backupmeta-v2", "--ratelimit", "1"]
    assert main(["backup", "raw", "-s", str(tmp_path), "-u", "http://127.0.0.1:1", "--ca=x", *given]) == 1
    assert "WARN" not in capsys.readouterr().err  # what is wrong comes first
    log = tmp_path / "log"
    assert main(["debug", "decode", "-s", str(tmp_path), "--status-addr=:8080", "--log-file", str(log)]) == 1
    warnings = [line for line in log.read_text().splitlines() if "[WARN]" in line]
    assert [w.split("] ", 3)[3] for w in warnings] == [
        '["--status-addr: taken as tikv-br takes it, and without effect"]'
    ]
