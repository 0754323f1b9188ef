"""The entry point of ``tikvbr``: the tree of commands, and what an error looks like.

The engine and its libraries are imported by the commands when they run, so that ``tikvbr --help`` is quick.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches

import click

from airflow_provider_tikvbr import __version__
from airflow_provider_tikvbr.cli.debug import decode, encode, reset_pd_config, validate
from airflow_provider_tikvbr.cli.embedded import demo, embedded
from airflow_provider_tikvbr.cli.flags import canonical, spellings
from airflow_provider_tikvbr.cli.raw import backup_raw, checksum, restore_raw
from airflow_provider_tikvbr.cli.repair import repair
from airflow_provider_tikvbr.exceptions import InvalidOptionError, JobCancelledError, TikvBrError
from airflow_provider_tikvbr.secret_text import without_keys

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


class Commands(click.Group):
    """Commands below one word; a wrong word is answered with the right ones."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command.

        :raises click.UsageError: there is none of that name.
        """
        if self.get_command(ctx, args[0]) is None:
            names = [name for name in self.list_commands(ctx) if not self.commands[name].hidden]
            likely = get_close_matches(args[0], names, n=1)
            hint = f"did you mean {likely[0]}?" if likely else f"there is {', '.join(names)}"
            raise click.UsageError(f"unknown command: {args[0]} ({hint})")
        return super().resolve_command(ctx, args)


class Root(Commands):
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


@tikvbr.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def backup(ctx: click.Context) -> None:
    """Back up a TiKV cluster."""
    _help_if_alone(ctx)


@tikvbr.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def restore(ctx: click.Context) -> None:
    """Restore a TiKV cluster."""
    _help_if_alone(ctx)


@tikvbr.group(cls=Commands, invoke_without_command=True, hidden=True)
@click.pass_context
def debug(ctx: click.Context) -> None:
    """Look into backups."""
    _help_if_alone(ctx)


@debug.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def backupmeta(ctx: click.Context) -> None:
    """Utilities of backupmeta."""
    _help_if_alone(ctx)


def _help_if_alone(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


backup.add_command(backup_raw)
restore.add_command(restore_raw)
for command in (checksum, decode, encode, reset_pd_config):
    debug.add_command(command)
backupmeta.add_command(validate)
tikvbr.add_command(checksum)
tikvbr.add_command(repair)
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
        likely = get_close_matches(err.option_name, err.possibilities or [], n=1, cutoff=0.75)
        hint = f" (did you mean {likely[0]}?)" if likely else ""
        return _fail(f"unknown flag: {err.option_name}{hint}")
    except click.MissingParameter as err:
        return _fail(_missing(err))
    except click.ClickException as err:
        # A key whose quotes somebody forgot comes as several words, of which some are taken for arguments.
        return _fail(without_keys(err.format_message()))
    except (click.Abort, KeyboardInterrupt):
        return _fail("stopped")
    except JobCancelledError as err:
        code = _fail(err.message)
        if args is None:
            # A thread may hang in a call to a storage that does not answer, and Python would wait for it.
            sys.stdout.flush()
            os._exit(code)
        return code
    except TikvBrError as err:
        return _fail(_in_flags(err))
    except Exception as err:
        traceback.print_exc()
        return _fail(f"this is a bug in tikvbr: {type(err).__name__}: {err}")
    return result if isinstance(result, int) else 0


def _missing(err: click.MissingParameter) -> str:
    """The sentence for a flag that has to be given."""
    if err.param is None or err.ctx is None:
        return err.format_message()
    flag = max(err.param.opts, key=len)
    return f"{flag} is missing: give {flag} {err.param.metavar} ({err.ctx.command_path} --help tells more)"


def _in_flags(err: TikvBrError) -> str:
    """The sentence with every option spelled as a flag, headed by the one that is meant."""
    known = spellings(tikvbr)

    def spell(found: re.Match[str]) -> str:
        spelling = flag_of(found[0])
        return spelling if spelling in known else found[0]

    # The engine spells options as a DAG does. One word alone may be any word, two joined by "_" are an option.
    text = re.sub(r"(?<![\w/.-])[a-z]+(?:_[a-z]+)+(?![\w/.-])", spell, err.message)
    spelling = flag_of(err.parameter) if isinstance(err, InvalidOptionError) and err.parameter else ""
    if spelling not in known or text.startswith(f"{spelling} "):
        return text
    start = re.match(rf"{err.parameter}:?(?= )", text) if isinstance(err, InvalidOptionError) else None
    return f"{spelling}{text[start.end() :]}" if start else f"{spelling}: {text}"


def flag_of(parameter: str) -> str:
    """The flag of an engine's option: ``dst_api_version`` is ``--dst-api-version``."""
    name = parameter.replace("_", "-")
    return "--" + ("crypter." + name.removeprefix("crypter-") if name.startswith("crypter-") else name)


def _fail(sentence: str) -> int:
    click.echo(f"Error: {sentence}", err=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
