"""What a run writes and prints after each step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from exprl.run_directory import RunDirectory, append_line
from exprl.training.module import ExpRLModule
from exprl.training.samples import print_sample, sample_records


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
        assert isinstance(pl_module, ExpRLModule)
        step, metrics = pl_module.steps_done, pl_module.last_metrics
        if not trainer.is_global_zero:
            return
        append_line(self.directory.metrics, {"step": step, **metrics})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        records = [record for scored in pl_module.last_scored for record in sample_records(scored, step)]
        for record in records:
            append_line(self.directory.samples, record)
        for record in records[: self.print_samples]:
            print_sample(self.console, record)
        self.console.print(self.line(step, metrics), highlight=False, soft_wrap=True)

    def line(self, step: int, metrics: dict[str, float]) -> str:
        """The step in one line."""
        accuracy = metrics.get("outcome/accuracy")
        parts = [
            f"step {step:>{len(str(self.max_steps))}}/{self.max_steps}",
            f"reward {metrics['reward/mean']:.3f}",
            *([f"accuracy {accuracy:.3f}"] if accuracy is not None else []),
            f"entropy {metrics['update/entropy']:.3f}",
            f"kl {metrics['update/kl']:.4f}",
            f"length {metrics['rollout/length_mean']:.0f}",
            f"cut off {metrics['rollout/cut_off_rate']:.0%}",
            f"{metrics['time/step_seconds']:.1f} s",
        ]
        return "  ".join(parts)


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
        assert isinstance(pl_module, ExpRLModule)
        if self.every and pl_module.steps_done % self.every == 0:
            self.save(trainer, pl_module.steps_done)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last step."""
        assert isinstance(pl_module, ExpRLModule)
        self.save(trainer, pl_module.steps_done)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the finished steps of an interrupted or failed run; a half-made update is not one of them."""
        assert isinstance(pl_module, ExpRLModule)
        if pl_module.steps_done and not pl_module.updating:
            self.save(trainer, pl_module.steps_done)

    def save(self, trainer: Trainer, step: int) -> None:
        """Write beside the target and rename, then drop the oldest."""
        target = self.directory.checkpoint(step)
        if target.exists():
            return
        unfinished = target.with_suffix(".writing")
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            os.replace(unfinished, target)  # noqa: PTH105 - atomic on every platform
            for old in sorted(self.directory.checkpoints.glob("step-*.ckpt"))[: -self.keep]:
                Path(old).unlink()


class EvaluateEvery(Callback):
    """Evaluates on the held-out problems every so many steps."""

    def __init__(self, every: int, evaluate: Callable[[int], object]) -> None:
        self.every = every
        self.evaluate = evaluate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every `every` steps."""
        assert isinstance(pl_module, ExpRLModule)
        if self.every and pl_module.steps_done % self.every == 0:
            self.evaluate(pl_module.steps_done)
