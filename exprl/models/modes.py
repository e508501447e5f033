"""How a model is run for a while: in eval mode, or in the precision of its own weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

_HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, afterwards each module's own mode again (a frozen part may have been in eval mode before)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def in_own_precision(model: nn.Module) -> AbstractContextManager[object]:
    """Autocast off where all weights have 16 bits: it spares nothing there, and some layers refuse float16 within."""
    weights = list(model.parameters())
    if not all(weight.dtype in _HALVES for weight in weights):
        return nullcontext()
    return torch.autocast(weights[0].device.type, enabled=False)
