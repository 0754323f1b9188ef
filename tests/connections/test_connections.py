from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_tikvbr.connections import StorageAccess, find_connection, storage_access
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.storage.s3_location import S3Credentials, S3Location
from airflow_provider_tikvbr.storage.url import parse_url

URL = "s3://bucket/prefix"
KEYS = S3Credentials(access_key="AKIATHEACCESSKEY", secret_access_key="topsecret")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Any:
    def define(**extra: Any) -> None:
        conn = {"conn_type": "aws", "login": KEYS.access_key, "password": KEYS.secret_access_key, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_KEYS", json.dumps(conn))

    return define


def location(url: str) -> S3Location:
    found = parse_url(url)
    assert isinstance(found, S3Location)
    return found


@pytest.mark.parametrize("uri", [None, "tikv://pd0:2379,pd1:2379", "{not json"])
def test_a_connection_that_cannot_be_read_is_named_with_its_option(
    monkeypatch: pytest.MonkeyPatch, uri: str | None
) -> None:
    if uri:
        monkeypatch.setenv("AIRFLOW_CONN_GONE", uri)
    with pytest.raises(
        AirflowNotFoundException, match=r"^tikv_conn_id names the connection gone, which is not defined"
    ):
        find_connection("gone", parameter="tikv_conn_id")


@pytest.mark.parametrize("name", [None, "", " ", 5])
def test_no_name_is_a_mistake(name: Any) -> None:
    with pytest.raises(InvalidOptionError, match=r"^tikv_conn_id is ") as caught:
        find_connection(name, parameter="tikv_conn_id")
    assert caught.value.parameter == "tikv_conn_id"


@pytest.mark.parametrize("name", [None, ""])
def test_no_storage_connection_means_the_workers_own_keys(name: Any) -> None:
    assert storage_access(name, URL) is None


@pytest.mark.parametrize("url", ["/mnt/backup", "local:///mnt/backup", "noop://", "hdfs://namenode/backup"])
def test_a_storage_without_credentials_takes_no_connection(keys: Any, url: str) -> None:
    keys()
    with pytest.raises(InvalidOptionError, match=r"takes no credentials: leave storage_conn_id out$"):
        storage_access("keys", url)


def test_endpoint_and_region_come_from_the_connection_unless_the_url_says_otherwise(keys: Any) -> None:
    keys(endpoint_url="http://minio:9000", region_name="eu-west-1")
    access = storage_access("keys", URL)
    assert access is not None
    assert access.unread == ()
    found = location(access.complete("s3://bucket/prefix"))
    assert (found.endpoint, found.region, found.prefix) == ("http://minio:9000", "eu-west-1", "prefix")
    found = location(access.complete("s3://bucket/prefix?endpoint=http://other:1&sse=AES256"))
    assert (found.endpoint, found.region, found.sse) == ("http://other:1", "eu-west-1", "AES256")


def test_an_extra_that_is_no_object_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    conn = {"conn_type": "aws", "login": KEYS.access_key, "password": KEYS.secret_access_key, "extra": "[1]"}
    monkeypatch.setenv("AIRFLOW_CONN_KEYS", json.dumps(conn))
    assert storage_access("keys", URL) == StorageAccess(credentials=KEYS)
