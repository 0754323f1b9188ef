from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_provider_tikvbr import __version__
from airflow_provider_tikvbr.cli.jobs import Output, run_job
from airflow_provider_tikvbr.exceptions import InvalidOptionError, PDUnavailableError
from airflow_provider_tikvbr.rawbr.events import Listener, Progress


@dataclass
class Done:
    title = "Raw backup success summary"

    def parts(self) -> dict[str, object]:
        return {"total-ranges": 3}


async def work(listener: Listener) -> Done:
    listener(Progress(step="Raw backup", done=3, total=3, kvs=1, bytes=1, elapsed_s=1))
    return Done()


async def fail(listener: Listener) -> Done:
    raise PDUnavailableError("no PD answers at 10.0.0.1:2379.", endpoints=("10.0.0.1:2379",))


async def crash(listener: Listener) -> Done:
    raise ZeroDivisionError("by zero")


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BR_LOG_TO_TERM", raising=False)


def run(job: Callable[[Listener], object], log_file: str = "") -> Done:
    return run_job("Raw backup", job, output=Output(log_file=log_file, arguments={"pd": "a:1"}))  # type: ignore[arg-type]


def test_without_a_terminal_the_log_is_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run(work)
    out, err = capsys.readouterr()
    assert out.endswith('["Raw backup success summary"] [total-ranges=3]\n')
    assert out.count("\n") == 1
    assert [line.split("] ", 3)[3] for line in err.splitlines()] == [
        '[progress] [step="Raw backup"] [progress=100.00%] [count="3 / 3"] [speed=1B/s] [elapsed=1s] [remaining=0s]'
    ]


def test_a_log_file_gets_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    run(work, log_file=str(log))
    out, err = capsys.readouterr()
    assert err == f"Detail BR log in {log}\n"
    assert out.count("\n") == 1
    welcome, arguments, progress, summary = log.read_text().splitlines()
    assert welcome.endswith(f'["Welcome to tikvbr"] [release-version={__version__}]')
    assert arguments.endswith("[arguments] [pd=a:1]")
    assert "[progress=100.00%]" in progress
    assert summary == out.rstrip("\n")


def test_the_environment_can_keep_the_log_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BR_LOG_TO_TERM", "1")
    run(work, log_file=str(tmp_path / "log"))
    out, err = capsys.readouterr()
    assert err == ""
    assert [re.split(r"\] \[", line)[3].strip('["]') for line in out.splitlines()] == [
        "Welcome to tikvbr",
        "arguments",
        "progress",
        "Raw backup success summary",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_log_on_the_terminal_has_the_format_and_the_level_that_are_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BR_LOG_TO_TERM", "1")
    run_job("Raw backup", work, output=Output(log_format="json"))
    messages = [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]
    assert messages == ["Welcome to tikvbr", "arguments", "progress", "Raw backup success summary"]
    run_job("Raw backup", work, output=Output(log_level="error"))
    assert capsys.readouterr() == ("", "")


def test_a_failure_is_in_the_log_file_and_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    with pytest.raises(PDUnavailableError):
        run(fail, log_file=str(log))
    *_, told, last = log.read_text().splitlines()
    assert '["Raw backup failed"] [error="no PD answers at 10.0.0.1:2379."] [endpoints=' in told
    assert last.endswith('["Raw backup failed summary"] [total-ranges=0] [ranges-succeed=0] [ranges-failed=0]')
    assert capsys.readouterr().out == f"{last}\n"


def test_a_bug_leaves_its_traceback_in_the_log_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(ZeroDivisionError):
        run(crash, log_file=str(log))
    assert "Traceback" in log.read_text()


def test_a_log_file_that_cannot_be_written_stops_the_job_before_it_starts(tmp_path: Path) -> None:
    begun = []

    async def begin(listener: Listener) -> Done:
        begun.append(1)
        return Done()

    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOptionError, match="log_file"):
        run(begin, log_file=str(tmp_path / "file" / "log"))
    assert begun == []


SCRIPT = """
import asyncio, sys
from airflow_provider_tikvbr.cli.jobs import Output, run_job
from airflow_provider_tikvbr.exceptions import TikvBrError

async def job(listener):
    print("working", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        print("putting back", flush=True)
        await asyncio.sleep(float(sys.argv[1]))
        print("put back", flush=True)

try:
    run_job("Raw backup", job, output=Output())
except TikvBrError as err:
    sys.exit(str(err))
"""


def start(undo_s: float, *before: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", SCRIPT, str(undo_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # the tests themselves may run under nohup
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    return process


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_job_and_lets_it_put_the_cluster_back(sign: signal.Signals) -> None:
    process = start(0)
    process.send_signal(sign)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    undone, failed = out.split("[", 1)
    assert undone == "putting back\nput back\n"
    assert failed.endswith('["Raw backup failed summary"] [total-ranges=0] [ranges-succeed=0] [ranges-failed=0]\n')
    assert f"{sign.name}: stopping and putting the cluster back; press ^C again to quit at once" in err
    assert err.endswith(f"{sign.name} stopped the job before it was complete\n")


def test_a_second_signal_quits_at_once() -> None:
    process = start(60)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "putting back\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert out == ""


def test_nohup_is_respected() -> None:
    process = start(0, "nohup")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert "SIGHUP" not in err
    assert err.endswith("SIGTERM stopped the job before it was complete\n")


def on_a_terminal(term: str, tmp_path: Path) -> bytes:
    """Run a job whose standard error is a terminal of that kind; what the terminal shows."""
    script = """
import sys
from airflow_provider_tikvbr.cli.jobs import Output, run_job
from tests.cli.test_jobs import work
run_job("Raw backup", work, output=Output())
"""
    terminal, end = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k != "BR_LOG_TO_TERM"}
    environ |= {"TMPDIR": str(tmp_path), "TERM": term, "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=end, env=environ)
    os.close(end)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert process.stdout is not None
    out = process.stdout.read()
    process.stdout.close()
    assert process.wait(30) == 0
    assert out.endswith(b'["Raw backup success summary"] [total-ranges=3]\n')
    return shown


def test_a_terminal_gets_a_bar_and_a_temporary_log_file(tmp_path: Path) -> None:
    shown = on_a_terminal("xterm", tmp_path)
    (log,) = tmp_path.iterdir()
    assert log.name.startswith("br.log.")
    assert f"Detail BR log in {log}".encode() in shown
    assert b"<-" in shown
    assert b"100.00%" in shown
    assert "[arguments]" in log.read_text()


def test_a_terminal_that_cannot_redraw_gets_log_lines(tmp_path: Path) -> None:
    shown = on_a_terminal("dumb", tmp_path)
    assert b"<-" not in shown
    assert b"[progress]" in shown
    assert not list(tmp_path.iterdir())
