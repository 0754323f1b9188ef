from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_tikvbr.cli import demo as module
from airflow_provider_tikvbr.cli.demo import MARKER, Result, Story, demo
from airflow_provider_tikvbr.cli.processes import Process, ProcessError, tail
from airflow_provider_tikvbr.rawbr.summary import Checksum
from tests.support.golden import Golden

GOLDEN = Golden("v1", "full").path
COMMAND = [sys.executable, "-m", "airflow_provider_tikvbr.cli.main", "demo", "--work-dir"]


def running_in(work: Path) -> list[str]:
    """The command lines of processes that have to do with a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError, PermissionError):
            continue
        if str(work) in command:
            found.append(command)
    return found


@pytest.mark.timeout(600)
def test_the_whole_story(tmp_path: Path) -> None:
    work = tmp_path / "demo"
    (tmp_path / "home").mkdir()
    # What somebody's own Airflow has set must not matter, least of all its database.
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")},
        "HOME": str(tmp_path / "home"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://nobody@127.0.0.1:1/none",
        "AIRFLOW_CONN_TIKV_V1": "tikv://127.0.0.1:1",
    }
    done = subprocess.run([*COMMAND, str(work)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"│ (V\d cluster[^│]*?) +│ +([\d,]+) │ +([\d,]+) │ +(\d+) │", done.stdout)
    assert [row[0] for row in rows] == ["V1 cluster", "V1 cluster, as V2", "V2 cluster"]
    assert [row[1] for row in rows] == ["2,000"] * 3
    assert rows[1][1:] == rows[2][1:]
    steps = re.findall(
        r"^      (backup|restore|verify) +total-ranges=|^      (verify) +crc64xor=", done.stdout, re.MULTILINE
    )
    assert ["".join(step) for step in steps] == ["restore", "backup", "restore", "verify"]
    assert "\nOK " in done.stdout
    assert (work / "logs" / "airflow.log").is_file()
    assert running_in(work) == []
    # The shell that follows "What to do next" finds Airflow, and no settings but the demo's.
    shell = 'source "$0" && command -v airflow && env'
    found = subprocess.run(
        ["/bin/bash", "-c", shell, str(work / "env.sh")],
        env={"PATH": "/usr/bin:/bin", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://nobody@127.0.0.1:1/none"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert found[0] == str(Path(sys.executable).with_name("airflow"))
    assert "AIRFLOW__API__HOST=127.0.0.1" in found
    assert not [line for line in found if "SQL_ALCHEMY_CONN" in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_stopped_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    work = tmp_path / "demo"
    with Process("The demo", [*COMMAND, str(work)], log=tmp_path / "log") as process:
        process.wait_for("PD at", timeout_s=60)
        assert running_in(work / "v1")
        process.send_signal(number)
        with pytest.raises(ProcessError, match="failed with exit code 130"):
            process.wait(timeout_s=60)
    assert "Stopped. Everything that was started is stopped too." in tail(tmp_path / "log")
    assert running_in(work) == []


def test_it_may_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def tell(story: Story) -> Result:
        told.append(sorted(path.name for path in (tmp_path / "demo").iterdir()))
        (tmp_path / "demo" / "airflow").mkdir()
        (tmp_path / "demo" / "airflow" / "airflow.db").touch()
        (tmp_path / "demo" / "env.sh").touch()
        return Result(source=Checksum(1, 2, 3), converted=Checksum(4, 2, 5), target=Checksum(4, 2, 5))

    monkeypatch.setattr(module.Story, "tell", tell)
    assert [demo(tmp_path / "demo", GOLDEN) for _ in range(2)] == [0, 0]
    assert told == [[MARKER], [MARKER]]


@pytest.mark.parametrize(
    "target",
    [Checksum(4, 2, 6), Checksum(5, 2, 5), Checksum(4, 1, 5), Checksum()],
    ids=["bytes", "crc", "pairs", "none"],
)
def test_a_difference_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: Checksum
) -> None:
    result = Result(source=Checksum(1, 2, 3), converted=Checksum(4, 2, 5), target=target)
    monkeypatch.setattr(module.Story, "tell", lambda story: result)
    assert demo(tmp_path / "demo", GOLDEN) == 1
    assert "FAILED" in capsys.readouterr().out


def test_somebody_elses_directory_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").touch()
    assert demo(tmp_path, GOLDEN) == 1
    assert (tmp_path / "thesis.txt").exists()
    assert "is not empty and not a demo's: give another directory." in capsys.readouterr().out


def test_two_demos_do_not_share_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / MARKER).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert demo(tmp_path, GOLDEN) == 1
    assert "Another demo is running" in capsys.readouterr().out


def test_a_missing_backup_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(tmp_path / "demo", tmp_path / "nothing") == 1
    assert f"{tmp_path / 'nothing' / 'backupmeta'} is missing" in capsys.readouterr().out


def test_a_cluster_that_does_not_start_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "STORES", 0)
    assert demo(tmp_path / "demo", GOLDEN) == 1
    out = capsys.readouterr().out
    assert "The V1 cluster ended with exit code 1 before it was ready" in out
    assert "stores" in out
