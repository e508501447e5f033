"""The clipped policy loss, its statistics and its derivative in one pass over the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from exprl.kernels.fused.launch import on_device

_BLOCK = 1024


@dataclass(frozen=True)
class FusedLoss:
    """All [T] fp32; `kl` is None without the initial policy's log-probs, `derivative` is ∂loss/∂logp."""

    loss: Tensor
    derivative: Tensor
    ratio: Tensor
    clipped: Tensor
    kl: Tensor | None


@triton.jit
def _within(x, bound):
    return tl.minimum(tl.maximum(x, -bound), bound)


@triton.jit(do_not_specialize=["tokens"])
def policy_loss_kernel(
    logp,
    old_logp,
    advantages,
    weights,
    initial_logp,
    mask,
    loss_out,
    derivative_out,
    ratio_out,
    clipped_out,
    kl_out,
    tokens,
    low,
    high,
    dual_clip,
    kl_coef,
    bound,
    HAS_DUAL: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_MASK: tl.constexpr,
    KL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `exprl.kernels.policy.policy_token_loss`; `low` and `high` bound the ratio itself."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < tokens
    kept = inside
    if HAS_MASK:
        kept = inside & (tl.load(mask + index, mask=inside, other=0) != 0)
    x = tl.load(logp + index, mask=kept, other=0.0)
    delta = x - tl.load(old_logp + index, mask=kept, other=0.0)
    advantage = tl.load(advantages + index, mask=kept, other=0.0)
    weight = tl.load(weights + index, mask=kept, other=0.0)
    ratio = tl.exp(_within(delta, bound))
    free = -ratio * advantage
    bounded = -tl.minimum(tl.maximum(ratio, low), high) * advantage
    clipped = bounded > free
    loss = tl.maximum(free, bounded)
    if HAS_DUAL:
        ceiling = -dual_clip * advantage
        beyond = (advantage < 0.0) & (loss > ceiling)
        loss = tl.where(beyond, ceiling, loss)
        clipped = clipped | beyond
    moves = (tl.abs(delta) <= bound) & (clipped == 0)
    loss *= weight
    derivative = tl.where(moves, free * weight, 0.0)
    if HAS_INITIAL:
        gap = tl.load(initial_logp + index, mask=kept, other=0.0) - x
        near = _within(gap, bound)
        k3 = tl.exp(near) - near - 1.0
        tl.store(kl_out + index, tl.where(kept, k3, 0.0), mask=inside)
        if KL == "k1":
            loss -= kl_coef * gap
            derivative += kl_coef
        if KL == "k2":
            loss += kl_coef * 0.5 * gap * gap
            derivative -= kl_coef * gap
        if KL == "k3":
            loss += kl_coef * k3
            derivative += tl.where(tl.abs(gap) <= bound, kl_coef * (1.0 - tl.exp(near)), 0.0)
    tl.store(loss_out + index, tl.where(kept, loss, 0.0), mask=inside)
    tl.store(derivative_out + index, tl.where(kept, derivative, 0.0), mask=inside)
    tl.store(ratio_out + index, tl.where(kept, ratio, 0.0), mask=inside)
    tl.store(clipped_out + index, tl.where(kept & clipped, 1.0, 0.0), mask=inside)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    weights: Tensor,
    initial_logp: Tensor | None,
    mask: Tensor | None,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    kl_coef: float,
    kl: str,
    max_log_ratio: float,
) -> FusedLoss:
    """Launch over T checked tokens; see `exprl.kernels.policy.policy_token_loss`."""
    tokens = len(logp)
    inputs = [x.to(torch.float32).contiguous() for x in (logp, old_logp, advantages, weights)]
    initial = None if initial_logp is None else initial_logp.to(torch.float32).contiguous()
    loss, derivative, ratio, clipped = (torch.empty_like(inputs[0]) for _ in range(4))
    estimate = None if initial is None else torch.empty_like(initial)
    with on_device(logp):
        policy_loss_kernel[(triton.cdiv(tokens, _BLOCK),)](
            *inputs,
            inputs[0] if initial is None else initial,
            inputs[0] if mask is None else mask.to(torch.uint8),
            loss,
            derivative,
            ratio,
            clipped,
            loss if estimate is None else estimate,
            tokens,
            1 - clip_low,
            1 + clip_high,
            dual_clip or 0.0,
            kl_coef,
            max_log_ratio,
            HAS_DUAL=dual_clip is not None,
            HAS_INITIAL=initial is not None,
            HAS_MASK=mask is not None,
            KL=kl if kl_coef else "none",
            BLOCK=_BLOCK,
        )
    return FusedLoss(loss, derivative, ratio, clipped, estimate)
