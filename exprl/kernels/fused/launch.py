"""Block sizes and warps from a fixed table: nothing is tuned while a run goes on, so nothing is compiled twice."""

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

# {capability: {bytes of a logit: one head, two heads}}. A thread holds 16 logits of one head or 8 of each of two;
# `exprl.kernels.fused` compiled for each capability shows no spilled registers at these sizes (a test).
_TABLE = {
    8: {2: (Launch(4096, 8), Launch(2048, 8)), 4: (Launch(4096, 8), Launch(2048, 8))},
    9: {2: (Launch(4096, 8), Launch(2048, 8)), 4: (Launch(4096, 8), Launch(2048, 8))},
    10: {2: (Launch(4096, 8), Launch(2048, 8)), 4: (Launch(4096, 8), Launch(2048, 8))},
}


def launch_for(z: Tensor, *, two_heads: bool) -> Launch:
    """The entry for the device and dtype of z; a newer device takes the newest entry."""
    if not z.is_cuda:
        return _INTERPRETED
    major = torch.cuda.get_device_capability(z.device)[0]
    entry = _TABLE[min(max(major, min(_TABLE)), max(_TABLE))]
    return entry[2 if z.itemsize <= 2 else 4][two_heads]


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
