from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
import pytest

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.rawbr.parsing import parse_duration, parse_flag, parse_text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("300ms", 0.3),
        ("300", 300),
        (300, 300),
        (0.5, 0.5),
        (timedelta(hours=1), 3600),
        (pendulum.duration(minutes=2), 120),
    ],
)
def test_durations(value: Any, seconds: float) -> None:
    assert parse_duration(value, parameter="gcttl") == pytest.approx(seconds)


def test_an_empty_duration_means_the_default() -> None:
    assert [parse_duration(empty, parameter="budget", default=7) for empty in ("", None)] == [7, 7]
    assert parse_duration(0, parameter="budget", default=7) == 0


@pytest.mark.parametrize("yes", [True, 1, "1", "true", "True", "yes", " on "])
def test_yes(yes: Any) -> None:
    assert parse_flag(yes, parameter="checksum") is True


@pytest.mark.parametrize("no", [False, 0, "0", "false", "False", "no", "off"])
def test_no(no: Any) -> None:
    assert parse_flag(no, parameter="checksum", default=True) is False


@pytest.mark.parametrize("empty", ["", " ", None, "None"])
@pytest.mark.parametrize("default", [True, False])
def test_an_empty_flag_means_the_default(empty: Any, default: bool) -> None:
    assert parse_flag(empty, parameter="checksum", default=default) is default


def test_texts() -> None:
    assert [parse_text(text, parameter="storage") for text in (None, "x", Path("/x"))] == ["", "x", "/x"]
    with pytest.raises(InvalidOptionError, match="storage is 5: give text"):
        parse_text(5, parameter="storage")
