from __future__ import annotations

import pytest

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.rawbr.humanize import human_duration, human_rate, human_size, parse_go_duration


# The texts are what Go printed for the same numbers.
@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (999, "999B"),
        (1000, "1kB"),
        (1024, "1.024kB"),
        (101_900, "101.9kB"),
        (173_649, "173.6kB"),
        (999_949, "999.9kB"),
        (999_960, "1000kB"),
        (1_000_000, "1MB"),
        (108_700_000, "108.7MB"),
        (78_345_000, "78.34MB"),
        (1_100_000_000, "1.1GB"),
        (2**64, "18.45EB"),
        (10**28, "1e+04YB"),
    ],
)
def test_size(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (1e-9, "1ns"),
        (1.5e-6, "1.5µs"),
        (0.950460846, "950.460846ms"),
        (0.001, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (5.050265883, "5.050265883s"),
        (5.05, "5.05s"),
        (59.9999999999, "1m0s"),
        (60, "1m0s"),
        (61.5, "1m1.5s"),
        (3600, "1h0m0s"),
        (90061.25, "25h1m1.25s"),
        (-2.5, "-2.5s"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_rate() -> None:
    assert human_rate(108_700_000, 950.460846e-3) == "114.4MB/s"
    assert human_rate(0, 0.0) == "0B/s"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("5m", 300),
        ("24h", 86400),
        ("1h30m", 5400),
        ("300ms", 0.3),
        ("1.5h", 5400),
        ("1h0m0.5s", 3600.5),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("-1s", -1),
        (" 2s ", 2),
    ],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_go_duration(text, parameter="gcttl") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "5d", "1h30", "--5m", "1..5s", ".s", "five minutes"])
def test_no_duration(text: str) -> None:
    with pytest.raises(InvalidOptionError, match="gcttl") as caught:
        parse_go_duration(text, parameter="gcttl")
    assert caught.value.parameter == "gcttl"


def test_every_duration_reads_back() -> None:
    for seconds in (0.000000001, 0.25, 59.999999999, 3661.5, 86400.0):
        assert parse_go_duration(human_duration(seconds), parameter="x") == pytest.approx(seconds, abs=1e-9)
