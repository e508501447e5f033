"""Where programs are run: the contract of a sandbox, and running without one."""

from __future__ import annotations

import logging
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from exprl.component import Component
from exprl.execution.limits import Limits
from exprl.registry import SANDBOXES

INSIDE = Path(__file__).with_name("inside")
"""The scripts that run within; the folder is shown to every program, and holds nothing that is not public."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Command:
    """How a process is started.

    Attributes:
        arguments: the program's path first.
        environment: all the variables that it has.
        descriptors: open files that it inherits beside those of the caller, who closes them once it is started.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    descriptors: tuple[int, ...] = ()


class Sandbox(Component):
    """Starts Python apart from everything else."""

    registered_family: ClassVar[str] = "sandbox"

    isolates: ClassVar[bool] = True
    """Whether processes and threads can be counted for each run alone."""

    @abstractmethod
    def command(self, arguments: Sequence[str], limits: Limits) -> Command:
        """What runs `inside/launch.py` with these arguments behind the folder that holds `inside`.

        Files that the caller hands over keep their numbers within.
        """


@SANDBOXES.register("none")
class NoSandbox(Sandbox):
    """None at all: programs run as the user who trains, with all that user's files and the network.

    Time, memory of each process, file sizes and output are limited, processes are not, and one that leaves its session
    may outlive its run. For programs that you would run by hand.
    """

    isolates: ClassVar[bool] = False

    def setup(self) -> None:
        """Say so."""
        _LOG.warning(
            "sandbox 'none': programs that a model wrote run unconfined, with this user's files and network. Choose "
            "sandbox.name=bubblewrap for anything but programs that you would run by hand."
        )

    def command(self, arguments: Sequence[str], limits: Limits) -> Command:
        """Python itself."""
        command = (interpreter(), *START, str(INSIDE.parent), *arguments)
        return Command(arguments=command, environment=environment())


_FIRST = "import sys; sys.path.insert(0, sys.argv[1]); from inside import launch; sys.path.pop(0); launch.main()"
START = ("-P", "-s", "-B", "-X", "utf8", "-c", _FIRST)
"""No folder of the script's or the user's own on the path, no bytecode written; then the folder that holds `inside`."""


def interpreter() -> str:
    """The Python that runs exprl, not the link to it in a virtual environment."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def environment(packages: Sequence[str] = ()) -> dict[str, str]:
    """All that a program sees of variables; `packages`: folders it may import from."""
    found = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the same verdict each time
        "MALLOC_ARENA_MAX": "2",  # threads do not reserve 64 MiB of address space each
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return {**found, "PYTHONPATH": ":".join(packages)} if packages else found
