"""What a run ends with, its evaluations and `summary.json`: written, read again and shown."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from typing import Any

import lightning
import torch
import transformers

import exprl
from exprl.errors import PathError, RunDirectoryError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.evaluation.table import comparison_table, differences, result_table
from exprl.files.disk import read_json, write_json
from exprl.files.lines import read_lines
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console
from exprl.terminal.wording import counted
from exprl.training.no_update import IN_GENERAL
from exprl.training.stopwatch import Spent

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The result in a run's directory."""

    directory: RunDirectory
    console: Console

    # ------------------------------------------------------------------ evaluations

    def evaluation(self, name: str) -> EvaluationResult | None:
        """An evaluation made before; None, with a warning, where its file is damaged."""
        path = self.directory.evaluation(name)
        if not path.exists():
            return None
        try:
            return EvaluationResult.read(path, "It counts as not made.")
        except PathError as error:
            log.warning("%s", error)
            return None

    def add_evaluation(self, name: str, result: EvaluationResult) -> None:
        """Write one just made, and print its table."""
        write_json(self.directory.evaluation(name), result.to_json())
        self.console.print(result_table(result, title=name))

    # ------------------------------------------------------------------ the summary

    @property
    def finished(self) -> bool:
        """Whether the run has a summary: it is written last."""
        return self.directory.summary.is_file()

    def check_finished(self, wanted: int) -> None:
        """A finished run has its evaluation and stays as it is; raises `RunDirectoryError` if more steps are wanted."""
        summary = self.summary()
        done = int(summary["steps"])
        if wanted > done and not summary.get("stopped_early"):
            raise RunDirectoryError(
                f"run_dir {self.directory.path} is finished after {counted(done, 'step')}: "
                f"trainer.max_steps={wanted} comes late. "
                f"To train on, start a new run from it: model.path={self.directory.path} run_dir=..."
            )

    def summary(self) -> dict[str, Any]:
        """The summary of a finished run; raises `PathError` where it is damaged."""
        advice = "Delete it, and --resume makes it again."
        summary = read_json(self.directory.summary, advice)
        seconds = summary.get("seconds")
        if type(summary.get("steps")) is not int or not isinstance(seconds, dict) or "total" not in seconds:
            raise PathError(f"{self.directory.summary} is damaged, its steps or seconds are missing. {advice}")
        return summary

    def drop_damaged_summary(self) -> None:
        """A summary is made of what else lies in the folder, so a damaged one is made again."""
        if self.finished:
            try:
                self.summary()
            except PathError as error:
                log.warning(
                    "%s It is made again; its times are those up to the last checkpoint and of this process.", error
                )
                self.directory.summary.unlink()

    def write_summary(
        self,
        before: EvaluationResult | None,
        after: EvaluationResult | None,
        *,
        steps: int,
        stopped_early: bool,
        seed: int,
        evaluation_seed: int,
        spent: Spent,
    ) -> None:
        """`summary.json`: before, after, their paired difference, seconds of each phase, versions."""
        summary: dict[str, Any] = {
            "before": before.summary() if before else None,
            "after": after.summary() if after else None,
            "steps": steps,
            "stopped_early": stopped_early,
            "steps_without_update": self.steps_without_update(),
            "seed": seed,
            "evaluation_seed": evaluation_seed,
            "seconds": dict(spent.seconds),
            "seconds_of_last_process": spent.last,
            "processes": spent.processes,
            "versions": versions(),
        }
        if before and after:
            summary["difference"] = {
                name: {"mean": d.mean, "interval_95": [d.low, d.high]} for name, d in differences(before, after).items()
            }
        write_json(self.directory.summary, summary)

    def steps_without_update(self) -> int | None:
        """Of all steps, also those before the run was resumed, by `metrics.jsonl`; None where that is damaged."""
        try:
            lines = read_lines(self.directory.metrics, "The summary leaves out what is counted in it.")
            return len([line for line in lines if line.get("update/count") == 0])
        except PathError as error:
            log.warning("%s", error)
            return None

    def report(self) -> dict[str, Any]:
        """Print the table and where everything lies; returns the summary."""
        summary = self.summary()
        if summary.get("before") and summary.get("after"):
            before, after = map(self.evaluation, ("before", "after"))
            if before and after:
                self.console.print(comparison_table(before, after))
        if summary.get("stopped_early"):
            self.console.say("A callback ended the run before trainer.max_steps.")
        idle = summary.get("steps_without_update")
        if idle:
            self.console.say(f"{idle} of {counted(summary['steps'], 'step')} made no update. {IN_GENERAL}")
        path = self.directory.path
        self.console.say(f"{counted(summary['steps'], 'step')} in {Spent.of_summary(summary).in_words} · files: {path}")
        if self.directory.tensorboard.is_dir():
            self.console.say(f"TensorBoard: tensorboard --logdir {self.directory.tensorboard}")
        return summary


def versions() -> dict[str, str]:
    """What the run ran on."""
    return {
        "exprl": exprl.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "transformers": transformers.__version__,
    }
