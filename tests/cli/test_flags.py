from __future__ import annotations

from pathlib import Path

import click
import pytest

from airflow_provider_tikvbr.cli.flags import GoBool, canonical, commands, parse_go_number
from airflow_provider_tikvbr.cli.main import tikvbr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("backup raw -s /b", "backup raw --storage=/b"),
        # booleans: alone, or with a value behind "="
        ("backup raw --checksum -s /b", "backup raw --checksum=true --storage=/b"),
        ("backup raw --checksum=false", "backup raw --checksum=false"),
        ("backup raw --checksum= -s /b", "backup raw --checksum= --storage=/b"),
        # flags may stand anywhere
        ("--pd 10.0.0.1:2379 backup --checksum raw", "backup raw --pd=10.0.0.1:2379 --checksum=true"),
        ("-u=10.0.0.1:2379 backup raw", "backup raw --pd=10.0.0.1:2379"),
        ("-u10.0.0.1:2379 backup raw", "backup raw --pd=10.0.0.1:2379"),
        ("backup raw -u a:1 -u b:2", "backup raw --pd=a:1 --pd=b:2"),
        # a value may look like a flag or hold "="
        ("backup raw --start -x --end=a=b", "backup raw --start=-x --end=a=b"),
        ("backup raw --start --checksum", "backup raw --start=--checksum"),
        ("backup raw -s s3://b/p?region=r", "backup raw --storage=s3://b/p?region=r"),
        # short booleans
        ("backup raw -c", "backup raw --send-credentials-to-tikv=true"),
        ("backup raw -c=false", "backup raw --send-credentials-to-tikv=false"),
        ("backup raw -cs /b", "backup raw --send-credentials-to-tikv=true --storage=/b"),
        # the program's own flags stay with it
        ("backup raw --version", "--version backup raw"),
        ("-V", "-V"),
        ("backup -h", "backup -h"),
        ("backup raw -s", "backup raw --storage"),
        ("backup raw -- --checksum", "backup raw --checksum"),
    ],
)
def test_command_lines_are_read_as_tikv_br_reads_them(typed: str, meant: str) -> None:
    assert canonical(tikvbr, typed.split()) == meant.split()


@pytest.mark.parametrize(
    ("typed", "flag"),
    [
        ("--storge /b backup raw", "--storge"),
        ("backup raw --start a -x", "-x"),
        ("backup raw --sto /b", "--sto"),  # a flag is spelled out
    ],
)
def test_an_unknown_flag_is_refused(typed: str, flag: str) -> None:
    with pytest.raises(click.NoSuchOption) as caught:
        canonical(tikvbr, typed.split())
    assert caught.value.option_name == flag


@pytest.mark.parametrize("typed", ["backup raw --checksum false -s /b", "backup raw -s /b -c 1"])
def test_a_booleans_value_is_no_word_of_its_own(typed: str) -> None:
    with pytest.raises(click.UsageError, match=r"the value of (--checksum|-c) stands behind an equals sign"):
        canonical(tikvbr, typed.split())


def test_a_spelling_takes_a_value_everywhere_or_nowhere() -> None:
    # canonical() reads the flags before it knows the command
    kinds: dict[str, set[tuple[bool, bool]]] = {}
    ctx = click.Context(tikvbr)
    for command in commands(tikvbr):
        for param in command.get_params(ctx):
            if isinstance(param, click.Option):
                for spelling in param.opts:
                    kinds.setdefault(spelling, set()).add((param.is_flag, isinstance(param.type, GoBool)))
    assert {spelling for spelling, kind in kinds.items() if len(kind) > 1} == set()


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_true(text: str) -> None:
    assert GoBool().convert(text, None, None) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_false(text: str) -> None:
    assert GoBool().convert(text, None, None) is False


@pytest.mark.parametrize("text", ["", "yes", "no", "on", "tRUE", "2"])
def test_neither(text: str) -> None:
    with pytest.raises(click.BadParameter, match="neither true nor false"):
        GoBool().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [("128", 128), ("0x80", 128), ("0200", 128), ("0o200", 128), ("0b1_0", 2), ("1_000", 1000), ("0", 0), ("-3", -3),
     ("", None), ("1.5", None), ("08", None), ("1__0", None), ("ten", None), ("-", None)],
)  # fmt: skip
def test_whole_numbers_are_read_as_go_reads_them(text: str, value: int | None) -> None:
    assert parse_go_number(text) == value


def test_an_empty_number_does_not_mean_the_default(tmp_path: Path) -> None:
    args = ["backup", "raw", "--pd=127.0.0.1:1", f"--storage={tmp_path}", "--ratelimit="]
    with pytest.raises(click.UsageError, match="--ratelimit is empty: give a whole number"):
        tikvbr.main(args, standalone_mode=False)
