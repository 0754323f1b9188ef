from __future__ import annotations

import pytest

from airflow_provider_tikvbr.masking import secrets_of_url


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("s3://bucket/prefix?region=eu-west-1&endpoint=http://minio:9000", set()),
        ("/mnt/backup", set()),
        ("s3://bucket/p?access-key=AKIA1&secret-access-key=s3cr3t", {"AKIA1", "s3cr3t"}),
        ("s3://bucket/p?secret_access_key=a%2Fb%2B", {"a/b+", "a%2Fb%2B", "a/b%2B"}),
        ("s3://bucket/p?secret-access-key=a/b+&x=1", {"a/b+", "a%2Fb%2B", "a/b%2B"}),
        ("s3://bucket/p?secret-access-key=", set()),
        ("s3://bucket/p?session-token=t0k3n", {"t0k3n"}),
        ("s3://user:hidden@bucket/p", {"user", "hidden"}),
        ("s3://user:hid/den@bucket/p", {"user", "hid/den", "hid%2Fden"}),
        ("s3://bucket/12:30@home", set()),
        ("s3://user@bucket/p", set()),
        ("s3:/bucket/p?secret-access-key=s3cr3t", {"s3cr3t"}),
        ("s3//bucket/p?secret-access-key=s3cr3t", {"s3cr3t"}),
        ("http://[broken", set()),
    ],
)
def test_secrets_of_a_url(url: str, secrets: set[str]) -> None:
    assert set(secrets_of_url(url)) == secrets
