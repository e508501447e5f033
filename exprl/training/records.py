"""What a step leaves in a run's files and on the console, in plain values that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from exprl.training.no_update import NoUpdate


@dataclass(frozen=True, kw_only=True)
class StepRecords:
    """The records of one step.

    Attributes:
        step: which one.
        metrics: by name, see `existing`; None once they are written.
        files: what is not written yet of the step's rollouts, by the names of the files that hold them.
        shown: the rollouts to be printed, as `samples` makes them.
        no_update: why the step made no update, if it made none.
        sure: whether it is known that the metrics are not written; not where the rank that writes them was lost.
    """

    step: int
    metrics: Mapping[str, float] | None
    files: Mapping[str, bytes]
    shown: Sequence[Mapping[str, Any]]
    no_update: NoUpdate | None
    sure: bool = True

    def without_file(self, name: str) -> Self:
        """The same once a file is written."""
        return replace(self, files={other: content for other, content in self.files.items() if other != name})

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        reason = state["no_update"]
        return cls(**{**state, "no_update": reason and NoUpdate(**reason)})


def existing(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that have a value at a step: NaN stands for none, as of rewards where no rollout has one.

    >>> existing({"reward/mean": 0.5, "update/entropy": float("nan"), "update/loss": -0.0})
    {'reward/mean': 0.5, 'update/loss': 0.0}
    """
    return {name: value + 0.0 for name, value in metrics.items() if not math.isnan(value)}
