"""Float32 products on processors whose vector units torch's usual library leaves half idle.

torch gives float32 products on a CPU to MKL, which keeps to AVX2 on AMD's processors. oneDNN, which torch carries for
its compiler, uses the AVX-512 that is there: twice as many products a second (`benchmarks/results/products.md`).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exprl.kernels.once import differentiable_once

SMALLEST = 2**16
"""Numbers of a weight: calling oneDNN costs 10 µs, in which MKL has done most of what smaller ones ask for."""

_PLAIN = (Tensor, nn.Parameter)


@functools.cache
def machine_gains() -> bool:
    """Whether this is such a processor: AMD's with AVX-512 (Zen 4 and later)."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return bool(re.search(r"^vendor_id\s*: AuthenticAMD$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    except OSError:
        return False


def gains(left: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes `left` [..., K] @ `weight` [N, K].T, or its gradients, faster than torch's own product.

    Only plain float32 tensors on a CPU, outside autocast and compilers; `torch.backends.mkldnn.enabled` turns it off.
    """
    return (
        weight.numel() >= SMALLEST
        and left.dtype == weight.dtype == torch.float32
        and left.device.type == weight.device.type == "cpu"
        and machine_gains()
        and type(left) in _PLAIN
        and type(weight) in _PLAIN
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., N] `left` [..., K] @ `right` [N, K].T + `bias` [N], by oneDNN, without gradient; any strides."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result


def packed(weight: Tensor, rows: int) -> Tensor:
    """`weight` [N, K] as oneDNN reads it fastest for about `rows` rows: a `right` of `product` and of nothing else."""
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return result


def linear(left: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` by oneDNN, where `gains` says so; differentiable once.

    Args:
        left: [..., K].
        weight: [N, K].
        bias: [N].
    """
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (left, weight, bias)):
        result: Tensor = _Linear.apply(left, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return product(left, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(left, weight)
        return product(left, weight, bias)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        left, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # [R, N]
        of_left, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if of_left else None,
            product(rows.t(), left.flatten(0, -2).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
