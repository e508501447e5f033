"""What a run writes and prints after each step."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from exprl.errors import CheckpointError, ExprlError
from exprl.run_directory import RunDirectory, append_line
from exprl.training.interruption import Interruption
from exprl.training.policy_module import PolicyModule, Shown
from exprl.training.samples import print_sample, sample_records

log = logging.getLogger(__name__)

EMERGENCY_WAIT = 20.0
"""Seconds to wait for the other ranks before saving in an emergency: launchers kill half a minute after they ask."""


class StepLog(Callback):
    """Metrics to `metrics.jsonl` and TensorBoard, rollouts to `samples.jsonl`, one line and a sample to the console."""

    def __init__(self, directory: RunDirectory, console: Console, *, max_steps: int, print_samples: int) -> None:
        self.directory = directory
        self.console = console
        self.max_steps = max_steps
        self.print_samples = print_samples

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After each step."""
        assert isinstance(pl_module, PolicyModule)
        if not pl_module.world.first:
            return
        step, metrics = pl_module.steps_done, pl_module.last_metrics
        append_line(self.directory.metrics, {"step": step, **metrics})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        records = [record for scored in pl_module.last_scored for record in sample_records(scored, step)]
        for record in records:
            append_line(self.directory.samples, record)
        for record in records[: self.print_samples]:
            print_sample(self.console, record)
        self.console.print(self.line(step, metrics, pl_module.shown), highlight=False, soft_wrap=True)

    def line(self, step: int, metrics: dict[str, float], shown: Shown) -> str:
        """The step in one line, without the metrics it does not have."""
        start = f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}"
        parts = [f"{label} {metrics[name]:{form}}" for name, label, form in shown if name in metrics]
        return "  ".join([start, *parts, f"{metrics['time/step_seconds']:.1f} s"])


class Checkpoints(Callback):
    """Atomic checkpoints every so many steps, the last `keep` of them kept."""

    def __init__(self, directory: RunDirectory, *, every: int, keep: int) -> None:
        self.directory = directory
        self.every = every
        self.keep = keep

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every `every` steps."""
        assert isinstance(pl_module, PolicyModule)
        if self.every and pl_module.steps_done % self.every == 0:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step."""
        assert isinstance(pl_module, PolicyModule)
        self.save(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the finished steps of an interrupted or failed run, if its weights are still those of the last one."""
        assert isinstance(pl_module, PolicyModule)
        if not pl_module.steps_done or not pl_module.whole_steps or isinstance(exception, CheckpointError):
            return
        # The other ranks may be waiting for this one; they come here too once they know that it failed.
        pl_module.world.fail(f"{type(exception).__name__}: {exception}")
        try:
            what = f"the emergency checkpoint of step {pl_module.steps_done}"
            pl_module.world.meet(what, despite_failure=True, limit=EMERGENCY_WAIT)
            self.save(trainer, pl_module)
        except ExprlError as error:
            log.error("no emergency checkpoint: %s", error)

    def save(self, trainer: Trainer, module: PolicyModule) -> None:
        """Write beside the target and rename, then drop the oldest; all ranks together.

        Raises:
            CheckpointError: it cannot be written; the checkpoints before it are untouched.
            NonFiniteError: a weight is not finite; they are untouched, too.
        """
        target = self.directory.checkpoint(module.steps_done)
        if target.exists():
            return
        unfinished = target.with_suffix(".writing")
        if module.world.first:
            remove(unfinished)  # what a killed run left
        module.world.meet(f"writing the checkpoint of step {module.steps_done}", despite_failure=True)
        module.check_weights(f"the checkpoint of step {module.steps_done}")
        module.world.exchanging = True
        try:
            with module.world.collective(f"writing the checkpoint of step {module.steps_done}"):
                trainer.save_checkpoint(unfinished)
        except (OSError, RuntimeError) as error:
            if module.world.first:
                remove(unfinished)
            raise CheckpointError(
                f"cannot write {target}: {error}. Make room or set run_dir elsewhere, then go on with --resume; the "
                f"last checkpoint is {self.directory.latest_checkpoint() or 'missing: none was made before'}."
            ) from error
        finally:
            module.world.exchanging = False
        if module.world.first:
            os.replace(unfinished, target)  # noqa: PTH105 - atomic on every platform
            for old in self.directory.all_checkpoints()[: -self.keep]:
                remove(old)
        module.world.meet(f"the end of the checkpoint of step {module.steps_done}", despite_failure=True)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint, file or folder, if it is there."""
    if checkpoint.is_dir():
        shutil.rmtree(checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)


class Interrupts(Callback):
    """SIGTERM and Ctrl-C end the run between updates, with its finished steps saved."""

    def __init__(self, module: PolicyModule) -> None:
        self.interruption = Interruption(lambda: module.updating or module.world.exchanging)
        self.listening = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has set its own handlers by now, which would start a collective from within a signal."""
        self.listening.enter_context(self.interruption.listening())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A signal that came during the update is heard now."""
        self.interruption.check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The handlers of before."""
        self.listening.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The handlers of before."""
        self.listening.close()


class Evaluations(Callback):
    """Evaluates on the held-out problems before, after, and every so many steps of training."""

    def __init__(self, every: int, evaluate: Callable[[str], object]) -> None:
        self.every = every
        self.evaluate = evaluate

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step; the one epoch is the whole run, and the engine has its weights by now."""
        self.evaluate("before")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every `every` steps."""
        assert isinstance(pl_module, PolicyModule)
        if self.every and pl_module.steps_done % self.every == 0:
            self.evaluate(f"step-{pl_module.steps_done:06d}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last."""
        self.evaluate("after")
