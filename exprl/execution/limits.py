"""What one run of a program may use."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from exprl.execution.tests import Tests


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one run.

    Attributes:
        time: seconds of CPU of each process.
        memory: MiB of address space of each process, and of memory that is their own of all together.
        processes: processes and threads at once.
        files: MiB of each file and of the scratch folder.
        output: bytes of what is read of a program.
    """

    time: float = 5.0
    memory: int = 512
    processes: int = 64
    files: int = 64
    output: int = 2**22

    @property
    def cpu(self) -> int:
        """Whole seconds, which the system counts in."""
        return math.ceil(self.time)

    @property
    def wall(self) -> float:
        """Seconds until a run is ended whatever it has used, so that waiting is no way out; more for a busy machine."""
        return 2 * self.time + 1

    def of(self, tests: Tests) -> Limits:
        """With those that a problem's tests state themselves."""
        return replace(self, time=tests.time or self.time, memory=tests.memory or self.memory)
