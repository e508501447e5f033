"""Fixed block sizes and warps: nothing is tuned while a run goes on, so nothing is compiled twice."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """Logits a program holds at once, and its warps."""

    block: int
    num_warps: int


_INTERPRETED = Launch(block=256, num_warps=1)
"""Small, so that the interpreter's tests walk through several blocks and a partial one."""

_ONE_HEAD, _TWO_HEADS = Launch(block=2048, num_warps=4), Launch(block=1024, num_warps=4)
"""The fastest on an H200 for logits in fp32 and bf16 (`benchmarks/results/gpu/h200.md`); no registers are spilled on
any capability that is compiled for (a test)."""


def launch_for(z: Tensor, *, two_heads: bool) -> Launch:
    """For logits z, and those of a second head beside them."""
    if not z.is_cuda:
        return _INTERPRETED
    return _TWO_HEADS if two_heads else _ONE_HEAD


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
