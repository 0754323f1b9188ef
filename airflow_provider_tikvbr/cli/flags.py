"""Flags that read as Go's do, so that a command line written for tikv-br keeps its meaning.

tikv-br parses with pflag and cobra. Beyond what click does by itself, this means:

* a boolean may be given alone, ``--checksum``, or with a value behind ``=``: ``--checksum=true``, ``--checksum=false``;
  never as the next word;
* a flag may stand anywhere, also before the subcommand: ``tikvbr --pd 10.0.0.1:2379 backup raw``;
* the value of a short flag may follow at once or behind ``=``: ``-u10.0.0.1:2379``, ``-u=10.0.0.1:2379``.

:func:`canonical` rewrites what was typed into words first and ``--flag=value`` after, which click reads without doubt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

# What Go's strconv.ParseBool takes.
TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


if TYPE_CHECKING:
    BoolType = click.ParamType[bool]
else:  # generic since click 8.3 only
    BoolType = click.ParamType


class GoBool(BoolType):
    """A boolean as Go spells it."""

    name = "true|false"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        """Read the value.

        :raises click.BadParameter: it is no boolean.
        """
        if isinstance(value, bool):
            return value
        if value in TRUE or value in FALSE:
            return value in TRUE
        return self.fail(f"{value!r} is neither true nor false", param, ctx)


BOOL = GoBool()

# What Go's strconv.ParseInt takes with base 0: "_" between digits or behind a prefix, and "0" alone for octal.
_DIGITS = re.compile(r"(?:0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO]?(?:_?[0-7])+|0|[1-9](?:_?[0-9])*)")


def parse_go_number(text: str) -> int | None:
    """Read a whole number as Go spells it.

    :param text: what was given; it may have a sign.
    :return: None if it is none.
    """
    digits = text[1:] if text[:1] in {"+", "-"} else text
    if not _DIGITS.fullmatch(digits):
        return None
    # Python wants the "o" of an octal number.
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567_"
    value = int(f"0o{digits[1:]}" if octal else digits, 0)
    return -value if text.startswith("-") else value


def commands(root: click.Command) -> Iterator[click.Command]:
    """The command and everything below it."""
    yield root
    if isinstance(root, click.Group):
        for child in root.commands.values():
            yield from commands(child)


def spellings(root: click.Command) -> dict[str, click.Option]:
    """Every flag of the command and of those below it."""
    ctx = click.Context(root, **root.context_settings)
    found: dict[str, click.Option] = {}
    for command in commands(root):
        for param in command.get_params(ctx):
            if isinstance(param, click.Option):
                for spelling in (*param.opts, *param.secondary_opts):
                    found.setdefault(spelling, param)
    return found


def _long(option: click.Option) -> str:
    return max(option.opts, key=len)


def _is_boolean(option: click.Option) -> bool:
    return isinstance(option.type, GoBool)


def _takes_value(option: click.Option) -> bool:
    return not option.is_flag and not option.count


def canonical(root: click.Group, args: Sequence[str]) -> list[str]:
    """Rewrite a command line: the root's own flags, the words, then every other flag as ``--flag=value``.

    :param root: the whole command tree; every spelling must take a value in all of its commands or in none.
    :param args: what was typed, without the name of the program.
    :raises click.NoSuchOption: no command has such a flag.
    :raises click.UsageError: the value of a boolean is a word of its own.
    """
    known = spellings(root)
    own = {spelling for param in root.params for spelling in param.opts}
    first: list[str] = []
    words: list[str] = []
    flags: list[str] = []
    left = list(args)
    while left:
        arg = left.pop(0)
        if arg == "--":
            words.extend(left)
            break
        if arg == "-" or not arg.startswith("-"):
            words.append(arg)
            continue
        name, equals, value = arg.partition("=")
        if not arg.startswith("--"):
            name, value = arg[:2], arg[2:]
            equals, value = ("=", value.removeprefix("=")) if value else ("", "")
        option = known.get(name)
        if option is None:
            raise click.NoSuchOption(name, possibilities=sorted(known))
        into = first if name in own else flags
        if _is_boolean(option):
            if not arg.startswith("--") and equals and not arg[2:].startswith("="):
                left.insert(0, f"-{value}")  # one dash, several letters: the rest are flags of their own
                equals = ""
            if not equals and left and left[0] in TRUE | FALSE:
                raise click.UsageError(f"the value of {name} stands behind an equals sign: {name}={left[0]}")
            into.append(f"{_long(option)}={value if equals else 'true'}")
        elif not _takes_value(option):
            into.append(arg)
        elif equals:
            into.append(f"{_long(option)}={value}")
        elif left:
            into.append(f"{_long(option)}={left.pop(0)}")
        else:
            into.append(_long(option))
    return [*first, *words, *flags]
