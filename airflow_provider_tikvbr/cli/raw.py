"""``backup raw``, ``restore raw`` and ``checksum``: the flags in, one job of the engine, its summary out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

import click

from airflow_provider_tikvbr.cli import options as flags
from airflow_provider_tikvbr.cli import settings
from airflow_provider_tikvbr.cli.options import duration, flag, number, switch, together
from airflow_provider_tikvbr.exceptions import ChecksumMismatchError

if TYPE_CHECKING:
    from airflow_provider_tikvbr.cli.jobs import Summary
    from airflow_provider_tikvbr.rawbr.events import Listener
    from airflow_provider_tikvbr.rawbr.summary import ChecksumSummary, RestoreSummary
    from airflow_provider_tikvbr.storage.base import Storage
    from airflow_provider_tikvbr.tikv.cluster import Cluster

    S = TypeVar("S", bound=Summary)


@click.command("raw")
@together(
    flags.range_flags,
    flag("--dst-api-version", metavar="v1|v1ttl|v2", help="API version of the backup; by default the cluster's."),
    flag("--compression", default="zstd", hidden=True, metavar="lz4|snappy|zstd", help="Compression of the files."),
    number("--compression-level", default="0", metavar="N", help="Level of the compression; 0 is its default."),
    duration("--gcttl", default="5m", help="V2: how long GC is held, counted from --gcttl-from."),
    flag("--gcttl-from", default="start", metavar="start|end", help="V2: whether --gcttl counts from the backup's"
         " start or its end."),
    duration("--safe-interval", default="1m", hidden=True, help="V2: how far backup-ts lies in the past."),
    switch("--remove-schedulers", hidden=True, help="Pause PD's balancing meanwhile."),
    flags.budget_flag,
    flags.resume_flag,
    flags.global_flags,
    flags.ignored_backup_flags,
)  # fmt: skip
@click.pass_context
def backup_raw(ctx: click.Context, /, **typed: Any) -> None:
    """Back up the raw pairs of a cluster, or of a range of its keys."""
    from airflow_provider_tikvbr.rawbr.backup import backup
    from airflow_provider_tikvbr.rawbr.options import backup_options

    _run(ctx, "Raw backup", typed, backup_options, backup)


@click.command("raw")
@together(
    flags.range_flags,
    switch("--online", hidden=True, help="Leave the stores in normal mode and PD's balancing running."),
    number("--merge-region-size-bytes", hidden=True, metavar="N", help="Files are merged into regions up to this size."),
    number("--merge-region-key-count", hidden=True, metavar="N", help="Files are merged into regions up to so many"
         " pairs."),
    flags.budget_flag,
    flags.resume_flag,
    flag("--checkpoint-storage", metavar="URL", help="Where to keep what is finished; by default beside the backup."),
    flag("--verify-files", default="size", metavar="off|size|sha256", help="How thoroughly the backup's files are looked"
         " at before anything is restored."),
    flags.global_flags,
    flags.ignored_restore_flags,
)  # fmt: skip
@click.pass_context
def restore_raw(ctx: click.Context, /, **typed: Any) -> None:
    """Restore a raw backup, or a range of its keys, into a cluster of its API version."""
    from airflow_provider_tikvbr.rawbr.options import restore_options
    from airflow_provider_tikvbr.rawbr.restore import restore

    # Opened here, so that a wrong URL is told before anything is touched.
    kept = settings.open_storage_of(typed, name="checkpoint_storage") if typed["checkpoint_storage"] else None

    async def work(cluster: Cluster, storage: Storage, options: Any, listener: Listener) -> RestoreSummary:
        async with kept or contextlib.nullcontext():
            return await restore(cluster, storage, options, listener, checkpoint_storage=kept)

    _run(ctx, "Raw restore", typed, restore_options, work)


@click.command("checksum")
@together(flags.range_flags, flags.budget_flag, flags.global_flags)
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
    from airflow_provider_tikvbr.cli.jobs import run_job
    from airflow_provider_tikvbr.tikv.cluster import Cluster
    from airflow_provider_tikvbr.tikv.redaction import redacting

    with redacting(settings.wants_redaction(typed)):
        cluster_options = settings.cluster_options(**{name: typed[name] for name in settings.CLUSTER})
        # What every command takes may mean nothing to this one.
        options = build(**{name: typed[name] for name in signature(build).parameters if name in typed})

        async def job(listener: Listener) -> S:
            async with settings.open_storage_of(typed) as storage, await Cluster.connect(cluster_options) as cluster:
                return await work(cluster, storage, options, listener)

        run_job(title, job, output=settings.output(ctx))
