from __future__ import annotations

import pytest

from airflow_provider_tikvbr.embedded import releases


@pytest.mark.parametrize(
    ("version", "release"), [("5.0.0", (5, 0)), ("v6.1.7", (6, 1)), ("9.0.0-beta.2", (9, 0)), ("10.11.12", (10, 11))]
)
def test_the_release_of_a_version(version: str, release: tuple[int, int]) -> None:
    assert releases.release_of(version) == release
