from __future__ import annotations

import asyncio

import pytest

from airflow_provider_tikvbr.cli.failure import Tally
from airflow_provider_tikvbr.exceptions import (
    ChecksumMismatchError,
    JobCancelledError,
    StorageNotFoundError,
    UnverifiedError,
)
from airflow_provider_tikvbr.rawbr.events import Event, Note, Progress

LOST = StorageNotFoundError("the bucket is gone")
MISMATCH = ChecksumMismatchError("they differ")


def at(step: str, done: int, total: int = 5) -> Progress:
    return Progress(step=step, done=done, total=total, kvs=done, bytes=done, elapsed_s=1)


@pytest.mark.parametrize(
    ("title", "events", "error", "counts"),
    [
        # nothing was begun
        ("Raw backup", [], LOST, (0, 0, 0, None)),
        ("Raw restore", [Note(level="info", message="n")], LOST, (0, 0, 0, None)),
        # a backup is one range to tikv-br, a restore one of each file
        ("Raw backup", [at("Raw backup", 0), at("Raw backup", 3)], LOST, (1, 0, 1, 5)),
        ("Raw restore", [at("Raw restore", 3)], LOST, (4, 3, 1, 5)),
        ("Raw restore", [at("Raw restore", 3)], JobCancelledError("stopped"), (4, 3, 1, 5)),
        # the work was done
        ("Raw backup", [at("Raw backup", 5)], MISMATCH, (5, 5, 0, 5)),
        ("Raw restore", [at("Raw restore", 5), at("Raw restore checksum", 1)], LOST, (5, 5, 0, 5)),
        # a checksum has no ranges
        ("Raw checksum", [at("Raw checksum", 3)], LOST, (0, 0, 0, None)),
    ],
)
def test_a_failed_job_tells_how_far_it_came(
    title: str, events: list[Event], error: Exception, counts: tuple[int, int, int, int | None]
) -> None:
    tally = Tally(title, unit="range start:61 end:")
    for event in events:
        tally(event)
    summary = tally.summary(error)
    total, succeeded, failed, units = counts
    assert list(summary.items())[:3] == [
        ("total-ranges", total),
        ("ranges-succeed", succeeded),
        ("ranges-failed", failed),
    ]
    unit = {"Raw backup": "backup-total-regions", "Raw restore": "restore-files"}.get(title, "")
    assert summary.get(unit) == units
    told = failed and not isinstance(error, JobCancelledError)
    assert summary.get("error") == (error if told else None)
    assert summary.get("unit-name") == ("range start:61 end:" if told else None)


def test_a_stopped_job_names_no_error() -> None:
    tally = Tally("Raw backup")
    tally(at("Raw backup", 1))
    assert "error" not in tally.summary(asyncio.CancelledError())


@pytest.mark.parametrize(
    ("title", "error", "said"),
    [
        ("Raw backup", MISMATCH, "Raw backup succeeded, but checksum failed, err:Checksum mismatch."),
        ("Raw restore", UnverifiedError("no answer."), "Raw restore succeeded, but checksum failed, err:no answer."),
        ("Raw backup", LOST, ""),
        ("Raw checksum", MISMATCH, ""),
    ],
)
def test_a_wrong_checksum_is_said_as_tikv_br_says_it(title: str, error: Exception, said: str) -> None:
    assert Tally(title).said_of_checksum(error) == said
