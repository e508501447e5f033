"""The linear layers of a model, computed by the fastest library there is on this processor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exprl.kernels import onednn


@dataclass(frozen=True)
class _Packed:
    """A weight as oneDNN likes it, and which version of the weight that was."""

    tensor: Tensor
    source: int
    version: int

    def __deepcopy__(self, _: object) -> None:
        """A copy of the model has weights of its own."""

    def holds(self, weight: Tensor) -> bool:
        """Whether that is what the weight is now."""
        return weight.data_ptr() == self.source and weight._version == self.version


class FastLinear(nn.Linear):
    """A `torch.nn.Linear` whose products go to oneDNN where that gains (`exprl.kernels.onednn`)."""

    _packed: _Packed | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """[..., out_features] for [..., in_features]."""
        if not onednn.gains(input, self.weight):
            return nn.functional.linear(input, self.weight, self.bias)
        packed = self._packed
        if packed is not None and not torch.is_grad_enabled() and packed.holds(self.weight):
            return onednn.product(input, packed.tensor, self.bias)
        return onednn.linear(input, self.weight, self.bias)


def speed_up(model: nn.Module) -> None:
    """Let the model's plain linear layers be `FastLinear`, in place, on a machine that gains; weights stay as they are.

    Subclasses of `nn.Linear` are left alone, they may compute something else.
    """
    if onednn.machine_gains():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = FastLinear


@contextmanager
def packed(model: nn.Module, rows: int) -> Iterator[None]:
    """Inside, weights are also held in oneDNN's own order, for many forward passes of about `rows` rows each.

    Takes the memory of the weights once more. A weight that changes meanwhile is read as it then is.
    """
    layers = [module for module in model.modules() if isinstance(module, FastLinear)]
    try:
        for layer in layers:
            weight = layer.weight
            if onednn.gains(weight, weight):
                layer._packed = _Packed(onednn.packed(weight, rows), weight.data_ptr(), weight._version)
        yield
    finally:
        for layer in layers:
            layer._packed = None
