from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.storage.parameters import redact
from airflow_provider_tikvbr.storage.s3_location import S3Credentials, S3Location
from airflow_provider_tikvbr.storage.url import LocalLocation, NoopLocation, parse_url


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/backups/monday", "/backups/monday"),
        ("local:///backups/monday", "/backups/monday"),
        ("file:///backups/monday/", "/backups/monday"),
        ("local:/backups/monday", "/backups/monday"),
        ("  local:///backups/monday\n", "/backups/monday"),
        ("local:///two%20words/a+b", "/two words/a+b"),
        ("/plain/50%/a+b#c", "/plain/50%/a+b#c"),
    ],
)
def test_local(url: str, path: str) -> None:
    assert parse_url(url) == LocalLocation(path=Path(path))


def test_bare_paths_are_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_url("monday") == LocalLocation(path=tmp_path / "monday")


def test_noop() -> None:
    assert parse_url("noop://") == NoopLocation()


def test_s3_defaults() -> None:
    location = parse_url("s3://bucket/some/prefix/")
    assert location == S3Location(bucket="bucket", prefix="some/prefix", region="us-east-1", force_path_style=True)
    assert location.display_url == "s3://bucket/some/prefix"
    assert location.object_key("1/a.sst") == "some/prefix/1/a.sst"


def test_s3_without_prefix() -> None:
    location = parse_url("s3://bucket")
    assert isinstance(location, S3Location)
    assert location.display_url == "s3://bucket"
    assert location.object_key("1/a.sst") == "1/a.sst"


def test_s3_with_everything() -> None:
    assert parse_url(
        "s3://bucket/p?endpoint=http://minio:9000/&region=eu-central-1&storage_class=STANDARD_IA&sse=aws:kms"
        "&SSE-kms-key-id=k1&acl=private&access_key=AK&secret-access-key=a/b+c=d%2Fe&session-token=t+o"
        "&force_path_style=false&provider=Ceph"
    ) == S3Location(
        bucket="bucket",
        prefix="p",
        endpoint="http://minio:9000",
        region="eu-central-1",
        storage_class="STANDARD_IA",
        sse="aws:kms",
        sse_kms_key_id="k1",
        acl="private",
        provider="ceph",
        force_path_style=False,
        credentials=S3Credentials(access_key="AK", secret_access_key="a/b+c=d/e", session_token="t+o"),
    )


def test_the_first_value_counts() -> None:
    location = parse_url("s3://b/p?region=first&region=second&storage-class=A&storage_class=B")
    assert isinstance(location, S3Location)
    assert (location.region, location.storage_class) == ("first", "A")


@pytest.mark.parametrize("more", ["provider=alibaba", "provider=netease", "use-accelerate-endpoint=true"])
def test_services_without_path_style(more: str) -> None:
    location = parse_url(f"s3://b/p?{more}")
    assert isinstance(location, S3Location)
    assert not location.force_path_style


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is empty"),
        ("/b/\udcff", "is not UTF-8: write it so, in a UTF-8 locale"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://key:secret@bucket/p", "has a user part"),
        ("s3://key:sec/ret@bucket/p", "s3://bucket/p has a user part"),
        ("s3://bucket:9000/p", "has a user part"),
        ("s3://b/p?regoin=x", "no parameter 'regoin': known ones are access-key, acl, "),
        ("s3://b/p?access-key=x", "without secret-access-key"),
        ("s3://b/p?secret-access-key=secret", "without access-key"),
        ("s3://b/p?session-token=secret", "without access-key"),
        ("s3://b/p?force-path-style=maybe", "force-path-style is 'maybe'"),
        ("s3://b/p?endpoint=minio:9000", "is not a URL"),
        ("s3://b/p?endpoint=http://", "is not a URL"),
        ("s3://b/p?endpoint=http://minio:port", "is not a URL"),
        ("s3://b/p?endpoint=http://key:secret@minio:9000", "has a user part"),
        ("s3//b/p?secret-access-key=secret", "no scheme"),
        ("s3://[b/p?secret-access-key=secret", "cannot be read"),
        ("s3://b/p?secret-access-key:secret", "has a part that is not name=value"),
        ("s3://b/p?secret-access-key%3Dsecret", "has a part that is not name=value"),
        ("s3://b/p?access-key=x&sec/ret&acl=private", "has a part that is not name=value"),
        ("s3://b/p&secret-access-key=secret", "s3://b/p has parameters, but no question mark"),
        ("s3://b/p;Session_Token=secret", "s3://b/p has parameters, but no question mark"),
        ('gcs://b/p?credentials-file={"private_key":"secret"}', "credentials-file is a document"),
        ("local:///a?secret=secret", "no parameter 'secret': it takes none"),
        ("noop://?x=secret", "no parameter 'x'"),
        ("local://backups/monday", "local:///backups/monday"),
        ("local:backups", "no absolute path"),
        ("local://", "no absolute path"),
    ],
)
def test_refusals_say_what_and_show_no_secret(url: str, says: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        parse_url(url)
    assert caught.value.parameter == "storage"
    assert says in str(caught.value)
    assert "=secret" not in str(caught.value)
    assert ":secret" not in str(caught.value)
    assert "sec/ret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/p?access-key=a&secret-access-key=b", "s3://bucket/p"),
        ("s3://key:secret@bucket/p?x#y", "s3://bucket/p"),
        ("s3://key:sec/ret@bucket/p?x", "s3://bucket/p"),
        ("s3://bucket/p@q", "s3://bucket/p@q"),
        ("http://user@host:1/p#frag", "http://host:1/p"),
        ("/plain/path", "/plain/path"),
        ("s3//b?secret=1", "s3//b"),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_reprs_hide_keys() -> None:
    shown = repr(parse_url("s3://b/p?access-key=AKIA1&secret-access-key=hush&session-token=quiet"))
    assert "AKIA1" not in shown
    assert "hush" not in shown
    assert "quiet" not in shown
