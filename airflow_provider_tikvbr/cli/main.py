"""The entry point of ``tikvbr``: the tree of commands, and what an error looks like.

The engine and its libraries are imported by the commands when they run, so that ``tikvbr --help`` is quick.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence

import click

from airflow_provider_tikvbr import __version__
from airflow_provider_tikvbr.cli.embedded import demo, embedded
from airflow_provider_tikvbr.cli.flags import canonical, spellings
from airflow_provider_tikvbr.cli.raw import backup_raw, checksum, restore_raw
from airflow_provider_tikvbr.exceptions import InvalidOptionError, TikvBrError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Root(click.Group):
    """The command itself: flags may stand anywhere behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Bring the command line into the order that click reads."""
        args = canonical(self, args)
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, args)


@click.group(cls=Root, context_settings=CONTEXT, invoke_without_command=True)
@click.version_option(__version__, "-V", "--version", message="tikvbr %(version)s")
@click.pass_context
def tikvbr(ctx: click.Context) -> None:
    """Back up, restore and compare the raw key-value data of a TiKV cluster."""
    _help_if_alone(ctx)


@tikvbr.group(invoke_without_command=True)
@click.pass_context
def backup(ctx: click.Context) -> None:
    """Back up a TiKV cluster."""
    _help_if_alone(ctx)


@tikvbr.group(invoke_without_command=True)
@click.pass_context
def restore(ctx: click.Context) -> None:
    """Restore a TiKV cluster."""
    _help_if_alone(ctx)


@tikvbr.group(invoke_without_command=True, hidden=True)
@click.pass_context
def debug(ctx: click.Context) -> None:
    """Look into backups."""
    _help_if_alone(ctx)


def _help_if_alone(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


backup.add_command(backup_raw)
restore.add_command(restore_raw)
debug.add_command(checksum)
tikvbr.add_command(checksum)
tikvbr.add_command(embedded)
tikvbr.add_command(demo)
tikvbr.add_command(debug, "validate")  # its name in older versions of tikv-br


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line.

    :param args: the words after the program's name; those of the process if nothing is given.
    :return: 0, or 1 if anything went wrong, as with tikv-br.
    """
    # gRPC's core would write its own view of a failed connection to standard error
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        result = tikvbr.main(args=args, prog_name="tikvbr", standalone_mode=False)
    except click.NoSuchOption as err:
        hint = f" (did you mean {err.possibilities[0]}?)" if err.possibilities else ""
        return _fail(f"unknown flag: {err.option_name}{hint}")
    except click.ClickException as err:
        return _fail(err.format_message())
    except (click.Abort, KeyboardInterrupt):
        return _fail("stopped")
    except TikvBrError as err:
        return _fail(_in_flags(err))
    except Exception as err:
        traceback.print_exc()
        return _fail(f"this is a bug in tikvbr: {type(err).__name__}: {err}")
    return result if isinstance(result, int) else 0


def _in_flags(err: TikvBrError) -> str:
    """The sentence, headed by the flag that is meant, spelled as on the command line."""
    if not isinstance(err, InvalidOptionError) or not err.parameter:
        return err.message
    spelling = flag_of(err.parameter)
    if spelling not in spellings(tikvbr):
        return err.message
    # most sentences begin with the option as a DAG spells it
    start = re.match(rf"{err.parameter}:?(?= )", err.message)
    return f"{spelling}{err.message[start.end() :]}" if start else f"{spelling}: {err.message}"


def flag_of(parameter: str) -> str:
    """The flag of an engine's option: ``dst_api_version`` is ``--dst-api-version``."""
    name = parameter.replace("_", "-")
    return "--" + ("crypter." + name.removeprefix("crypter-") if name.startswith("crypter-") else name)


def _fail(sentence: str) -> int:
    click.echo(f"Error: {sentence}", err=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
