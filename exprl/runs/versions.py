"""Which stored policy of a run is nearest to the one that sampled some rollouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from exprl.runs.checkpoints import warn_of
from exprl.runs.contents import fault
from exprl.runs.directory import RunDirectory, step_of


@dataclass(frozen=True, order=True)
class Version:
    """A policy that can be had: that of a checkpoint, or the initial one, whose `checkpoint` is None.

    Attributes:
        steps: that it had been trained for.
    """

    steps: int
    checkpoint: Path | None = None


def nearest_versions(run: RunDirectory, wanted: Iterable[int]) -> dict[int, Version]:
    """For each number of steps the stored policy that had been trained for that many, or nearly; of two the earlier.

    Checkpoints that are damaged are passed over, with a warning.
    """
    stored = {step_of(path): Version(step_of(path), path) for path in run.all_checkpoints()}
    stored.setdefault(0, Version(0))
    wanted = sorted(set(wanted))
    sound: set[Version] = set()
    while True:
        chosen = {steps: _nearest(steps, stored) for steps in wanted}
        damaged: dict[Path, str] = {}
        for version in sorted(set(chosen.values()) - sound):
            problem = fault(version.checkpoint) if version.checkpoint is not None else None
            if version.checkpoint is not None and problem is not None:
                damaged[version.checkpoint] = problem
                del stored[version.steps]
            else:
                sound.add(version)
        if not damaged:
            return chosen
        warn_of(damaged)


def _nearest(steps: int, stored: Mapping[int, Version]) -> Version:
    return stored[min(stored, key=lambda own: (abs(own - steps), own))]
