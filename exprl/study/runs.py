"""The processes of a study: what each is told, what it leaves, and when it is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from exprl import config as configuration
from exprl.errors import RunDirectoryError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.experiment import Experiment
from exprl.files.disk import read_json, write_text
from exprl.runs.directory import RunDirectory, differences, in_words, saved_config
from exprl.study.schema import MineConfig
from exprl.terminal.wording import counted

ANEW = "Delete its folder, and the study runs it anew."
"""What to do about a run's file that is damaged."""


@dataclass(frozen=True, kw_only=True)
class Run(ABC):
    """One process.

    Attributes:
        name: its folder within the study's.
        directory: its folder.
        experiment: all of its options.
        parent: the run it starts from, which must be finished first.
    """

    name: str
    directory: Path
    experiment: Experiment = field(repr=False, compare=False)
    parent: Run | None = field(default=None, repr=False)
    bound: ClassVar[Collection[str]] = ("trainer.max_steps",)
    """Of the keys that may change when a run is resumed, those that may not in a study: how long its runs train."""

    @property
    def config(self) -> Path:
        """What the process reads."""
        return RunDirectory(self.directory).config

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.directory / "log.txt"

    @property
    @abstractmethod
    def arguments(self) -> list[str]:
        """Of the `exprl` command."""

    @property
    @abstractmethod
    def result(self) -> Path:
        """What the study reads of it."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.result.is_file()

    def figures(self) -> str:
        """A finished run's key figures in one line."""
        summary = EvaluationResult.read(self.result, ANEW).summary()
        names = [name for name in summary if name.startswith("pass@") or name == "progress"]
        return "  ".join(f"{name} {100 * summary[name]:.1f} %" for name in names)

    def check(self) -> None:
        """Raise `RunDirectoryError` where a run was begun with other options, or from a run that is gone."""
        if not self.config.is_file():
            return
        if self.parent is not None and not self.parent.finished:
            raise RunDirectoryError(
                f"{self.directory} was begun from {self.parent.directory}, which is not finished any more. Delete it, "
                "too, to run both anew."
            )
        begun, now = saved_config(self.config), configuration.to_yaml(self.experiment)
        free = set(configuration.free_keys(self.experiment)) - set(self.bound)
        found = differences(self._moved_here(begun), now, free) if begun != now else []
        if found:
            raise RunDirectoryError(
                f"{self.directory} was begun with other options ({in_words(found)}). Delete it and what starts from "
                "it to run them anew, or set study_dir=... to keep them."
            )

    def _moved_here(self, text: str) -> str:
        """A config as it would be had the study's folder always been where it is now."""
        run_dir = yaml.safe_load(text).get("run_dir")
        if not run_dir or not run_dir.endswith(f"/{self.name}"):
            return text
        return text.replace(run_dir.removesuffix(self.name), str(self.directory).removesuffix(self.name))

    def prepare(self) -> None:
        """Write what the process reads; raises as `check` does."""
        self.check()
        write_text(self.config, configuration.to_yaml(self.experiment))


class TrainingRun(Run):
    """A stage of an arm with a seed; its result is the evaluation after it."""

    @property
    def arguments(self) -> list[str]:
        """`exprl train`, going on where it stopped."""
        return ["train", str(self.config), "--resume"]

    @property
    def result(self) -> Path:
        """Per-problem counts."""
        return RunDirectory(self.directory).evaluation("after")

    @property
    def finished(self) -> bool:
        """The summary is written last."""
        return RunDirectory(self.directory).summary.is_file()


class EvaluationRun(Run):
    """The untouched initial policy. A seed makes another run of it only where the model or the evaluation names one."""

    @property
    def arguments(self) -> list[str]:
        """`exprl evaluate`."""
        return ["evaluate", str(self.config), "--output", str(self.result)]

    @property
    def result(self) -> Path:
        """Per-problem counts."""
        return self.directory / "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class MiningRun(Run):
    """The initial policy on all problems of a source; what it keeps takes the source's place.

    Attributes:
        rates: which problems it keeps.
        needs: how many it must keep for the study to go on.
    """

    rates: MineConfig
    needs: int
    bound: ClassVar[Collection[str]] = ()

    @property
    def dataset(self) -> Path:
        """The problems kept."""
        return self.directory / "problems.jsonl"

    @property
    def arguments(self) -> list[str]:
        """`exprl mine`, going on where it stopped."""
        low, high = (str(rate) for rate in (self.rates.min_rate, self.rates.max_rate))
        return ["mine", str(self.config), "--output", str(self.dataset), "--min-rate", low, "--max-rate", high]

    @property
    def result(self) -> Path:
        """How many were kept; written last."""
        return self.dataset.with_suffix(".summary.json")

    def summary(self) -> dict[str, Any]:
        """What mining found; raises `PathError` where its file is damaged."""
        return read_json(self.result, ANEW)

    def figures(self) -> str:
        """How many were kept."""
        summary = self.summary()
        return f"{summary['kept']} of {counted(summary['problems'], 'problem')} kept"


def with_parents(runs: Sequence[Run]) -> list[Run]:
    """The runs and what they start from, each once and after what it starts from."""
    ordered: dict[str, Run] = {}

    def add(run: Run) -> None:
        if run.parent is not None:
            add(run.parent)
        ordered.setdefault(run.name, run)

    for run in runs:
        add(run)
    return list(ordered.values())
