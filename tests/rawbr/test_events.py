from __future__ import annotations

import pytest

from airflow_provider_tikvbr.rawbr.events import Note, Progress, ignore


def test_progress_numbers() -> None:
    event = Progress(step="Raw backup", done=1, total=4, kvs=10, bytes=3000, elapsed_s=2.0)
    assert event.fraction == 0.25
    assert event.speed == 1500
    assert event.remaining_s == pytest.approx(6.0)


def test_progress_before_anything_is_known() -> None:
    event = Progress(step="Raw backup", done=0, total=0, kvs=0, bytes=0, elapsed_s=0.0)
    assert event.fraction == 0.0
    assert event.speed == 0.0
    assert event.remaining_s is None


def test_progress_never_exceeds_the_whole() -> None:
    assert Progress(step="Raw backup", done=9, total=4, kvs=0, bytes=0, elapsed_s=1.0).fraction == 1.0


def test_ignore_takes_every_event() -> None:
    ignore(Note(level="info", message="ready"))
    ignore(Progress(step="Raw backup", done=0, total=0, kvs=0, bytes=0, elapsed_s=0.0))
