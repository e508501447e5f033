"""What commands share: their form, arguments that many of them have, and how they end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from exprl.config import parse_overrides, plugins_of

PLUGINS: dict[str, Any] = {
    "action": "append",
    "default": [],
    "metavar": "MODULE",
    "help": "a module to import first, which runs its code; the plugins that a run's config names are imported only "
    "if you name them as well; may be given several times",
}
"""Of every command that reads an experiment, so that messages can say it whichever is at hand."""
CONFIG = "the experiment's YAML, or the name of one that comes with exprl (see exprl configs)"
OVERRIDES = "key.path=value items that win over the file, for example reward.judge.name=no_reference"
Commands = Any
"""What argparse gives to add commands to, whose type has no public name."""


@dataclass(frozen=True)
class Command:
    """One of `exprl`'s.

    Attributes:
        add: declares its arguments.
        run: does it, loading nothing that takes seconds before the arguments are known to be right.
        go_on: what is said of going on where it was stopped.
    """

    add: Callable[[Commands], None]
    run: Callable[[argparse.Namespace], None]
    go_on: str = ""


AGAIN = "; start the same command again to go on"


def with_plugins(overrides: Sequence[str], modules: Sequence[str], key: str = "plugins") -> list[str]:
    """The overrides, with `modules` of `--plugins` beside those that they name at `key`.

    >>> with_plugins(["seed=1", "plugins=[mine]"], ["theirs"])
    ['seed=1', 'plugins=[mine,theirs]']
    """
    if not modules:
        return list(overrides)
    before = [item.partition("=")[2] for item in overrides if item.startswith(f"{key}=")]
    named = plugins_of(parse_overrides([f"plugins={text}" for text in before]))
    others = [item for item in overrides if not item.startswith(f"{key}=")]
    return [*others, f"{key}=[{','.join(dict.fromkeys([*named, *modules]))}]"]


class Left(SystemExit):
    """A command of exprl leaves with this exit code, having said why."""


def is_place(item: str) -> bool:
    """Whether an argument is a path, not an override: it has no `=`, or it is there, like a run named `lr=1e-5`."""
    return "=" not in item or ("\0" not in item and os.path.lexists(item))
