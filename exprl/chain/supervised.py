"""Supervised training on given responses, outside any run: the warm-up of the miniature world."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from exprl.experiment import OptimizerConfig
from exprl.models.base import LanguageModel
from exprl.terminal.progress_bar import ProgressBar
from exprl.terminal.quiet import quiet_lightning
from exprl.training.batching import TokenSequence, collate
from exprl.training.interruption import Interrupted
from exprl.training.optimizer import build_optimizer
from exprl.training.policy import response_logprobs


class SupervisedModule(LightningModule):
    """Maximises the mean log-prob of the responses' tokens; prompts carry no loss."""

    def __init__(self, policy: LanguageModel, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.policy = policy.model
        self.tokenizer = policy.tokenizer
        self.optimizer_config = optimizer

    def training_step(self, examples: Sequence[TokenSequence], batch_idx: int) -> Tensor:
        """The token-mean negative log-likelihood of one batch."""
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int)
        batch = collate(examples, pad_token_id=pad, device=self.device)
        loss: Tensor = -response_logprobs(self.policy, batch, temperature=1.0).logp.mean()
        return loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave it: `collate` puts the tensors where they belong."""
        return batch

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up, stepped every update."""
        optimizer, schedule = build_optimizer(self.policy, self.optimizer_config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class StopAtTarget(Callback):
    """Measures every so many updates, shows the measure, and stops the training once it reaches the target."""

    def __init__(self, measure: Callable[[], float], *, target: float, every: int) -> None:
        self.measure = measure
        self.target = target
        self.every = every
        self.value = float("nan")
        self.bar = ProgressBar("supervised", unit="update")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After every `every` updates."""
        self.bar.update(1)
        if (batch_idx + 1) % self.every:
            return
        self.value = self.measure()
        self.bar.note(f"measure {self.value:.3f}, target {self.target}")
        trainer.should_stop = self.value >= self.target

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the bar; too few updates to have measured are measured at the end."""
        self.bar.close()
        if math.isnan(self.value):
            self.value = self.measure()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Clear the bar."""
        self.bar.close()


def train_supervised(
    policy: LanguageModel, batches: Iterable[Sequence[TokenSequence]], optimizer: OptimizerConfig, stop: StopAtTarget
) -> int:
    """Train in place over `batches` until they end or `stop` is satisfied; returns the number of updates.

    Raises:
        Interrupted: SIGTERM came.
        KeyboardInterrupt: Ctrl-C.
    """
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            callbacks=[stop],
            logger=False,
            gradient_clip_val=optimizer.max_grad_norm,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        policy.model.train()
        _fit(trainer, SupervisedModule(policy, optimizer), batches)
        policy.model.eval()
    return trainer.global_step


def _fit(trainer: Trainer, module: LightningModule, batches: Iterable[Sequence[TokenSequence]]) -> None:
    """Lightning leaves the process where a signal stops it, with an exit code of its own."""
    try:
        trainer.fit(module, train_dataloaders=batches)
    except SIGTERMException:
        pass
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    if trainer.received_sigterm:  # also where it came during the last update
        raise Interrupted(signal.SIGTERM)
