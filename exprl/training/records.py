"""What a step leaves in a run's files and on the console, in plain values that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from exprl.training.no_update import NoUpdate


@dataclass(frozen=True, kw_only=True)
class StepRecords:
    """The records of one step.

    Attributes:
        step: which one.
        metrics: by name, see `existing`.
        samples: one a rollout, see `sample_records`; of this rank's alone until they are collected.
        count: the samples of all ranks together.
        no_update: why the step made no update, if it made none.
    """

    step: int
    metrics: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]
    count: int
    no_update: NoUpdate | None

    @property
    def complete(self) -> bool:
        """Whether no rank's samples are missing."""
        return len(self.samples) == self.count

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`."""
        reason = state["no_update"]
        return cls(**{"count": len(state["samples"]), **state, "no_update": reason and NoUpdate(**reason)})


def existing(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that have a value at a step: NaN stands for none, as of rewards where no rollout has one.

    >>> existing({"reward/mean": 0.5, "update/entropy": float("nan"), "update/loss": -0.0})
    {'reward/mean': 0.5, 'update/loss': 0.0}
    """
    return {name: value + 0.0 for name, value in metrics.items() if not math.isnan(value)}
