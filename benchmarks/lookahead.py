"""Wall time of a step with `rollout.lookahead: 1` and 0, on an engine and a judge that sleep as if they were on GPUs.

`python benchmarks/lookahead.py [STEPS]` trains the quickstart's policy for real, with one thread, on rollouts that were
sampled before and that the engine gives back after a sleep. The baseline is `lookahead: 0` in the same run; the ideal
is the longer of sampling with judging and updating. Steps are timed from end to end, records and sync included.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lightning import Callback, LightningModule, Trainer
from measuring import device_name, versions

from exprl.component import option
from exprl.engines.base import Sampling
from exprl.engines.transformers import TransformersEngine
from exprl.experiment import load_experiment
from exprl.judges.reference_steps import ReferenceStepsJudge
from exprl.registry import ENGINES, JUDGES
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import Judgement, JudgeRequest, Prompt, Rollout

WARM_UP = 2
"""Steps not counted: the first samples for real, and the second is the first with a next one."""
ROUNDS = 2
"""Runs with each lookahead, in turn."""
JUDGING = 0.25
"""Of sampling and judging, the judge's part."""


@ENGINES.register("sleeping")
class SleepingEngine(TransformersEngine):
    """Samples each prompt once; from then on it gives the same rollouts back after a sleep, in equal pauses."""

    overlaps: ClassVar[bool] = True

    seconds: float = option(default=0.0, help="of sleep for all prompts of a call together")

    def setup(self) -> None:
        """Nothing is sampled yet."""
        super().setup()
        self.known: dict[tuple[int, ...], list[Rollout]] = {}

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """The rollouts, of the version that the engine is told to have."""
        new = [prompt for prompt in prompts if prompt.token_ids not in self.known]
        for index, rollout in super().generate(new, sampling) if new else ():
            self.known.setdefault(new[index].token_ids, []).append(rollout)
        for index, prompt in enumerate(prompts):
            for rollout in self.known[prompt.token_ids]:
                time.sleep(self.seconds / len(prompts) / sampling.n)
                yield index, rollout


@JUDGES.register("sleeping")
class SleepingJudge(ReferenceStepsJudge):
    """`reference_steps` after a sleep."""

    seconds: float = option(default=0.0, help="of sleep a call")

    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """See `Judge`."""
        time.sleep(self.seconds)
        return super().judge(requests, on_progress)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of one: from the end of the one before to its own, updating, and sampling with judging."""

    whole: float
    updating: float
    making: float


class Ends(Callback):
    """Takes the time of each step, records and sync included."""

    steps: ClassVar[list[Step]] = []

    def __init__(self) -> None:
        self.last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Called once the step's records are written."""
        now, metrics = time.perf_counter(), pl_module.last_metrics
        making = metrics["time/sampling_seconds"] + metrics["time/judging_seconds"]
        self.steps.append(Step(whole=now - self.last, updating=metrics["time/updating_seconds"], making=making))
        self.last = now


def main() -> None:
    """Three balances of sampling and updating, lookahead 0 and 1 in turn."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    updating = medians(measured(0, 0.0, steps=WARM_UP + 4)).updating
    print(f"{device_name()}, one thread; {versions('lightning')}; {ROUNDS} runs of {steps} steps each\n")
    print(
        "| balance | lookahead | step | sampling + judging | updating | step / max of both | step / max, baseline's |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for share in (0.5, 1.0, 2.0):
        seconds = share * updating
        rounds = [[measured(lookahead, seconds, steps=steps) for lookahead in (0, 1)] for _ in range(ROUNDS)]
        found = [[step for runs in rounds for step in runs[lookahead]] for lookahead in (0, 1)]
        baseline = ideal(medians(found[0]))
        for lookahead, own in enumerate(found):
            one = medians(own)
            over = statistics.median(step.whole / ideal(step) for step in own)
            print(
                f"| {share:g} : 1 | {lookahead}{'' if lookahead else ' (baseline)'} | {one.whole:.2f} s | "
                f"{one.making:.2f} s | {one.updating:.2f} s | {over:.2f} | {one.whole / baseline:.2f} |"
            )
        gained = medians(found[0]).whole / medians(found[1]).whole
        print(f"| {share:g} : 1 | 0 / 1 | **{gained:.2f}** | | | | |", flush=True)


def ideal(step: Step) -> float:
    """What a step takes at least."""
    return max(step.updating, step.making)


def medians(steps: Sequence[Step]) -> Step:
    """Of each figure its median over the steps."""
    return Step(**{name: statistics.median(getattr(step, name) for step in steps) for name in vars(steps[0])})


def measured(lookahead: int, seconds: float, *, steps: int) -> list[Step]:
    """The steps of a run whose engine and judge sleep for so many seconds in each."""
    Ends.steps.clear()
    with tempfile.TemporaryDirectory() as folder:
        options = [
            f"run_dir={folder}/run",
            "data.train.count=16",
            "data.prompts_per_step=16",
            "evaluation.source=null",
            "rollout={name: sleeping, samples_per_prompt: 8, max_new_tokens: 72, "
            f"seconds: {seconds * (1 - JUDGING)}, lookahead: {lookahead}}}",
            f"reward.judge={{name: sleeping, seconds: {seconds * JUDGING}}}",
            "update={micro_batch_tokens: 4000, gap_tolerance: 1000}",  # all rollouts are of one policy
            f"trainer={{max_steps: {steps}, checkpoint_every: 0, loggers: [], print_samples: 0}}",
            "trainer.callbacks=[{class_path: __main__.Ends}]",
        ]
        run(options, Path(folder) / "run")
    return Ends.steps[WARM_UP:-1]  # with lookahead the last samples nothing


def run(options: Sequence[str], folder: Path) -> None:
    """Train quietly."""
    from exprl.commands.train import train

    experiment = load_experiment(Path(__file__).parents[1] / "configs/quickstart.yaml", options)
    train(experiment, RunDirectory(folder).path, resume=False, console=Console(quiet=True))


if __name__ == "__main__":
    main()
