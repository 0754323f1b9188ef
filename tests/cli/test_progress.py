from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console

from airflow_provider_tikvbr.cli.progress import BarProgress, LogProgress, bar, clock
from airflow_provider_tikvbr.logfile import logging_to
from airflow_provider_tikvbr.rawbr.events import Note, Progress


def progress(done: int, total: int = 100, step: str = "Raw backup", elapsed_s: float = 10) -> Progress:
    return Progress(step=step, done=done, total=total, kvs=done, bytes=done * 1_000_000, elapsed_s=elapsed_s)


@pytest.mark.parametrize(
    ("fraction", "tick", "drawn"),
    [
        (0.0, 0, "<-.........>"),
        (0.0, 3, "</.........>"),
        (0.5, 1, "<-----\\....>"),
        (0.99, 2, "<---------|>"),
        (1.0, 0, "<---------->"),
    ],
)
def test_the_bar(fraction: float, tick: int, drawn: str) -> None:
    assert bar(fraction, tick, width=10) == drawn


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.4, "0s"), (59, "59s"), (61, "1m01s"), (3_725, "1h02m05s")]
)
def test_the_time_left(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


def lines(log: Path) -> list[str]:
    return [line.split("] ", 3)[3] for line in log.read_text().splitlines()]


def test_a_log_gets_lines_at_a_steady_cadence_and_at_the_end_of_a_step(tmp_path: Path) -> None:
    now = 0.0
    log = tmp_path / "log"
    with logging_to(log, logging.INFO):
        listen = LogProgress(cadence_s=30, now=lambda: now)
        for now, done in ((0, 0), (29, 10), (30, 20), (31, 21), (59, 30), (60, 40), (61, 100), (62, 100)):
            listen(progress(done, elapsed_s=now))
        listen(progress(0, step="Raw backup checksum", elapsed_s=0))
        listen(progress(100, step="Raw backup checksum", elapsed_s=0.5))
    assert lines(log) == [
        '[progress] [step="Raw backup"] [progress=20.00%] [count="20 / 100"] [speed=666.7kB/s] [elapsed=30s] [remaining=2m00s]',
        '[progress] [step="Raw backup"] [progress=40.00%] [count="40 / 100"] [speed=666.7kB/s] [elapsed=1m00s] [remaining=1m30s]',
        '[progress] [step="Raw backup"] [progress=100.00%] [count="100 / 100"] [speed=1.639MB/s] [elapsed=1m01s] [remaining=0s]',
        '[progress] [step="Raw backup checksum"] [progress=100.00%] [count="100 / 100"] [speed=200MB/s] [elapsed=0s] [remaining=0s]',
    ]


def test_notes_go_to_the_log_by_their_level(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_to(log, logging.INFO):
        LogProgress()(Note(level="warning", message="no data in the range"))
        LogProgress()(Note(level="info", message="connected"))
    text = log.read_text()
    assert "[WARN]" in text.splitlines()[0]
    assert lines(log) == ['["no data in the range"]', "[connected]"]


def screen(width: int = 120) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    # Its own environment: the tests may run on a terminal that can do less.
    terminal = {"TERM": "xterm"}
    return Console(file=out, force_terminal=True, width=width, color_system=None, _environ=terminal), out


def test_a_terminal_shows_a_bar_with_speed_and_time_left() -> None:
    console, out = screen()
    with BarProgress(console=console) as listen:
        listen(progress(20))
    assert "Raw Backup <----------" in out.getvalue()
    assert "20.00% 2MB/s 40s left" in out.getvalue()


def test_each_step_keeps_its_bar_and_warnings_stand_above() -> None:
    console, out = screen()
    with BarProgress(console=console) as listen:
        listen(Note(level="warning", message="TTL [may] end"))
        listen(Note(level="info", message="for the log alone"))
        listen(progress(100))
        listen(progress(50, step="Raw backup checksum"))
    shown = out.getvalue()
    assert "Warning: TTL [may] end" in shown
    assert "for the log alone" not in shown
    assert shown.index("Raw Backup <-") < shown.index("100.00% 10MB/s") < shown.index("Raw Backup Checksum <-")


@pytest.mark.parametrize(
    ("width", "signs", "said"),
    [
        (200, 155, "50.00% 5MB/s 10s left"),
        (120, 75, "50.00% 5MB/s 10s left"),
        (80, 35, "50.00% 5MB/s 10s left"),
        (50, 10, "50.00% 5MB/s 10s left"),
        (40, 10, "50.00% 5MB/s"),
        (32, 10, "50.00%"),
        (24, 10, ""),
    ],
)
def test_the_bar_fills_the_terminal(width: int, signs: int, said: str) -> None:
    console, out = screen(width)
    with BarProgress(console=console) as listen:
        listen(progress(50))
    plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", out.getvalue())
    drawn = [line for line in plain.replace("\r", "\n").split("\n") if "<-" in line]
    assert drawn
    assert all(len(line) <= width for line in drawn)
    shape, _, behind = drawn[0].partition("<")[2].partition(">")
    assert len(shape) == signs
    assert behind.strip() == said


def test_nothing_is_said_of_the_time_left_before_anything_is_done() -> None:
    console, out = screen()
    with BarProgress(console=console) as listen:
        listen(progress(0))
    assert "0.00% 0B/s" in out.getvalue()
    assert "left" not in out.getvalue()
