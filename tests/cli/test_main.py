from __future__ import annotations

import subprocess
import sys

import pytest

from airflow_provider_tikvbr import __version__
from airflow_provider_tikvbr.cli import main as command
from airflow_provider_tikvbr.cli.main import main
from airflow_provider_tikvbr.exceptions import ApiVersionError, InvalidOptionError, TikvBrError


@pytest.mark.parametrize("args", [["--version"], ["-V"]])
def test_the_version(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    assert capsys.readouterr().out == f"tikvbr {__version__}\n"


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ([], "Commands:"),
        (["-h"], "Commands:"),
        (["help"], "Commands:"),
        (["backup"], "raw"),
        (["backup", "raw", "--help"], "--dst-api-version"),
        (["help", "restore", "raw"], "--budget"),
        (["debug"], "checksum"),
        (["-s", "/b", "restore", "raw", "-h"], "--budget"),
    ],
)
def test_help(args: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert part in out
    assert err == ""


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["backup", "raw", "--nonsuch", "5"], "unknown flag: --nonsuch"),
        (["backup", "raw", "--storge", "/b"], "unknown flag: --storge (did you mean --storage?)"),
        (["restore", "raw", "--gcttl", "5m", "-s", "/b"], "unknown flag: --gcttl"),
        (["backup", "raw", "-s"], "Option '--storage' requires an argument."),
        (["backup", "raw", "-s", "/b", "more"], "Got unexpected extra argument (more)"),
        (["backup", "raw"], "--storage is missing: give --storage URL (tikvbr backup raw --help tells more)"),
        (["embedded"], "--data is missing: give --data DIR (tikvbr embedded --help tells more)"),
        (["nonsuch"], "unknown command: nonsuch (there is backup, checksum, demo, embedded, repair, restore)"),
        (["bakup", "raw"], "unknown command: bakup (did you mean backup?)"),
        (["restore", "full"], "unknown command: full (there is raw)"),
        (
            ["backup", "raw", "-s", "/b", "--gcttl", "5"],
            "--gcttl '5' is not a duration: give a number and a unit, such as 300ms, 90s, 5m, 24h or 1h30m",
        ),
    ],
)
def test_a_wrong_command_line(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"Error: {sentence}\n")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            InvalidOptionError("gcttl 'soon' is not a duration", parameter="gcttl"),
            "--gcttl 'soon' is not a duration",
        ),
        (
            InvalidOptionError("dst_api_version 'v9' is not known", parameter="dst_api_version"),
            "--dst-api-version 'v9' is not known",
        ),
        (
            InvalidOptionError("the key is not made of hex digits", parameter="crypter_key"),
            "--crypter.key: the key is not made of hex digits",
        ),
        (InvalidOptionError("field host: x", parameter="tikv_conn_id"), "field host: x"),
        (
            ApiVersionError("leave dst_api_version out, or take dst_api_version=v2 in /b/dst_api_version"),
            "leave --dst-api-version out, or take --dst-api-version=v2 in /b/dst_api_version",
        ),
    ],
)
def test_errors_are_in_terms_of_flags(
    error: TikvBrError, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> int:
        raise error

    monkeypatch.setattr(command.tikvbr, "main", fail)
    assert main([]) == 1
    assert capsys.readouterr().err == f"Error: {sentence}\n"


def test_a_bug_says_that_it_is_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> int:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(command.tikvbr, "main", fail)
    assert main([]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("Error: this is a bug in tikvbr: ZeroDivisionError: by zero\n")


def test_help_does_not_wait_for_the_engine() -> None:
    script = """
import sys
from airflow_provider_tikvbr.cli.main import main
main(["backup", "raw", "--help"])
heavy = [name for name in ("grpc", "airflow", "boto3", "google.protobuf", "cryptography", "rich") if name in sys.modules]
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
