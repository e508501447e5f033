"""What no implementation can avoid: the bare products, or the bytes of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernel_peers.base import Adapter, Forward, Outputs, Problem


class _Products(torch.autograd.Function):
    """Of the policy's head: one product forward; backward that one again, dH and dW. `heads` 2 repeats the first."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, heads: int) -> Tensor:
        z = hidden.new_empty(len(hidden), len(weight))
        for _ in range(heads):
            torch.mm(hidden, weight.t(), out=z)
        ctx.save_for_backward(hidden, weight)
        ctx.z, ctx.heads = z, heads
        return z[:, 0].float()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, weight = ctx.saved_tensors
        for _ in range(ctx.heads):
            torch.mm(hidden, weight.t(), out=ctx.z)
        return torch.mm(ctx.z, weight), torch.mm(ctx.z.t(), hidden), None


class _Traffic(torch.autograd.Function):
    """Forward as many bytes as one read of the logits (a copy of half of them), backward a read and a write."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, scratch: Tensor) -> Tensor:
        half = len(logits) // 2
        scratch[:half].copy_(logits[:half])
        ctx.save_for_backward(logits, scratch)
        return scratch[:, 0].float()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        logits, scratch = ctx.saved_tensors
        return scratch.copy_(logits), None


def _products(heads: int) -> Forward:
    def forward(problem: Problem) -> Outputs:
        return Outputs(logp=_Products.apply(*problem.inputs, heads))

    return forward


def _traffic() -> Forward:
    def forward(problem: Problem) -> Outputs:
        logits = problem.inputs[0]
        return Outputs(logp=_Traffic.apply(logits, torch.empty_like(logits)))

    return forward


ADAPTERS = [
    Adapter(peer="bare traffic", task="logits", load=_traffic, on_cpu=True, limit=True),
    Adapter(peer="bare GEMMs", task="linear", load=lambda: _products(1), on_cpu=True, limit=True),
    *(
        Adapter(peer="bare GEMMs", task=task, load=lambda: _products(2), on_cpu=True, limit=True)
        for task in ("rkl", "fkl", "jsd")
    ),
]
