"""AdamW and its schedule from their config."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from exprl.experiment import OptimizerConfig


def build_optimizer(model: nn.Module, options: OptimizerConfig) -> tuple[AdamW, LambdaLR]:
    """AdamW over the trainable parameters with linear warm-up from lr / (warmup_updates + 1)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=options.lr,
        betas=(options.betas[0], options.betas[1]),
        eps=options.eps,
        weight_decay=options.weight_decay,
        # otherwise temporaries as large as the weights, and on a CPU three times the time
        fused=all(parameter.device.type in ("cpu", "cuda") for parameter in trained),
    )
    warmup = options.warmup_updates
    return optimizer, LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / (warmup + 1)))
