"""In which precision weights train."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from exprl.errors import ModelError

if TYPE_CHECKING:
    from exprl.models.base import LanguageModel

log = logging.getLogger(__name__)


def prepare_to_train(policy: LanguageModel, precision: str) -> None:
    """Make all weights float32 in place, unless the user asked for less by name, who is then warned.

    At a learning rate of 1e-6 an update is smaller than a bfloat16 weight can show: most of it would be lost.

    Args:
        policy: its weights as loaded.
        precision: `trainer.precision`; mixed ones always keep float32 weights.

    Raises:
        ModelError: the weights are quantised.
    """
    if getattr(policy.model, "is_quantized", False):
        raise ModelError(
            f"model.path: the weights of {policy.name} are quantised and cannot train. Give the model they "
            "were made from; quantised ones can judge."
        )
    dtype = policy.model.dtype
    if dtype in (torch.bfloat16, torch.float16) and policy.dtype_by_name and not precision.endswith("-mixed"):
        log.warning(
            "model.dtype=%s: the policy's weights train in half precision, where most of an update of a learning rate "
            "near 1e-6 is lost. model.dtype=auto keeps them in float32; trainer.precision=bf16-mixed computes fast on "
            "those.",
            str(dtype).removeprefix("torch."),
        )
        return
    policy.model.float()
