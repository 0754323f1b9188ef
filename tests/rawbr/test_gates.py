from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import UnsupportedError
from airflow_provider_tikvbr.proto import brpb_pb2
from airflow_provider_tikvbr.rawbr.gates import check_can_encrypt, check_can_open
from airflow_provider_tikvbr.storage.cipher import PLAINTEXT, Cipher, CipherMethod
from tests.support.target import target

AES = Cipher(method=CipherMethod.AES128_CTR, key=b"k" * 16)


def s3(token: str) -> brpb_pb2.StorageBackend:
    s3 = brpb_pb2.S3(bucket="b", access_key="AKIA", secret_access_key="hush", session_token=token)
    return brpb_pb2.StorageBackend(s3=s3)


async def test_what_older_stores_pass_over(tmp_path: Path) -> None:
    async with target(tmp_path, version="5.2.4") as (_, cluster):
        check_can_encrypt(cluster, PLAINTEXT)
        with pytest.raises(UnsupportedError, match=r"version 5\.3\.0 or newer, this one has 5\.2\.4"):
            check_can_encrypt(cluster, AES)
        check_can_open(cluster, s3(""))
        check_can_open(cluster, brpb_pb2.StorageBackend(local=brpb_pb2.Local(path="/backups")))
        with pytest.raises(UnsupportedError, match=r"version 7\.6\.0 or newer, this one has 5\.2\.4") as caught:
            check_can_open(cluster, s3("secret-token"))
        assert "secret-token" not in str(caught.value)


async def test_what_newer_stores_know(tmp_path: Path) -> None:
    async with target(tmp_path, version="7.6.0") as (_, cluster):
        check_can_encrypt(cluster, AES)
        check_can_open(cluster, s3("secret-token"))
