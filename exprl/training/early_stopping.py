"""Stopping a run early by one of its metrics."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping


class StepEarlyStopping(EarlyStopping):
    """Lightning's, which looks after each step: at the end of an epoch a run, which is one, has ended anyhow.

    It takes the same arguments; `patience` counts steps. A metric without a value at a step is looked at as it was.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step's metrics are logged by now."""
        self._run_early_stopping_check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looked already."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run has no validation."""
