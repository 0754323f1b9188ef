"""What the flags that every command takes mean to the engine, and what the log may tell of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import click

from airflow_provider_tikvbr.cli.options import CLOUD_PARAMETERS, CLOUDS, Ignored

if TYPE_CHECKING:
    from airflow_provider_tikvbr.cli.jobs import Output
    from airflow_provider_tikvbr.storage.base import Storage
    from airflow_provider_tikvbr.tikv.options import ClusterOptions

# Parameters of cluster_options().
CLUSTER = (
    *("pd", "ca", "cert", "key", "keyspace", "address_map", "check_requirements"),
    *("grpc_keepalive_time", "grpc_keepalive_timeout", "grpc_max_recv_msg_size"),
)
# Flags whose value never appears in a log.
SECRETS = frozenset({"crypter_key", "azblob_account_key"})
# Flags whose value is a user key.
KEYS = frozenset({"start", "end"})
# Flags whose value is a path, and which people give what the file should hold.
PATHS = frozenset({"ca", "cert", "key", "crypter_key_file", "gcs_credentials_file"})


def cluster_options(
    *,
    pd: Sequence[str],
    ca: str,
    cert: str,
    key: str,
    keyspace: str,
    address_map: str,
    check_requirements: bool,
    grpc_keepalive_time: str,
    grpc_keepalive_timeout: str,
    grpc_max_recv_msg_size: str,
) -> ClusterOptions:
    """Read the flags about the cluster.

    :raises InvalidOptionError: one of them cannot be right.
    """
    from airflow_provider_tikvbr.rawbr.parsing import parse_duration, parse_whole
    from airflow_provider_tikvbr.tikv.addresses import AddressMap
    from airflow_provider_tikvbr.tikv.options import ClusterOptions, GrpcOptions, TlsOptions, parse_keyspace, parse_pd

    tls = TlsOptions.load(ca=ca or None, cert=cert or None, key=key or None)
    keyspace_id, keyspace_name = parse_keyspace(keyspace)
    return ClusterOptions(
        pd=parse_pd(",".join(pd), tls=tls is not None),
        tls=tls,
        grpc=GrpcOptions(
            keepalive_time_s=parse_duration(grpc_keepalive_time, parameter="grpc_keepalive_time", minimum_s=0.001),
            keepalive_timeout_s=parse_duration(
                grpc_keepalive_timeout, parameter="grpc_keepalive_timeout", minimum_s=0.001
            ),
            max_receive_bytes=parse_whole(
                grpc_max_recv_msg_size, parameter="grpc_max_recv_msg_size", default=-1, minimum=1, maximum=(1 << 31) - 1
            ),
        ),
        keyspace_id=keyspace_id or 0,
        keyspace=keyspace_name,
        address_map=AddressMap.parse(address_map),
        check_requirements=check_requirements,
    )


def open_storage_of(typed: Mapping[str, Any], *, name: str = "storage") -> Storage:
    """Open the storage that the flags name; nothing is touched yet.

    :param name: the parameter whose URL it is.
    :raises InvalidOptionError: one of the flags cannot be right.
    """
    from airflow_provider_tikvbr.storage.factory import open_storage

    return open_storage(
        storage_url(typed, name=name),
        send_credentials=typed["send_credentials_to_tikv"],
        no_credentials=typed["no_credentials"],
    )


def storage_url(typed: Mapping[str, Any], *, name: str = "storage") -> str:
    """Put the flags of a cloud into the URL of a storage there; what the URL says itself wins, as with tikv-br.

    :param typed: the flags by parameter; those of other clouds are left alone.
    :param name: the parameter whose URL it is.
    """
    storage: str = typed[name]
    parts = urlsplit(storage)
    said = {said_name.lower().replace("_", "-") for said_name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    more = urlencode(
        {
            parameter: value
            for cloud, schemes in CLOUDS.items()
            if parts.scheme.lower() in schemes
            for parameter in CLOUD_PARAMETERS[cloud]
            if (value := typed[f"{cloud}_{parameter.replace('-', '_')}"]) and parameter not in said
        }
    )
    if not more:
        return storage
    return f"{storage}{'&' if parts.query else '' if storage.endswith('?') else '?'}{more}"


def output(ctx: click.Context) -> Output:
    """Read the flags about the log."""
    from airflow_provider_tikvbr.cli.jobs import Output

    typed = ctx.params
    return Output(
        log_level=typed["log_level"],
        log_file=typed["log_file"],
        log_format=typed["log_format"],
        arguments=given(ctx),
        without_effect=without_effect(ctx),
    )


def given(ctx: click.Context) -> dict[str, object]:
    """What the user typed, by flag, for the log: without secrets, and without keys if none are to be shown."""
    from airflow_provider_tikvbr.secret_text import looks_secret
    from airflow_provider_tikvbr.storage.parameters import redact

    redacted = wants_redaction(ctx.params)
    typed: dict[str, object] = {"__command": ctx.command_path}
    for param in ctx.command.params:
        name = param.name or ""
        if name not in ctx.params or ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT:
            continue
        value = ctx.params[name]
        if name in SECRETS or (name in PATHS and looks_secret(value)):
            value = "<hidden>"
        elif name in KEYS and redacted:
            value = "?"
        elif name in ("storage", "checkpoint_storage") or name.endswith("_endpoint"):
            value = redact(value)
        elif isinstance(value, tuple):
            value = ",".join(map(redact, value))
        typed[max(param.opts, key=len).removeprefix("--")] = value
    return typed


def wants_redaction(typed: Mapping[str, Any]) -> bool:
    """Whether no user key is to be shown."""
    return bool(typed.get("redact_log") or typed.get("redact_info_log"))


def without_effect(ctx: click.Context) -> tuple[str, ...]:
    """The flags that the user typed and that do nothing."""
    default = click.core.ParameterSource.DEFAULT
    return tuple(
        max(param.opts, key=len)
        for param in ctx.command.params
        if isinstance(param, Ignored) and ctx.get_parameter_source(param.name or "") is not default
    )
