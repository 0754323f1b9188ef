from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from airflow_provider_tikvbr.cli import options as flags
from airflow_provider_tikvbr.cli import settings
from airflow_provider_tikvbr.cli.main import flag_of
from airflow_provider_tikvbr.cli.settings import CLUSTER
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.addresses import NO_ADDRESS_MAP, AddressMap
from airflow_provider_tikvbr.tikv.options import ClusterOptions

CLOUD_FLAGS = {
    f"{cloud}_{name.replace('-', '_')}": "" for cloud, names in flags.CLOUD_PARAMETERS.items() for name in names
}


@pytest.mark.parametrize(
    ("url", "given", "wanted"),
    [
        ("s3://b/p", {}, "s3://b/p"),
        ("s3://b/p", {"s3_endpoint": "http://h:1"}, "s3://b/p?endpoint=http%3A%2F%2Fh%3A1"),
        ("s3://b/p?region=eu", {"s3_endpoint": "http://h"}, "s3://b/p?region=eu&endpoint=http%3A%2F%2Fh"),
        # what the URL says itself wins, in any spelling
        ("s3://b/p?region=eu", {"s3_region": "us"}, "s3://b/p?region=eu"),
        ("s3://b/p?Storage_Class=COLD", {"s3_storage_class": "STANDARD"}, "s3://b/p?Storage_Class=COLD"),
        ("s3://b/p?region=", {"s3_region": "us"}, "s3://b/p?region="),
        ("s3://b/p?", {"s3_region": "us"}, "s3://b/p?region=us"),
        # each cloud has its own
        ("gs://b/p", {"s3_endpoint": "http://s", "gcs_endpoint": "http://g"}, "gs://b/p?endpoint=http%3A%2F%2Fg"),
        ("gcs://b", {"gcs_storage_class": "c", "gcs_predefined_acl": "a"}, "gcs://b?storage-class=c&predefined-acl=a"),
        ("GCS://b", {"gcs_credentials_file": "/f"}, "GCS://b?credentials-file=%2Ff"),
        ("azure://c/p", {"azblob_account_name": "n", "azblob_account_key": "k="}, "azure://c/p?account-name=n&account-key=k%3D"),
        ("azblob://c", {"azblob_access_tier": "Cool", "azblob_endpoint": "http://a"}, "azblob://c?endpoint=http%3A%2F%2Fa&access-tier=Cool"),
        # other storages do not know them
        ("local:///p", {"s3_region": "us", "gcs_endpoint": "http://g", "azblob_account_key": "k"}, "local:///p"),
        ("/p", {"s3_region": "us"}, "/p"),
    ],
)  # fmt: skip
def test_the_flags_of_a_cloud_go_into_the_url(url: str, given: dict[str, str], wanted: str) -> None:
    assert settings.storage_url(CLOUD_FLAGS | given | {"storage": url}) == wanted


def cluster(*args: str) -> ClusterOptions:
    found: list[ClusterOptions] = []

    @click.command()
    @flags.cluster_flags
    def command(**typed: Any) -> None:
        assert set(typed) == set(CLUSTER)
        found.append(settings.cluster_options(**typed))

    result = CliRunner().invoke(command, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def test_a_cluster_by_default_is_this_machine() -> None:
    assert cluster() == ClusterOptions(pd=("127.0.0.1:2379",))


def test_endpoints_may_be_listed_and_repeated() -> None:
    assert cluster("-u", "a:1,b:2", "--pd", "http://c").pd == ("a:1", "b:2", "c:2379")


def test_grpc_settings() -> None:
    options = cluster(
        "--grpc-keepalive-time", "1m", "--grpc-keepalive-timeout", "500ms", "--grpc-max-recv-msg-size", "33554432"
    )
    assert (options.grpc.keepalive_time_s, options.grpc.keepalive_timeout_s) == (60, 0.5)
    assert options.grpc.max_receive_bytes == 33_554_432


def test_requirements_may_be_left_unchecked() -> None:
    assert cluster("--check-requirements", "false").check_requirements is False


@pytest.mark.parametrize(
    ("args", "parameter"),
    [
        (["--pd", "https://a:1"], "pd"),
        (["--ca", "/no/such.pem"], "ca"),
        (["--grpc-keepalive-time", "soon"], "grpc_keepalive_time"),
        (["--grpc-max-recv-msg-size", "-1"], "grpc_max_recv_msg_size"),
    ],
)
def test_a_wrong_value_names_its_flag(args: list[str], parameter: str) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        cluster(*args)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("parameter", "spelling"),
    [
        ("dst_api_version", "--dst-api-version"),
        ("crypter_key_file", "--crypter.key-file"),
        ("crypter_method", "--crypter.method"),
        ("pd", "--pd"),
    ],
)
def test_an_option_of_the_engine_has_a_flag(parameter: str, spelling: str) -> None:
    assert flag_of(parameter) == spelling


def test_the_log_gets_what_was_typed_and_no_secret() -> None:
    seen: dict[str, object] = {}

    @click.command()
    @flags.together(flags.range_flags, flags.global_flags)
    @click.pass_context
    def command(ctx: click.Context, /, **typed: Any) -> None:
        seen.update(settings.given(ctx))

    canary = "53ec12e7"
    args = [
        *("-u", "a:1", "-u", "b:2", "-s", f"s3://b/p?secret-access-key={canary}"),
        *("--azblob.account-key", canary, "--start", "61"),
        *("--crypter.key", canary, "--crypter.method", "aes256-ctr", "--check-requirements", "true"),
    ]
    result = CliRunner().invoke(command, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert seen == {
        "__command": "command",
        "azblob.account-key": "<hidden>",
        "start": "61",
        "pd": "a:1,b:2",
        "storage": "s3://b/p",
        "crypter.key": "<hidden>",
        "crypter.method": "aes256-ctr",
        "check-requirements": True,
    }


def test_no_key_is_in_the_log_if_none_is_to_be_shown() -> None:
    seen: dict[str, object] = {}

    @click.command()
    @flags.together(flags.range_flags, flags.log_flags)
    @click.pass_context
    def command(ctx: click.Context, /, **typed: Any) -> None:
        seen.update(settings.given(ctx))

    for redact in ("--redact-log", "--redact-info-log"):
        CliRunner().invoke(command, ["--start", "61", "--end", "62", redact, "true"], catch_exceptions=False)
        assert (seen["start"], seen["end"], seen[redact[2:]]) == ("?", "?", True)
        seen.clear()


@pytest.mark.parametrize(("typed", "number", "name"), [("", 0, ""), ("7", 7, ""), ("tenant", 0, "tenant")])
def test_a_keyspace_has_a_number_or_a_name(typed: str, number: int, name: str) -> None:
    options = cluster("--keyspace", typed)
    assert (options.keyspace_id, options.keyspace) == (number, name)


def test_addresses_may_be_mapped() -> None:
    options = cluster("--address-map", "tikv-0:20160=127.0.0.1:30160")
    assert options.address_map == AddressMap.parse("tikv-0:20160=127.0.0.1:30160") != NO_ADDRESS_MAP
