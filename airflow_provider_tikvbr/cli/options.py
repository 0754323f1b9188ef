"""The flags that the commands share, spelled as tikv-br's, and what they mean to the engine.

Values stay text until the engine's own option builders read them, so that a wrong one is told in the same words
wherever it was given. Nothing here imports the engine before a command runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import click

from airflow_provider_tikvbr.cli.flags import BOOL

if TYPE_CHECKING:
    from airflow_provider_tikvbr.tikv.options import ClusterOptions

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

# Flags whose value never appears in a log.
SECRETS = frozenset({"crypter_key"})
S3_PARAMETERS = ("endpoint", "region", "storage-class", "sse", "sse-kms-key-id", "acl", "provider")


def name_of(spellings: Sequence[str]) -> str:
    """The parameter that a flag fills: ``--crypter.key-file`` fills ``crypter_key_file``."""
    return max(spellings, key=len).removeprefix("--").replace("-", "_").replace(".", "_")


def flag(*spellings: str, default: Any = "", **settings: Any) -> Decorator:
    """One flag with a value; its default is shown unless it is empty."""
    settings.setdefault("metavar", "TEXT")
    return click.option(*spellings, name_of(spellings), default=default, show_default=default != "", **settings)


def switch(*spellings: str, help: str, default: bool = False) -> Decorator:  # noqa: A002 - click's own name
    """One boolean flag, as Go reads them."""
    said = f"{help}  [default: true; =false turns it off]" if default else help
    return click.option(*spellings, name_of(spellings), type=BOOL, metavar="", default=default, help=said)


def duration(*spellings: str, **settings: Any) -> Decorator:
    """One flag with a duration, as Go reads them: a number needs its unit. A DAG may leave it out."""
    return flag(*spellings, metavar="DURATION", callback=_with_unit, **settings)


def _with_unit(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from airflow_provider_tikvbr.rawbr.humanize import parse_go_duration

    parse_go_duration(value, parameter=param.name or "")
    return value


def accepted(*spellings: str, boolean: bool = False) -> Decorator:
    """Take a flag that means nothing here: tikv-br takes it with this command as well, and ignores it too."""
    kind: dict[str, Any] = {"type": BOOL} if boolean else {}
    return click.option(*spellings, name_of(spellings), expose_value=False, hidden=True, **kind)


def together(*decorators: Decorator) -> Decorator:
    """Apply several decorators so that ``--help`` lists them in this order."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def log_flags(function: Function) -> Function:
    """Add the flags about the log."""
    return together(
        flag("-L", "--log-level", default="info", help="Lowest level that is logged: debug, info, warn, error."),
        flag("--log-file", metavar="FILE", help="Where the log goes; by default a temporary file on a terminal,"
             " standard error elsewhere."),
    )(function)  # fmt: skip


def cluster_flags(function: Function) -> Function:
    """Add the flags about the cluster."""
    return together(
        click.option("-u", "--pd", multiple=True, default=["127.0.0.1:2379"], show_default=True,
                     metavar="HOST:PORT,...", help="PD endpoints; http:// or https:// must agree with TLS."),
        flag("--ca", metavar="FILE", help="CA certificate; turns TLS on."),
        flag("--cert", metavar="FILE", help="Our certificate, for mutual TLS."),
        flag("--key", metavar="FILE", help="Private key of --cert."),
        switch("--check-requirements", default=True, help="Refuse stores older than 5.0.0 and TiFlash."),
        duration("--grpc-keepalive-time", default="10s", hidden=True, help="Silence before a ping."),
        duration("--grpc-keepalive-timeout", default="3s", hidden=True, help="Wait for the answer to a ping."),
        flag("--grpc-max-recv-msg-size", hidden=True, help="Largest message to receive, in bytes."),
    )(function)  # fmt: skip


def storage_flags(function: Function) -> Function:
    """Add the flags about the storage."""
    return together(
        click.option("-s", "--storage", required=True, metavar="URL",
                     help='Where the backup is: "local:///path" or "s3://bucket/prefix".'),
        switch("-c", "--send-credentials-to-tikv", default=True, help="Send the S3 credentials to the stores."),
        flag("--s3.endpoint", metavar="URL", help="S3 endpoint, with http:// or https://."),
        flag("--s3.region", help="S3 region, such as us-east-1."),
        flag("--s3.storage-class", help="S3 storage class, such as STANDARD."),
        flag("--s3.sse", help="S3 server-side encryption, such as aws:kms."),
        flag("--s3.sse-kms-key-id", help="KMS key of --s3.sse."),
        flag("--s3.acl", help="S3 canned ACL, such as authenticated-read."),
        flag("--s3.provider", help="S3 provider; alibaba and netease mean virtual-host style."),
    )(function)  # fmt: skip


def range_flags(function: Function) -> Function:
    """Add the flags about the key range."""
    return together(
        flag("--start", metavar="KEY", help="First key of the range."),
        flag("--end", metavar="KEY", help="Key after the range."),
        flag("--format", default="hex", metavar="hex|raw|escaped", help="How --start and --end are written."),
    )(function)  # fmt: skip


def crypter_flags(function: Function) -> Function:
    """Add the flags about encryption."""
    return together(
        flag("--crypter.method", default="plaintext", metavar="METHOD",
             help="plaintext, aes128-ctr, aes192-ctr or aes256-ctr."),
        flag("--crypter.key", metavar="HEX", help="The key; --crypter.key-file keeps it out of sight."),
        flag("--crypter.key-file", metavar="FILE", help="A file that holds the key in hex."),
    )(function)  # fmt: skip


checksum_concurrency_flag = flag(
    "--checksum-concurrency", default="512", metavar="N", help="Regions that are counted at a time."
)
# tikv-br has no such flag.
budget_flag = duration("--budget", default="10m", help="How long to go on without any progress.")


def job_flags(function: Function) -> Function:
    """Add what backup and restore share."""
    return together(
        flag("--ratelimit", default="0", metavar="N", help="Limit of each store, in MiB/s; 0 means none."),
        flag("--ratelimit-unit", default="1048576", metavar="BYTES", help="Unit of --ratelimit."),
        flag("--concurrency", default="0", metavar="N", help="Restore: files at a time, 0 means 512. Backup: passed"
             " to TiKV."),
        switch("--checksum", help="Compare backup and cluster at the end."),
        checksum_concurrency_flag,
        budget_flag,
    )(function)  # fmt: skip


def cluster_options(
    *,
    pd: Sequence[str],
    ca: str,
    cert: str,
    key: str,
    check_requirements: bool,
    grpc_keepalive_time: str,
    grpc_keepalive_timeout: str,
    grpc_max_recv_msg_size: str,
) -> ClusterOptions:
    """Read the flags about the cluster.

    :raises InvalidOptionError: one of them cannot be right.
    """
    from airflow_provider_tikvbr.rawbr.parsing import parse_duration, parse_whole
    from airflow_provider_tikvbr.tikv.options import ClusterOptions, GrpcOptions, TlsOptions, parse_pd

    tls = TlsOptions.load(ca=ca or None, cert=cert or None, key=key or None)
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
        check_requirements=check_requirements,
    )


def storage_url(storage: str, s3: Mapping[str, str]) -> str:
    """Put the ``--s3.`` flags into the URL of an S3 storage; what the URL says itself wins, as with tikv-br.

    :param storage: the URL.
    :param s3: the flags by the name that they have in a URL.
    """
    parts = urlsplit(storage)
    if parts.scheme.lower() != "s3":
        return storage
    said = {name.replace("_", "-") for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    more = urlencode({name: value for name, value in s3.items() if value and name not in said})
    if not more:
        return storage
    return f"{storage}{'&' if parts.query else '' if storage.endswith('?') else '?'}{more}"


def given(ctx: click.Context) -> dict[str, object]:
    """What the user typed, by flag, for the log: without secrets."""
    from airflow_provider_tikvbr.storage.url import redact

    typed: dict[str, object] = {}
    for param in ctx.command.params:
        name = param.name or ""
        if name not in ctx.params or ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT:
            continue
        value = ctx.params[name]
        if name in SECRETS:
            value = "<hidden>"
        elif name == "storage":
            value = redact(value)
        elif isinstance(value, tuple):
            value = ",".join(value)
        typed[max(param.opts, key=len).removeprefix("--")] = value
    return typed
