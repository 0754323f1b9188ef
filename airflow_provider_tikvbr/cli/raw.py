"""``backup raw``, ``restore raw`` and ``checksum``: the flags in, one job of the engine, its summary out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from airflow_provider_tikvbr.cli import options as flags
from airflow_provider_tikvbr.cli.options import accepted, duration, flag, switch, together
from airflow_provider_tikvbr.exceptions import ChecksumMismatchError

if TYPE_CHECKING:
    from airflow_provider_tikvbr.cli.jobs import Summary
    from airflow_provider_tikvbr.rawbr.events import Listener
    from airflow_provider_tikvbr.rawbr.summary import ChecksumSummary
    from airflow_provider_tikvbr.storage.base import Storage
    from airflow_provider_tikvbr.tikv.cluster import Cluster

    S = TypeVar("S", bound=Summary)
    Work = Callable[[Cluster, Storage, Listener], Coroutine[Any, Any, S]]

CLUSTER = (
    "pd",
    "ca",
    "cert",
    "key",
    "check_requirements",
    "grpc_keepalive_time",
    "grpc_keepalive_timeout",
    "grpc_max_recv_msg_size",
)


@click.command("raw")
@together(
    flags.cluster_flags,
    flags.storage_flags,
    flags.range_flags,
    flag("--dst-api-version", metavar="v1|v1ttl|v2", help="API version of the backup; by default the cluster's."),
    flag("--compression", default="zstd", metavar="lz4|snappy|zstd", help="Compression of the backup files."),
    flag("--compression-level", default="0", metavar="N", help="Level of the compression; 0 is its default."),
    flags.crypter_flags,
    flags.job_flags,
    duration("--gcttl", default="5m", help="V2: how long GC is held if this process dies."),
    duration("--safe-interval", default="1m", help="V2: how far backup-ts lies in the past."),
    switch("--remove-schedulers", help="Pause PD's balancing meanwhile."),
    accepted("--switch-mode-interval"),
    accepted("--split-region-max-keys"),
    flags.log_flags,
)
@click.pass_context
def backup_raw(ctx: click.Context, /, **typed: Any) -> None:
    """Back up the raw pairs of a cluster, or of a range of its keys."""
    from airflow_provider_tikvbr.rawbr.backup import backup
    from airflow_provider_tikvbr.rawbr.options import backup_options

    _run(ctx, "Raw backup", typed, backup_options, backup)


@click.command("raw")
@together(
    flags.cluster_flags,
    flags.storage_flags,
    flags.range_flags,
    flags.crypter_flags,
    flags.job_flags,
    switch("--online", help="Leave the stores in normal mode and PD's balancing running."),
    flag("--merge-region-size-bytes", metavar="N", help="Files are merged into regions up to this size."),
    flag("--merge-region-key-count", metavar="N", help="Files are merged into regions up to so many pairs."),
    flag("--split-region-max-keys", default="1024", metavar="N", help="Keys of one split request."),
    duration("--switch-mode-interval", default="5m", help="How often import mode is asked for again."),
    flags.log_flags,
)
@click.pass_context
def restore_raw(ctx: click.Context, /, **typed: Any) -> None:
    """Restore a raw backup, or a range of its keys, into a cluster of its API version."""
    from airflow_provider_tikvbr.rawbr.options import restore_options
    from airflow_provider_tikvbr.rawbr.restore import restore

    _run(ctx, "Raw restore", typed, restore_options, restore)


@click.command("checksum")
@together(
    flags.cluster_flags,
    flags.storage_flags,
    flags.range_flags,
    flags.crypter_flags,
    flags.checksum_concurrency_flag,
    flags.budget_flag,
    accepted("--checksum", boolean=True),
    accepted("--ratelimit"),
    accepted("--ratelimit-unit"),
    accepted("--concurrency"),
    accepted("--switch-mode-interval"),
    accepted("--split-region-max-keys"),
    flags.log_flags,
)
@click.pass_context
def checksum(ctx: click.Context, /, **typed: Any) -> None:
    """Compare a backup with what a cluster holds now."""
    from airflow_provider_tikvbr.rawbr.checksum import verify_backup
    from airflow_provider_tikvbr.rawbr.options import checksum_options

    async def compare(cluster: Cluster, storage: Storage, options: Any, listener: Listener) -> ChecksumSummary:
        summary = await verify_backup(cluster, storage, options, listener)
        if not summary.matches:
            raise ChecksumMismatchError(
                f"the cluster does not hold what the backup holds: the backup has {summary.expected},"
                f" the cluster {summary.actual}",
                expected=summary.expected,
                actual=summary.actual,
            )
        return summary

    _run(ctx, "Raw checksum", typed, checksum_options, compare)


def _run(
    ctx: click.Context,
    title: str,
    typed: dict[str, Any],
    build: Callable[..., Any],
    work: Callable[[Cluster, Storage, Any, Listener], Coroutine[Any, Any, S]],
) -> None:
    """Read every flag, then connect, then work: a wrong flag is told before anything is touched."""
    from airflow_provider_tikvbr.cli.jobs import Output, run_job
    from airflow_provider_tikvbr.storage.factory import open_storage
    from airflow_provider_tikvbr.tikv.cluster import Cluster

    arguments = flags.given(ctx)
    output = Output(log_level=typed.pop("log_level"), log_file=typed.pop("log_file"))
    cluster_options = flags.cluster_options(**{name: typed.pop(name) for name in CLUSTER})
    s3 = {name: typed.pop(f"s3_{name.replace('-', '_')}") for name in flags.S3_PARAMETERS}
    url = flags.storage_url(typed.pop("storage"), s3)
    send_credentials = typed.pop("send_credentials_to_tikv")
    options = build(**typed)

    async def job(listener: Listener) -> S:
        async with (
            open_storage(url, send_credentials=send_credentials) as storage,
            await Cluster.connect(cluster_options) as cluster,
        ):
            return await work(cluster, storage, options, listener)

    run_job(title, job, output=output, arguments=arguments)
