from __future__ import annotations

from typing import Any

import click
import pytest
from click.testing import CliRunner

from airflow_provider_tikvbr.cli import options as flags
from airflow_provider_tikvbr.cli.main import flag_of, tikvbr
from airflow_provider_tikvbr.cli.raw import CLUSTER
from airflow_provider_tikvbr.exceptions import InvalidOptionError
from airflow_provider_tikvbr.tikv.options import ClusterOptions

S3 = dict.fromkeys(flags.S3_PARAMETERS, "")


@pytest.mark.parametrize(
    ("url", "given", "wanted"),
    [
        ("s3://b/p", {}, "s3://b/p"),
        ("s3://b/p", {"endpoint": "http://h:1"}, "s3://b/p?endpoint=http%3A%2F%2Fh%3A1"),
        ("s3://b/p?region=eu", {"endpoint": "http://h"}, "s3://b/p?region=eu&endpoint=http%3A%2F%2Fh"),
        # what the URL says itself wins, in either spelling
        ("s3://b/p?region=eu", {"region": "us"}, "s3://b/p?region=eu"),
        ("s3://b/p?storage_class=COLD", {"storage-class": "STANDARD"}, "s3://b/p?storage_class=COLD"),
        ("s3://b/p?region=", {"region": "us"}, "s3://b/p?region="),
        ("s3://b/p?", {"region": "us"}, "s3://b/p?region=us"),
        # other storages do not know them
        ("local:///p", {"region": "us"}, "local:///p"),
        ("/p", {"region": "us"}, "/p"),
    ],
)
def test_s3_flags_go_into_the_url(url: str, given: dict[str, str], wanted: str) -> None:
    assert flags.storage_url(url, S3 | given) == wanted


def cluster(*args: str) -> ClusterOptions:
    found: list[ClusterOptions] = []

    @click.command()
    @flags.cluster_flags
    def command(**typed: Any) -> None:
        assert set(typed) == set(CLUSTER)
        found.append(flags.cluster_options(**typed))

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
    @flags.together(flags.cluster_flags, flags.storage_flags, flags.crypter_flags)
    @click.pass_context
    def command(ctx: click.Context, /, **typed: Any) -> None:
        seen.update(flags.given(ctx))

    canary = "53ec12e7"
    args = [
        *("-u", "a:1", "-u", "b:2", "-s", f"s3://b/p?secret-access-key={canary}"),
        *("--crypter.key", canary, "--crypter.method", "aes256-ctr", "--check-requirements", "true"),
    ]
    result = CliRunner().invoke(command, args, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert seen == {
        "pd": "a:1,b:2",
        "storage": "s3://b/p",
        "crypter.key": "<hidden>",
        "crypter.method": "aes256-ctr",
        "check-requirements": True,
    }


def test_every_command_takes_the_flags_that_tikv_br_gives_to_all() -> None:
    everywhere = {
        *("--storage", "-s", "--pd", "-u", "--ca", "--cert", "--key", "--checksum", "--checksum-concurrency"),
        *("--ratelimit", "--ratelimit-unit", "--concurrency", "--check-requirements", "--switch-mode-interval"),
        *("--grpc-keepalive-time", "--grpc-keepalive-timeout", "--grpc-max-recv-msg-size", "--split-region-max-keys"),
        *("--crypter.method", "--crypter.key", "--crypter.key-file", "--send-credentials-to-tikv", "-c"),
        *("--s3.endpoint", "--s3.region", "--s3.storage-class", "--s3.sse", "--s3.sse-kms-key-id", "--s3.acl"),
        *("--s3.provider", "--log-level", "-L", "--log-file"),
    }
    for path in (["backup", "raw"], ["restore", "raw"], ["checksum"], ["debug", "checksum"], ["validate", "checksum"]):
        command: click.Command = tikvbr
        for word in path:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        taken = {spelling for param in command.params for spelling in param.opts}
        assert everywhere - taken == set(), path
