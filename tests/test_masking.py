from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import redact

from airflow_provider_tikvbr.masking import mask_hex, mask_url, secrets_of_url


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
        ("azure://c/p?account-key=a2V5&sas-token=sig%3Dxyz", {"a2V5", "sig=xyz", "sig%3Dxyz", "xyz"}),
        ("azure://c/p?sas-token=sv%3D1%26sig%3Dx%252Fy", {"sv=1&sig=x%2Fy", "sv%3D1%26sig%3Dx%252Fy", "x%2Fy", "x/y"}),
        ("s3://bucket/p&secret-access-key=s3cr3t&region=x", {"s3cr3t"}),
        ("azure://c/p?encryption-key=ZW5j&account-name=me", {"ZW5j"}),
        ("s3://bucket/p?external-id=between-us&role-arn=arn:x", {"between-us"}),
        ("gcs://bucket/p?credentials-file=/etc/gcs.json", set()),
    ],
)
def test_secrets_of_a_url(url: str, secrets: set[str]) -> None:
    assert set(secrets_of_url(url)) == secrets


def test_a_service_account_in_a_url_is_hidden() -> None:
    key = "-----BEGIN PRIVATE KEY-----\nMIIcanaryOfTheServiceAccount\n-----END PRIVATE KEY-----\n"
    account = json.dumps({"type": "service_account", "private_key": key, "private_key_id": "idOfTheCanary"})
    mask_url(f"gcs://bucket/p?credentials-file={quote(account)}")
    for shown in (key, account, quote(account), "MIIcanaryOfTheServiceAccount", "idOfTheCanary"):
        assert "anary" not in str(redact(f"here: {shown}"))


def test_a_key_is_hidden_in_any_case() -> None:
    mask_hex(" 00FfCaNaRyKeY11\n")
    assert str(redact("00FfCaNaRyKeY11 00ffcanarykey11 00FFCANARYKEY11")) == "*** *** ***"
