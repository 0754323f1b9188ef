"""``debug decode``, ``encode`` and the rest of tikv-br's tools for looking into backups and putting a cluster right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import click

from airflow_provider_tikvbr.cli import options as flags
from airflow_provider_tikvbr.cli import settings
from airflow_provider_tikvbr.cli.options import flag, together
from airflow_provider_tikvbr.exceptions import BackupNotFoundError, ProtocolError, StorageNotFoundError, TransientError

ENCODED_BESIDE = "backupmeta_from_json"
# Temporary settings of PD last a second at least.
TTL_ENDS_S = 1.5


@click.command("decode")
@together(flag("--field", metavar="NAME", help="Print one field instead, such as end-version."), flags.global_flags)
@click.pass_context
def decode(ctx: click.Context, /, field: str, **typed: Any) -> None:
    """Write the backupmeta of a backup as JSON beside it."""
    from airflow_provider_tikvbr.rawbr.meta import read_meta
    from airflow_provider_tikvbr.rawbr.meta_json import JSON_NAME, encode_json, show_field

    cipher = _cipher(typed)

    async def work() -> str:
        async with settings.open_storage_of(typed) as storage:
            meta = await read_meta(storage, cipher)
            if field:
                return show_field(meta, field)
            await storage.write(JSON_NAME, encode_json(meta))
            return f"backupmeta decoded at {storage.display_url.rstrip('/')}/{JSON_NAME}"

    click.echo(_run(ctx, "decode", work))


@click.command("encode")
@together(flags.global_flags)
@click.pass_context
def encode(ctx: click.Context, /, **typed: Any) -> None:
    """Make a backupmeta of the JSON that decode has written; one that is there already is kept."""
    from airflow_provider_tikvbr.rawbr.meta import META_NAME
    from airflow_provider_tikvbr.rawbr.meta_json import JSON_NAME, decode_json
    from airflow_provider_tikvbr.storage.cipher import new_iv

    cipher = _cipher(typed)

    async def work() -> str:
        async with settings.open_storage_of(typed) as storage:
            where = storage.display_url.rstrip("/")
            try:
                text = await storage.read(JSON_NAME)
            except StorageNotFoundError:
                raise BackupNotFoundError(f"there is no {JSON_NAME} in {where}: debug decode makes one") from None
            data = decode_json(text).SerializeToString(deterministic=True)
            if not cipher.is_plain:
                iv = new_iv()
                data = iv + cipher.encrypt(data, iv)
            name = META_NAME
            try:
                created = await storage.create(name, data)
            except TransientError:
                # The answer may be lost, not the file.
                if not await storage.exists(name):
                    raise
                created = await storage.read(name) == data
            if not created:
                name = ENCODED_BESIDE
                await storage.write(name, data)
            return f"backupmeta encoded at {where}/{name}"

    click.echo(_run(ctx, "encode", work))


@click.command("reset-pd-config-as-default")
@together(flags.global_flags_without_storage)
@click.pass_context
def reset_pd_config(ctx: click.Context, /, **typed: Any) -> None:
    """Set the five settings of PD that a restore changes to what tikv-br takes for PD's defaults."""
    from airflow_provider_tikvbr.tikv.pd import PDClient
    from airflow_provider_tikvbr.tikv.pd_http import PDHttp

    options = settings.cluster_options(**{name: typed[name] for name in settings.CLUSTER})
    # tikv-br, ``pkg/pdutil/pd.go``. PD reads this flag as text only.
    values: dict[str, int | str] = {
        "max-merge-region-keys": 200_000,
        "max-merge-region-size": 20,
        "leader-schedule-limit": 4,
        "region-schedule-limit": 2048,
        "enable-location-replacement": "true",
    }

    async def work() -> str:
        pd = await PDClient.connect(options)
        http = PDHttp(pd)
        try:
            try:
                await http.set_schedule(values)
            except ProtocolError as err:
                if err.code != "400":
                    raise
                # A job that was killed leaves temporary settings, and PD lets nobody change what lies below them.
                await http.end_schedule_ttl(values)
                await asyncio.sleep(TTL_ENDS_S)
                await http.set_schedule(values)
        finally:
            await http.close()
            await pd.close()
        return f"PD's settings are {', '.join(f'{name}={value}' for name, value in values.items())}"

    click.echo(_run(ctx, "reset-pd-config-as-default", work))


@click.command("validate", hidden=True)
@together(flag("--offset", default="0", metavar="N", help="Without effect."), flags.global_flags_without_storage)
def validate(**typed: Any) -> None:
    """Refuse, as tikv-br does."""
    raise click.ClickException(
        "debug backupmeta validate is for backups of TiDB's tables: compare a raw backup with its cluster by"
        " tikvbr checksum, or look into it by tikvbr debug decode"
    )


def _cipher(typed: dict[str, Any]) -> Any:
    from airflow_provider_tikvbr.rawbr.options import parse_cipher

    return parse_cipher(typed["crypter_method"], typed["crypter_key"], typed["crypter_key_file"])


def _run(ctx: click.Context, title: str, work: Callable[[], Coroutine[Any, Any, str]]) -> str:
    from airflow_provider_tikvbr.cli.jobs import run_quietly
    from airflow_provider_tikvbr.tikv.redaction import redacting

    with redacting(settings.wants_redaction(ctx.params)):
        return run_quietly(title, work, output=settings.output(ctx))
