"""How long a run took, over all of its processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lightning import Callback

from exprl.terminal.phases import Phases


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Time spent on a run.

    Attributes:
        seconds: of each phase and in `total`, in all processes; of those before as far as their last checkpoint.
        last: seconds of the last process alone.
        processes: how many there were, by the checkpoints that they went on from.
    """

    seconds: Mapping[str, float]
    last: float
    processes: int

    @classmethod
    def of_summary(cls, summary: Mapping[str, Any]) -> Self:
        """What a summary says; one of an earlier version speaks of its last process alone."""
        total = summary["seconds"]["total"]
        return cls(
            seconds=summary["seconds"],
            last=summary.get("seconds_of_last_process", total),
            processes=summary.get("processes", 1),
        )

    @property
    def in_words(self) -> str:
        """For the console.

        >>> Spent(seconds={"total": 70.2}, last=30.0, processes=2).in_words
        '70 s in 2 processes (30 s in the last)'
        """
        total = f"{self.seconds['total']:.0f} s"
        return (
            total if self.processes == 1 else f"{total} in {self.processes} processes ({self.last:.0f} s in the last)"
        )


class Stopwatch(Callback):
    """Takes the time of a process; a checkpoint knows that of the processes before.

    Args:
        phases: what this process does.
        start: when it began, by `time.perf_counter`.
        prepared: seconds until training could begin.
    """

    def __init__(self, phases: Phases, *, start: float, prepared: float) -> None:
        self.phases = phases
        self.start = start
        self.prepared = prepared
        self.before: Mapping[str, float] = {}
        self.processes = 1

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: all until now."""
        spent = self.spent
        return {"seconds": dict(spent.seconds), "processes": spent.processes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there in another process."""
        self.before, self.processes = state_dict["seconds"], state_dict["processes"] + 1

    @property
    def spent(self) -> Spent:
        """Until now."""
        last = time.perf_counter() - self.start
        seconds = Counter(self.before)
        seconds.update({"prepare": self.prepared, **self.phases.total, "total": last})  # adds, name by name
        return Spent(seconds=dict(seconds), last=last, processes=self.processes)
