"""A step's metrics to Lightning: its loggers, progress bars, and the callbacks that monitor one."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from lightning import LightningModule, Trainer


def log_step(module: LightningModule, metrics: Mapping[str, float], *, shown: Collection[str], loggers: bool) -> None:
    """Log a step from within `training_step`, on every rank alike.

    Args:
        module: attached to a Trainer.
        metrics: of the step alone, and its number as `step`, which Lightning takes for that of the loggers: its own
            counts batches from 0, and optimizer updates elsewhere.
        shown: those for the progress bar.
        loggers: whether loggers get them, where there are any.
    """
    # True where there is no logger would be warned of at every value; None is True without that.
    wanted = None if loggers and not module.trainer.loggers else loggers
    _forget_all_but(metrics, module.trainer)
    for name, value in metrics.items():
        module.log(
            name,
            torch.tensor(value, dtype=torch.float64),  # as it is, whatever precision the step computes in
            prog_bar=name in shown,
            logger=wanted,
            rank_zero_only=name.startswith("time/"),  # each rank has its own
        )


def _forget_all_but(names: Collection[str], trainer: Trainer) -> None:
    """Drop the other values of steps before, which Lightning would log again at each step from then on."""
    results = trainer._results
    if results is not None:
        for key in [key for key, result in results.items() if result.meta.name not in names]:
            del results[key]
