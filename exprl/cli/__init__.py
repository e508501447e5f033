"""The `exprl` command."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from exprl.cli import problems, running, showing, stored
from exprl.cli.base import Left
from exprl.cli.parsing import parsed
from exprl.errors import ExprlError, PeerError
from exprl.terminal.console import errors
from exprl.training.interruption import Interrupted

COMMANDS = {**running.COMMANDS, **problems.COMMANDS, **stored.COMMANDS, **showing.COMMANDS}
"""By the names that are typed, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, and turn an `ExprlError` into one clear line and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = parsed(arguments, COMMANDS)
    command = COMMANDS[options.command]
    show_messages()
    try:
        command.run(options)
    except PeerError as error:
        raise SystemExit(2) from error  # the rank that failed has said why
    except ExprlError as error:
        errors().say(("error:", "bold red"), f" {error}")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        errors().say(f"interrupted{command.go_on}")
        raise SystemExit(130) from None
    except Interrupted as error:
        errors().say(f"{error}{command.go_on}")
        raise SystemExit(error.exit_code) from None
    except Left:
        raise
    except SystemExit as error:  # somebody else's: a script would take exit(0) for a finished run
        errors().say(("error:", "bold red"), f" a plugin or a library left with exit({error.code!r}) before the end")
        raise SystemExit(error.code or 1) from error


def show_messages() -> None:
    """Print what exprl reports as it works; bars of other libraries stay out of files and pipes, as its own do."""
    if not sys.stderr.isatty():  # read when they are imported
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' as well
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logger = logging.getLogger("exprl")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
