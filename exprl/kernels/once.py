"""Backward passes that are not differentiable themselves, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exprl.kernels.compilers import left_by_compilers

Gradients = tuple[Tensor | None, ...]


class _Refuse(torch.autograd.Function):
    """The identity; going backward through it raises."""

    @staticmethod
    def forward(_: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(_: Any, *__: Tensor) -> None:
        raise RuntimeError(
            "exprl.kernels are differentiable once: a second derivative (create_graph=True) was asked for. Use plain "
            "torch on materialised logits for that"
        )


def differentiable_once(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """A Function's backward whose results raise when they are differentiated.

    torch's own `once_differentiable` lets a second derivative be silently 0 where the incoming gradient is a constant,
    as that of a sum is. Compiled autograd, which traces backward passes, leaves it as it is.
    """
    backward = left_by_compilers(backward)

    @functools.wraps(backward)
    def checked(ctx: Any, *incoming: Tensor | None) -> Gradients:
        with torch.no_grad():
            results = backward(ctx, *incoming)
        if not torch.is_grad_enabled():
            return results
        return tuple(None if r is None else _Refuse.apply(r.detach().requires_grad_()) for r in results)  # type: ignore[no-untyped-call]

    return checked
