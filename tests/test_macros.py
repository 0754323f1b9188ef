from __future__ import annotations

import pytest

from airflow_provider_tikvbr.macros import below


@pytest.mark.parametrize(
    ("storage", "names", "expected"),
    [
        ("local:///mnt/backup", ("a",), "local:///mnt/backup/a"),
        ("local:///mnt/backup/", ("a", "b"), "local:///mnt/backup/a/b"),
        ("s3://bucket", ("a",), "s3://bucket/a"),
        (
            "s3://bucket/p/?endpoint=http://h:9000&region=x",
            ("a",),
            "s3://bucket/p/a?endpoint=http://h:9000&region=x",
        ),
        ("/mnt/what?", ("a",), "/mnt/what?/a"),
        ("", ("a",), ""),
        (" ", ("a",), ""),
        (None, ("a",), ""),
    ],
)
def test_below(storage: str | None, names: tuple[str, ...], expected: str) -> None:
    assert below(storage, *names) == expected
