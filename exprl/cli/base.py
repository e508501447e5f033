"""What commands share: their form, arguments that many of them have, and how they end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PLUGINS: dict[str, Any] = {
    "action": "append",
    "default": [],
    "metavar": "MODULE",
    "help": "a plugin that the run's config names: import it, which runs its code; may be given several times",
}
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


class Left(SystemExit):
    """A command of exprl leaves with this exit code, having said why."""


def is_place(item: str) -> bool:
    """Whether an argument is a path, not an override: it has no `=`, or it is there, like a run named `lr=1e-5`."""
    return "=" not in item or ("\0" not in item and os.path.lexists(item))
