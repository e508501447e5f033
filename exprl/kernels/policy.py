"""The per-token policy loss of PPO-style training: ratio, clip, importance weight and KL in one pass.

Nothing is reduced here: the caller sums the losses and divides by the token count of the whole batch. Gradient flows
through the current policy's log-probs only.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from exprl.kernels.arguments import check_choice, check_device, check_number, check_tokens, check_vector
from exprl.kernels.backends import choose
from exprl.kernels.compilers import left_by_compilers
from exprl.kernels.names import KL, Backend
from exprl.kernels.once import differentiable_once

BinaryDivergence = Literal["tv", "kl"]

MAX_LOG_RATIO = 20.0
"""Bound on differences of log-probs before `exp`, as in verl: e^20 is far beyond any clip and still finite."""


@dataclass(frozen=True)
class TokenLoss:
    """The loss [T] of T tokens, and detached statistics [T] each.

    Statistics: `ratio` π/π_old; `clipped` 1 where a clip holds the gradient at 0; `is_weight` of the sampler's
    mismatch; `kl`, the k3 estimate of KL(π ‖ π_initial), where the initial policy's log-probs were given.
    """

    loss: Tensor
    stats: dict[str, Tensor]


def policy_token_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    is_weight: Tensor | None = None,
    initial_logp: Tensor | None = None,
    kl_coef: float = 0.0,
    kl: KL = "k3",
    backend: Backend = "auto",
) -> TokenLoss:
    """Clipped surrogate times importance weight, plus KL: `clipped_surrogate` · w + kl_coef · `kl_estimate`.

    Values are not looked at, which would wait for the device: where the mask is true, a NaN, and log-probs that are
    both infinite, make that token's loss NaN.

    Args:
        logp: [T] log-probs under the current policy, with gradient.
        old_logp: [T] under the policy before the step's first update.
        advantages: [T].
        mask: [T] bool; where it is false loss, statistics and gradient are 0.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.
        dual_clip: c > 1, or None for no bound where the advantage is negative.
        is_weight: [T] weights that correct for the sampler's own log-probs (`exprl.corrections`), or None for 1.
        initial_logp: [T] under the frozen initial policy; with `kl_coef` 0 only the statistic `kl` comes of it.
        kl_coef: weight of the KL.
        kl: its estimator in the loss.
        backend: auto, triton, eager or compile.

    Returns:
        `TokenLoss`.

    Raises:
        ValueError: naming the argument with a wrong shape, dtype, device or value.
    """
    check_tokens(logp=logp, old_logp=old_logp, advantages=advantages, is_weight=is_weight, initial_logp=initial_logp)
    if mask is not None:
        check_vector("mask", mask, len(logp), torch.bool)
        check_device(logp.device, mask=mask)
    options = _Options(clip_low, clip_high, dual_clip, kl_coef, kl)
    if kl_coef and initial_logp is None:
        raise ValueError(f"initial_logp: required with kl_coef {kl_coef}, but got None")
    wide = torch.promote_types(logp.dtype, torch.float32)
    old_logp, advantages = old_logp.detach().to(wide), advantages.detach().to(wide)
    weight = torch.ones_like(old_logp) if is_weight is None else is_weight.detach().to(wide)
    weight = weight if mask is None else weight.masked_fill(~mask, 0.0)
    initial_logp = None if initial_logp is None else initial_logp.detach().to(wide)
    logp = logp.to(wide)
    name = choose(backend, logp.device, logp.dtype, len(logp))
    if name == "triton":
        function = _fused_token_loss
    else:
        # Inside of a compiled function that compiler has it.
        compiles = name == "compile" and not torch.compiler.is_compiling()
        function = _compiled_token_loss() if compiles else _token_loss
    loss, ratio, clipped, estimate = function(logp, old_logp, advantages, weight, initial_logp, mask, options)
    stats = {"ratio": ratio, "clipped": clipped, "is_weight": weight}
    if estimate is not None:
        stats["kl"] = estimate
    return TokenLoss(loss, stats)


@dataclass(frozen=True)
class _Options:
    clip_low: float
    clip_high: float
    dual_clip: float | None
    kl_coef: float
    kl: KL

    def __post_init__(self) -> None:
        _check_clips(self.clip_low, self.clip_high, self.dual_clip)
        check_number("kl_coef", self.kl_coef, -sys.float_info.max, sys.float_info.max, "a finite number")
        check_choice("kl", self.kl, KL)


def _check_clips(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    check_number("clip_low", clip_low, 0, 1, "0..1")
    check_number("clip_high", clip_high, 0, math.inf, "at least 0")
    if dual_clip is not None:
        check_number("dual_clip", dual_clip, math.nextafter(1, 2), math.inf, "above 1 or None")


# ------------------------------------------------------------------ the formulas


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """The negated PPO surrogate [T] with asymmetric clip, and where a clip holds its gradient at 0 [T] (bool).

    -min(ρA, clip(ρ, 1 - clip_low, 1 + clip_high) A) (arXiv:1707.06347, arXiv:2503.14476), and with `dual_clip` c at
    most -cA where A < 0 (arXiv:1912.09729).

    Args:
        ratio: [T] π/π_old with gradient.
        advantages: [T].
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.
        dual_clip: c > 1, or None for no bound where A < 0.

    Raises:
        ValueError: naming the argument with a wrong shape, dtype, device or value.
    """
    check_tokens(ratio=ratio, advantages=advantages)
    _check_clips(clip_low, clip_high, dual_clip)
    free = -ratio * advantages
    bounded = -_held(ratio, 1 - clip_low, 1 + clip_high) * advantages
    loss, clipped = torch.maximum(free, bounded), bounded > free
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        beyond = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(beyond, ceiling, loss), clipped | beyond
    return loss, clipped


def kl_estimate(logp: Tensor, initial_logp: Tensor, kind: KL) -> Tensor:
    """Estimate [T] of KL(π ‖ π_initial) from tokens sampled by π (Schulman 2020, "Approximating KL divergence").

    With Δ = log π_initial - log π: k1 = -Δ, k2 = Δ²/2, k3 = exp(Δ) - Δ - 1. As values k1 and k3 are unbiased and k3 is
    never negative. As loss terms they differ: the gradient of k1 is 0 in expectation, that of k2 is the gradient of
    KL(π ‖ π_initial), that of k3 is the gradient of KL(π_initial ‖ π).

    Raises:
        ValueError: naming the argument with a wrong shape, dtype, device or value.
    """
    check_tokens(logp=logp, initial_logp=initial_logp)
    check_choice("kind", kind, KL)
    delta = initial_logp.detach() - logp
    if kind == "k1":
        return -delta
    if kind == "k2":
        return 0.5 * delta.square()
    delta = _held(delta, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return delta.exp() - delta - 1


def binary_divergence(logp: Tensor, old_logp: Tensor, kind: BinaryDivergence) -> Tensor:
    """Divergence [T] of two distributions on "the sampled token or another", without gradient (arXiv:2602.04879).

    With p = π(token), q = π_old(token): tv = |p - q|, kl = q log(q / p) + (1 - q) log((1 - q) / (1 - p)). Both are at
    most the divergence over the whole vocabulary.

    Raises:
        ValueError: naming the argument with a wrong shape, dtype, device or value.
    """
    check_tokens(logp=logp, old_logp=old_logp)
    check_choice("kind", kind, BinaryDivergence)
    logp, old_logp = logp.detach(), old_logp.detach()
    p, q = logp.exp(), old_logp.exp()
    if kind == "tv":
        return (p - q).abs()
    most = 1 - 1e-7  # a certain token has no other
    return q * (old_logp - logp) + (1 - q) * (torch.log1p(-q.clamp(max=most)) - torch.log1p(-p.clamp(max=most)))


def ratio_of(logp: Tensor, other_logp: Tensor) -> Tensor:
    """exp(logp - other_logp) [T], the difference held within ±20.

    Raises:
        ValueError: naming the argument with a wrong shape, dtype or device.
    """
    check_tokens(logp=logp, other_logp=other_logp)
    return _held(logp - other_logp.detach(), -MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _held(values: Tensor, low: float, high: float) -> Tensor:
    """`values.clamp(low, high)` whose gradient flows at the ends too, where torch 2.14 stops it and 2.13 does not."""
    return torch.where(values < low, low, torch.where(values > high, high, values))


def _token_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    weight: Tensor,
    initial_logp: Tensor | None,
    mask: Tensor | None,
    options: _Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    if mask is not None:
        # Before the arithmetic: 0 · NaN would let a masked token into the gradient.
        logp = logp.masked_fill(~mask, 0.0)
        old_logp, advantages = (x.masked_fill(~mask, 0.0) for x in (old_logp, advantages))
        initial_logp = None if initial_logp is None else initial_logp.masked_fill(~mask, 0.0)
    ratio = ratio_of(logp, old_logp)
    loss, clipped = clipped_surrogate(
        ratio,
        advantages,
        clip_low=options.clip_low,
        clip_high=options.clip_high,
        dual_clip=options.dual_clip,
    )
    loss = loss * weight
    estimate = None
    if initial_logp is not None:
        estimate = kl_estimate(logp.detach(), initial_logp, "k3")
        if options.kl_coef:
            loss = loss + options.kl_coef * kl_estimate(logp, initial_logp, options.kl)
    ratio = ratio.detach()
    return loss, ratio if mask is None else ratio * mask, clipped.to(logp.dtype), estimate


@functools.cache
def _compiled_token_loss() -> Any:
    return torch.compile(_token_loss, dynamic=True)


@left_by_compilers
def _fused_token_loss(*arguments: Any) -> Any:
    return _Fused.apply(*arguments)  # type: ignore[no-untyped-call]


class _Fused(torch.autograd.Function):
    """One Triton pass writes the loss, the statistics and the loss's derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        logp: Tensor,
        old_logp: Tensor,
        advantages: Tensor,
        weight: Tensor,
        initial_logp: Tensor | None,
        mask: Tensor | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        from exprl.kernels.fused import policy_loss

        out = policy_loss(
            logp,
            old_logp,
            advantages,
            weight,
            initial_logp,
            mask,
            clip_low=options.clip_low,
            clip_high=options.clip_high,
            dual_clip=options.dual_clip,
            kl_coef=options.kl_coef,
            kl=options.kl,
            max_log_ratio=MAX_LOG_RATIO,
        )
        ctx.save_for_backward(out.derivative)
        ctx.mark_non_differentiable(*(x for x in (out.ratio, out.clipped, out.kl) if x is not None))
        ctx.set_materialize_grads(False)
        return out.loss, out.ratio, out.clipped, out.kl

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, g_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        (derivative,) = ctx.saved_tensors
        return None if g_loss is None else g_loss * derivative, None, None, None, None, None, None
