"""When a run's policy is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer

from exprl.checks.contracts import not_the_end
from exprl.training.policy_module import PolicyModule


class Evaluations(Callback):
    """Evaluates on the held-out problems before, after, and every so many steps of training.

    Args:
        every: steps between two; 0: none in between.
        evaluate: makes the evaluation of this name, unless it was made before.
    """

    def __init__(self, every: int, evaluate: Callable[[str], object]) -> None:
        self.every = every
        self.evaluate = not_the_end(evaluate)
        self.caught_up = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step; the one epoch is the whole run, and the engine has its weights by now."""
        self.evaluate("before")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first step of a resumed run: the evaluation of the step that it was stopped after."""
        if not self.caught_up:
            self.evaluate_step(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every `every` steps."""
        self.evaluate_step(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last; a run that was stopped after its last step still owes that step's own."""
        if not self.caught_up:
            self.evaluate_step(pl_module)
        self.evaluate("after")

    def evaluate_step(self, module: LightningModule) -> None:
        """The evaluation of the step just done, if it is one of those that have one."""
        assert isinstance(module, PolicyModule)
        self.caught_up = True
        if self.every and module.steps_done and module.steps_done % self.every == 0:
            self.evaluate(f"step-{module.steps_done:06d}")
