"""What a Trainer of one's own cannot have, said before any work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import EarlyStopping

from exprl.errors import ConfigError
from exprl.training.parallel import check_strategy

PRECISIONS = {
    "32-true": None,
    "bf16-mixed": None,
    "16-mixed": "gradients are clipped and looked at as they are, but it scales them",
    "16-true": "an update of a usual size is lost in weights of 16 bits",
    "bf16-true": "an update of a usual size is lost in weights of 16 bits",
    "64-true": "the frozen initial policy and the judges' models would stay in another precision than the policy",
    "transformer-engine": "it exchanges the layers that log-probs and the engine's weights are read from",
    "transformer-engine-float16": "it exchanges the layers that log-probs and the engine's weights are read from",
}
"""What Lightning offers: None, or why it is refused."""

AVERAGING = ("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging")
"""Callbacks that exchange the policy for an average of its past; by name, as not every version of Lightning has all."""


def check_trainer(trainer: Trainer) -> None:
    """Raise `ConfigError` for what a policy cannot be trained with, naming the argument and what to give instead."""
    check_strategy(trainer.strategy)
    check_precision(str(trainer.precision))
    check_length(trainer)
    check_ranks(trainer)
    check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]  # set by a connector


def check_precision(precision: str) -> None:
    """Raise `ConfigError` for a precision whose gradients or weights are not those that the update counts on."""
    reason = PRECISIONS.get(precision, "it is not known here")
    if reason is not None:
        raise ConfigError(
            f"Trainer(precision={precision!r}): {reason}. Give it precision='bf16-mixed', bf16 arithmetic on float32 "
            "weights, or precision='32-true', which leaves each model in the dtype that it was loaded in."
        )


def check_length(trainer: Trainer) -> None:
    """Raise `ConfigError` where the run would not be the DataModule's one epoch."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by its constructor
        return
    if trainer.max_steps != -1:
        raise ConfigError(
            f"Trainer(max_steps={trainer.max_steps}): Lightning counts optimizer updates, of which a step may make "
            "several or none. Leave it out, and give the steps to ExpRLDataModule(max_steps=...)."
        )
    if trainer.max_epochs != 1:
        raise ConfigError(
            f"Trainer(max_epochs={trainer.max_epochs}): one epoch is the whole run, of as many steps as "
            "ExpRLDataModule(max_steps=...) says. Give it max_epochs=1."
        )


def check_ranks(trainer: Trainer) -> None:
    """Raise `ConfigError` where Lightning would share out the problems once more."""
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigError(
            "Trainer(use_distributed_sampler=True): ExpRLDataModule gives each rank its share itself. "
            "Give it use_distributed_sampler=False."
        )


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Raise `ConfigError` for those that could not do what they are for."""
    averaging = _known(AVERAGING)
    for callback in callbacks:
        name = type(callback).__name__
        if isinstance(callback, EarlyStopping) and type(callback).on_train_batch_end is Callback.on_train_batch_end:
            raise ConfigError(
                f"Trainer(callbacks=[{name}(...)]): it looks at the end of an epoch, and one epoch is the whole run. "
                "Use exprl.training.early_stopping.StepEarlyStopping, which takes the same arguments."
            )
        if isinstance(callback, averaging):
            raise ConfigError(
                f"Trainer(callbacks=[{name}(...)]): an average of past weights is not the policy that the rollouts "
                "are sampled from. Leave it out; average checkpoints afterwards."
            )


def _known(names: Iterable[str]) -> tuple[type[Any], ...]:
    return tuple(getattr(lightning_callbacks, name) for name in names if hasattr(lightning_callbacks, name))
