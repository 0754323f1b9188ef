"""The flags that the commands share, spelled as tikv-br's: name, short form, default, and hidden where tikv-br hides them.

Values stay text until the engine's own option builders read them, so that a wrong one is told in the same words
wherever it was given. Nothing here imports the engine before a command runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from airflow_provider_tikvbr.cli.flags import BOOL, parse_go_number

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]

# Where the flags of the clouds go: into the URL of a storage of these schemes.
CLOUDS = {"s3": ("s3",), "gcs": ("gcs", "gs"), "azblob": ("azure", "azblob")}
CLOUD_PARAMETERS = {
    "s3": ("endpoint", "region", "storage-class", "sse", "sse-kms-key-id", "acl", "provider"),
    "gcs": ("endpoint", "storage-class", "predefined-acl", "credentials-file"),
    "azblob": ("endpoint", "access-tier", "account-name", "account-key"),
}


def name_of(spellings: Sequence[str]) -> str:
    """The parameter that a flag fills: ``--crypter.key-file`` fills ``crypter_key_file``."""
    return max(spellings, key=len).removeprefix("--").replace("-", "_").replace(".", "_")


def flag(*spellings: str, default: Any = "", **settings: Any) -> Decorator:
    """One flag with a value; its default is shown unless it is empty."""
    settings.setdefault("metavar", "TEXT")
    return click.option(*spellings, name_of(spellings), default=default, show_default=default != "", **settings)


def switch(
    *spellings: str,
    help: str,  # noqa: A002 - click's own name
    default: bool = False,
    hidden: bool = False,
) -> Decorator:
    """One boolean flag, as Go reads them."""
    said = f"{help}  [default: true; =false turns it off]" if default else help
    name = name_of(spellings)
    return click.option(*spellings, name, type=BOOL, metavar="", default=default, help=said, hidden=hidden)


def duration(*spellings: str, **settings: Any) -> Decorator:
    """One flag with a duration, as Go reads them: a number needs its unit. A DAG may leave it out."""
    return flag(*spellings, metavar="DURATION", callback=_with_unit, **settings)


def _with_unit(ctx: click.Context, param: click.Parameter, value: str) -> str:
    from airflow_provider_tikvbr.rawbr.humanize import parse_go_duration

    parse_go_duration(value, parameter=param.name or "")
    return value


def number(*spellings: str, **settings: Any) -> Decorator:
    """One flag with a whole number, as Go reads them: ``0x80``, ``0o200`` and ``0200`` are 128."""

    def read(ctx: click.Context, param: click.Parameter, value: str) -> str:
        # A number that a script forgot to fill in must not come to mean the default: for --ratelimit that is no limit.
        if not value and param.default:
            raise click.UsageError(f"{param.opts[0]} is empty: give a whole number")
        found = parse_go_number(value)
        # What is no number is refused by the engine, in the same words wherever it was given.
        return value if found is None else str(found)

    return flag(*spellings, callback=read, **settings)


class Ignored(click.Option):
    """A flag that does nothing: tikv-br takes it with this command as well, and ignores it too."""


def ignored(spelling: str, default: Any = "") -> Decorator:
    """Take a flag that does nothing, hidden as with tikv-br; its value has to be of tikv-br's kind."""
    kind: Any = BOOL if isinstance(default, bool) else click.IntRange(min=0) if isinstance(default, int) else None
    read = _with_unit if isinstance(default, str) and default else None
    name = name_of([spelling])
    return click.option(
        spelling, name, cls=Ignored, type=kind, callback=read, default=default, expose_value=False, hidden=True
    )


def together(*decorators: Decorator) -> Decorator:
    """Apply several decorators so that ``--help`` lists them in this order."""

    def decorate(function: Function) -> Function:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


cluster_flags = together(
    click.option("-u", "--pd", multiple=True, default=["127.0.0.1:2379"], show_default=True, metavar="HOST:PORT,...",
                 help="PD endpoints; http:// or https:// must agree with TLS."),
    flag("--ca", metavar="FILE", help="CA certificate; turns TLS on."),
    flag("--cert", metavar="FILE", help="Our certificate, for mutual TLS."),
    flag("--key", metavar="FILE", help="Private key of --cert."),
    flag("--keyspace", metavar="NAME|ID", help="V2: the keyspace to work in; by default number 0."),
    flag("--address-map", metavar="FROM=TO,...", help="Where to reach the addresses that PD tells, host:port=host:port"
         " or host=host, if they are of another network."),
    switch("--check-requirements", default=True, hidden=True, help="Refuse stores older than 5.0.0 and TiFlash."),
    duration("--grpc-keepalive-time", default="10s", hidden=True, help="Silence before a ping."),
    duration("--grpc-keepalive-timeout", default="3s", hidden=True, help="Wait for the answer to a ping."),
    number("--grpc-max-recv-msg-size", hidden=True, metavar="BYTES", help="Largest message to receive."),
)  # fmt: skip


def _storage(*, required: bool) -> Decorator:
    # The commands that need none take it as well, with tikv-br's default.
    default: dict[str, Any] = {} if required else {"default": ""}
    return click.option("-s", "--storage", required=required, **default, metavar="URL",
                        help='Where the backup is: "local:///path", "s3://bucket/prefix", "gcs://bucket/prefix",'
                        ' "azure://container/prefix" or "hdfs://host/path".')  # fmt: skip


optional_storage_flag = _storage(required=False)
storage_flags = together(
    switch("-c", "--send-credentials-to-tikv", default=True, hidden=True,
           help="Send the storage's credentials to the stores."),
    switch("--no-credentials", hidden=True, help="Use no credentials at all: the storage is public."),
    flag("--s3.endpoint", metavar="URL", help="S3 endpoint, with http:// or https://."),
    flag("--s3.region", help="S3 region, such as us-east-1."),
    flag("--s3.storage-class", hidden=True, help="S3 storage class, such as STANDARD."),
    flag("--s3.sse", hidden=True, help="S3 server-side encryption, such as aws:kms."),
    flag("--s3.sse-kms-key-id", hidden=True, help="KMS key of --s3.sse."),
    flag("--s3.acl", hidden=True, help="S3 canned ACL, such as authenticated-read."),
    flag("--s3.provider", hidden=True, help="S3 provider; alibaba and netease mean virtual-host style."),
    flag("--gcs.endpoint", hidden=True, metavar="URL", help="GCS endpoint."),
    flag("--gcs.storage-class", hidden=True, help="GCS storage class."),
    flag("--gcs.predefined-acl", hidden=True, help="GCS predefined ACL."),
    flag("--gcs.credentials-file", hidden=True, metavar="FILE", help="GCS credentials."),
    flag("--azblob.endpoint", hidden=True, metavar="URL", help="Azure Blob endpoint."),
    flag("--azblob.access-tier", hidden=True, help="Azure Blob access tier."),
    flag("--azblob.account-name", hidden=True, help="Azure Blob account."),
    flag("--azblob.account-key", hidden=True, help="Key of the Azure Blob account."),
    flag("--crypter.method", default="plaintext", hidden=True, metavar="METHOD",
         help="plaintext, aes128-ctr, aes192-ctr or aes256-ctr."),
    flag("--crypter.key", hidden=True, metavar="HEX", help="The key; --crypter.key-file keeps it out of sight."),
    flag("--crypter.key-file", hidden=True, metavar="FILE", help="A file that holds the key in hex."),
)  # fmt: skip

job_flags = together(
    number("--ratelimit", default="0", metavar="N", help="Limit of each store, in MiB/s; 0 means none."),
    number("--ratelimit-unit", default="1048576", hidden=True, metavar="BYTES", help="Unit of --ratelimit."),
    number("--concurrency", default="0", hidden=True, metavar="N",
         help="Restore: files at a time, 0 means 512. Backup: passed to TiKV."),
    switch("--checksum", help="Compare backup and cluster at the end."),
    number("--checksum-concurrency", default="512", hidden=True, metavar="N", help="Regions counted at a time."),
    duration("--switch-mode-interval", default="5m", hidden=True, help="How often import mode is asked for again."),
    number("--split-region-max-keys", default="1024", hidden=True, metavar="N", help="Keys of one split request."),
)  # fmt: skip

log_flags = together(
    flag("-L", "--log-level", default="info", help="Lowest level that is logged: debug, info, warn, error."),
    flag("--log-file", metavar="FILE", help="Where the log goes; by default a temporary file on a terminal,"
         " standard error elsewhere."),
    flag("--log-format", default="text", hidden=True, metavar="text|json", help="How the log is written."),
    switch("--redact-log", hidden=True, help="Show no user key in the log, on the terminal or in an error."),
    switch("--redact-info-log", hidden=True, help="The same as --redact-log."),
)  # fmt: skip

# What tikv-br gives to every command and never reads when raw data are meant.
ignored_flags = together(
    ignored("--status-addr"),
    ignored("--slow-log-file"),
    ignored("--enable-opentracing", default=False),
    ignored("--skip-check-path", default=False),
)
ignored_backup_flags = together(
    ignored("--timeago", default="0s"),
    ignored("--lastbackupts", default=0),
    ignored("--backupts"),
    ignored("--ignore-stats", default=True),
    ignored("--use-backupmeta-v2", default=False),
)
ignored_restore_flags = together(
    ignored("--pd-concurrency", default=1),
    ignored("--batch-flush-interval", default="16s"),
    ignored("--no-schema", default=False),
)

# What every command takes, as with tikv-br.
_others = together(storage_flags, job_flags, log_flags, ignored_flags)
global_flags = together(cluster_flags, _storage(required=True), _others)
global_flags_without_storage = together(cluster_flags, optional_storage_flag, _others)

range_flags = together(
    flag("--start", metavar="KEY", help="First key of the range."),
    flag("--end", metavar="KEY", help="Key after the range."),
    flag("--format", default="hex", metavar="hex|raw|escaped", help="How --start and --end are written."),
)
# tikv-br has no such flag.
budget_flag = duration("--budget", default="10m", help="How long to go on without any progress.")
resume_flag = switch("--resume", default=True, help="Go on with what a broken off try of this job has finished.")
