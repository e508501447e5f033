"""A step's metrics under a Trainer that has no logger."""

from __future__ import annotations

import warnings

import pytest
import torch
from lightning import LightningModule, Trainer

from exprl.training.reporting import log_step


class Logging(LightningModule):
    """Logs two metrics a step."""

    def __init__(self, *, loggers: bool) -> None:
        super().__init__()
        self.loggers_get_them = loggers

    def training_step(self, batch: torch.Tensor) -> None:
        log_step(self, {"reward/mean": 0.5, "step": 1.0}, shown=["reward/mean"], loggers=self.loggers_get_them)

    def configure_optimizers(self) -> None:
        return None


@pytest.mark.parametrize("loggers", [True, False])
def test_nothing_is_warned_of_and_the_trainer_has_what_it_had(tmp_path, loggers):
    trainer = Trainer(
        max_steps=1,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer.fit(Logging(loggers=loggers), [torch.zeros(1)])
    assert not [one for one in warned if "no logger configured" in str(one.message)]
    assert trainer.callback_metrics["reward/mean"] == 0.5
    assert ("reward/mean" in trainer.logged_metrics) == loggers
