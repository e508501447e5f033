"""The command line, as argparse reads it; the command's name stands in `command`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NoReturn

from exprl import __version__
from exprl.cli.base import Command
from exprl.terminal.console import visible


def parsed(arguments: list[str], table: Mapping[str, Command]) -> argparse.Namespace:
    """The options; overrides may also stand after a flag, where argparse alone does not look for them."""
    top = parser(table)
    options, rest = top.parse_known_args(arguments, argparse.Namespace(arguments=arguments))
    late = [item for item in rest if not item.startswith("-")]
    if len(late) < len(rest) or (late and not hasattr(options, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        options.overrides += late
    return options


class Parser(argparse.ArgumentParser):
    """Errors quote what was typed, or what a script made of a file's name."""

    def error(self, message: str) -> NoReturn:
        """Usage, the message and exit code 2."""
        super().error(visible(message))


def parser(table: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(
        prog="exprl",
        description="RL mid-training with hidden reference solutions. Start with: exprl train quickstart",
    )
    top.add_argument("--version", action="version", version=f"exprl {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in table.values():
        command.add(commands)
    return top
