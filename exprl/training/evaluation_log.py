"""Evaluations among a run's metrics: a line of their own in `metrics.jsonl`, and the same names in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.loggers import Logger

from exprl.evaluation.evaluate import EvaluationResult
from exprl.files.disk import append_line
from exprl.files.lines import read_lines
from exprl.runs.directory import RunDirectory
from exprl.training.loggers import log_to

PREFIX = "evaluation/"
STEP, EVALUATION = "step", "evaluation"
"""The kinds of lines in `metrics.jsonl`: one of each step, and one of each that the policy was evaluated after."""


def kind_of(line: Mapping[str, Any]) -> str:
    """What a line is of.

    >>> kind_of({"step": 0, "evaluation/pass@1": 0.1})
    'evaluation'
    """
    return EVALUATION if any(name.startswith(PREFIX) for name in line) else STEP


def evaluation_metrics(result: EvaluationResult) -> dict[str, float]:
    """The figures of an evaluation by the names they are logged under, without those it has no value for."""
    figures = result.summary()
    numbers = {name: value for name, value in figures.items() if isinstance(value, float)}
    return {f"{PREFIX}{name}": value for name, value in numbers.items() if not math.isnan(value)}


@dataclass(frozen=True)
class EvaluationLog:
    """Where a run's evaluations are logged, each step's once, however often the run is resumed."""

    directory: RunDirectory

    def log(self, step: int, result: EvaluationResult, loggers: Sequence[Logger]) -> None:
        """Log the evaluation after `step` steps, unless one of that step is logged already.

        A run's last one and that of its last step are the same.

        Raises:
            PathError: `metrics.jsonl` cannot be read or written.
            RunDirectoryError: the run has lost its lock.
        """
        if step in self.logged():
            return
        self.directory.require_lock()
        metrics = evaluation_metrics(result)
        log_to(loggers, metrics, step)
        append_line(self.directory.metrics, {"step": step, **metrics})  # last: with it, all of it counts as logged

    def logged(self) -> set[int]:
        """The steps that have an evaluation."""
        if not self.directory.metrics.exists():
            return set()
        lines = read_lines(self.directory.metrics, "Move it away, then go on with --resume.")
        return {line["step"] for line in lines if kind_of(line) == EVALUATION}
