"""``repair``: put right what a job that was killed has left behind."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import click

from airflow_provider_tikvbr.cli import options as flags
from airflow_provider_tikvbr.cli import settings
from airflow_provider_tikvbr.cli.options import flag, switch, together
from airflow_provider_tikvbr.exceptions import TransientError


@click.command("repair")
@together(
    switch("--dry-run", help="Tell only what would be done."),
    switch("--drop-safepoints", help="Also end every backup's hold on garbage collection."),
    flags.cluster_flags,
    flags.optional_storage_flag,
    flag("--checkpoint-storage", metavar="URL", help="Where a restore kept what it had finished, if not beside the"
         " backup."),
    flags.storage_flags,
    flags.log_flags,
)  # fmt: skip
@click.pass_context
def repair(ctx: click.Context, /, dry_run: bool, drop_safepoints: bool, **typed: Any) -> None:
    """Put right what a killed job has left on a cluster, and remove its lock.

    No backup or restore may be running there, of whatever tool: it would be thrown out of import mode. Jobs that hold
    the lock of a given storage are found by it, and nothing is done.
    """
    from airflow_provider_tikvbr.cli.jobs import run_quietly
    from airflow_provider_tikvbr.rawbr.repair import repair as put_right
    from airflow_provider_tikvbr.rawbr.repair_places import Places

    cluster = settings.cluster_options(**{name: typed[name] for name in settings.CLUSTER})
    # Opened here, so that a wrong URL is told before anything is touched.
    storage, checkpoints = (
        settings.open_storage_of(typed, name=name) if typed[name] else None
        for name in ("storage", "checkpoint_storage")
    )

    async def work() -> None:
        async with AsyncExitStack() as stack:
            for each in filter(None, (storage, checkpoints)):
                await stack.enter_async_context(each)
            left = await put_right(
                cluster,
                Places(storage=storage, checkpoint_storage=checkpoints),
                dry_run=dry_run,
                drop_safepoints=drop_safepoints,
                report=click.echo,
            )
        if left:
            raise TransientError(f"not everything could be put right: {'; '.join(each.what for each in left)}")

    run_quietly("repair", work, output=settings.output(ctx))
    click.echo("nothing was changed, as --dry-run was given" if dry_run else "everything is put right")
