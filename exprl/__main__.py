"""`exprl` and `python -m exprl`: what must hold before anything that takes time is imported."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it in one line, also while libraries are being imported."""
    try:
        from exprl.terminal.streams import guard

        guard()
        os.environ["PYTHONSAFEPATH"] = "1"  # no process started from here finds its libraries in the working directory
        from exprl.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


def program() -> None:
    """`main` in a process that is there for nothing else."""
    from exprl.terminal.process import run_alone

    run_alone(main)


def leave_working_directory() -> None:
    """Python puts it before everything else, where a file called as a library would be taken for that library."""
    from pathlib import Path

    import exprl

    if not sys.flags.safe_path:
        here = sys.path.pop(0)
        if Path(here).resolve() == Path(exprl.__file__).resolve().parents[1]:
            sys.path.append(here)  # a checkout that is not installed


if __name__ == "__main__":
    leave_working_directory()
    program()
