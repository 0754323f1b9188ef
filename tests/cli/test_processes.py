from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_tikvbr.cli import processes
from airflow_provider_tikvbr.cli.processes import Process, ProcessError, tail

FOREVER = "import time; time.sleep(3600)"


def start(tmp_path: Path, code: str) -> Process:
    return Process("The child", [sys.executable, "-uc", code], log=tmp_path / "logs" / "child.log")


def alive(pid: int) -> bool:
    """Whether it runs; a child that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_line_is_waited_for_and_found(tmp_path: Path) -> None:
    with start(tmp_path, f"print('\\x1b[32mready\\x1b[0m pd=host:1'); {FOREVER}") as child:
        assert child.wait_for(r"^ready pd=(\S+)", timeout_s=30)[1] == "host:1"


def test_an_end_before_the_line_is_an_error(tmp_path: Path) -> None:
    with start(tmp_path, "print('no such port'); raise SystemExit(3)") as child:
        with pytest.raises(ProcessError, match="The child ended with exit code 3") as caught:
            child.wait_for("ready", timeout_s=30)
        assert tail(caught.value.log) == ["no such port"]


def test_waiting_for_a_line_ends(tmp_path: Path) -> None:
    with start(tmp_path, FOREVER) as child, pytest.raises(ProcessError, match="not ready after"):
        child.wait_for("ready", timeout_s=0.2)


def test_every_line_is_told_until_the_end(tmp_path: Path) -> None:
    told: list[str] = []
    with start(tmp_path, "import sys; print('one'); print('two', file=sys.stderr); print('three')") as child:
        child.wait(timeout_s=30, on_line=told.append)
    assert told == ["one", "two", "three"]


def test_a_failure_and_a_late_end_are_errors(tmp_path: Path) -> None:
    with start(tmp_path, "raise SystemExit(2)") as child, pytest.raises(ProcessError, match="failed with exit code 2"):
        child.wait(timeout_s=30)
    with start(tmp_path, FOREVER) as child, pytest.raises(ProcessError, match="did not end within"):
        child.wait(timeout_s=0.2)


def test_one_that_does_not_listen_is_stopped_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_S", 0.2)
    code = f"""
import signal, subprocess, sys, os
signal.signal(signal.SIGINT, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "{FOREVER}"])
print("pids", os.getpid(), grandchild.pid)
{FOREVER}
"""
    with start(tmp_path, code) as child:
        pids = [int(pid) for pid in child.wait_for(r"^pids (\d+) (\d+)", timeout_s=30).groups()]
        assert all(alive(pid) for pid in pids)
    deadline = time.monotonic() + 30  # init takes its time to bury an orphan
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in pids)


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("1\n2\n\x1b[31m3\x1b[0m\n")
    assert tail(tmp_path / "log", lines=2) == ["2", "3"]
    assert tail(tmp_path / "none") == []


def test_a_signal_while_one_starts_does_not_leave_it_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Slow(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    with pytest.raises(KeyboardInterrupt):
        Process("The child", [sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log")
    assert started[0].poll() is not None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
