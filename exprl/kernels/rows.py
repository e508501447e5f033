"""What is done to a slice of logits, token by token: the plain torch version, and the contract of the fused one.

A sweep visits the vocabulary slice by slice. Going forward every slice is merged into a few running numbers a token;
going backward every slice gives its logits' gradient. Notation, for one token: z are the policy's logits after softcap
and temperature, m their running maximum, s = Σ exp(z - m), t = Σ exp(z - m)(z - m); q marks the frozen head's; p and
q are the two distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from exprl.kernels.names import Divergence

FIELDS = 8
"""Running numbers of a token, the rows of a state [8, T]: m, s, t, z of the chosen id; the frozen head's m, s and z of
the chosen id; and d = Σ exp(z - m)((z - m) - (z_q - m_q)) for rkl, or that with the two heads exchanged for fkl."""


class Tokens(NamedTuple):
    """What is fixed for each of T tokens.

    `ids` [T] int64; `inverse_temperature` [T]; `softcap` c of c·tanh(z / c), applied before the temperature; `rows` [T]
    int64, which rows of a slice are these tokens, None for all in order; `tempered`, whether any temperature is not 1.
    """

    ids: Tensor
    inverse_temperature: Tensor
    softcap: float | None = None
    rows: Tensor | None = None
    tempered: bool = True


class GradientCoefficients(NamedTuple):
    """For each token [T], the gradient of its logits in a form that needs no more sums over the vocabulary.

    dz_j = p_j (a + b log p_j) + [j is chosen] g + the divergence's terms times d, where `lse` and `frozen_lse` give
    log p and log q; b is None where it is 0. See `coefficients` in `exprl.kernels.sweep` for how the outputs' gradients
    become these.
    """

    lse: Tensor
    frozen_lse: Tensor | None
    a: Tensor
    b: Tensor | None
    g: Tensor
    d: Tensor | None


@dataclass(frozen=True)
class RowOperations:
    """The three things a sweep does to a slice, with the signatures of `merge`, `merge_jsd` and `gradient` below."""

    merge: Callable[..., None]
    merge_jsd: Callable[..., None]
    gradient: Callable[..., None]
    rounds_gradient: bool
    """Whether the gradient of logits is rounded to the product's dtype, as tensor cores want it."""


# ------------------------------------------------------------------ plain torch


def merge(
    state: Tensor,
    z: Tensor,
    z_frozen: Tensor | None,
    first: int,
    tokens: Tokens,
    *,
    entropy: bool,
    divergence: Divergence | None,
) -> None:
    """Merge a slice into the running numbers.

    Args:
        state: [8, T] (see FIELDS), changed in place. `divergence` jsd needs no more than both heads' m and s.
        z: [R, W] logits of the vocabulary from token id `first` on.
        z_frozen: [R, W] the frozen head's, or None.
        first: token id of the first column.
        tokens: what is fixed.
        entropy: whether t is wanted.
        divergence: whose d is wanted.
    """
    m, s, t, chosen, m_frozen, s_frozen, chosen_frozen, d = state.unbind(0)
    z = _tempered(_capped(z, tokens, state.dtype), tokens)
    c, e, scale, shift, top = _online(z, m)
    if z_frozen is not None:
        z_frozen = _tempered(_capped(z_frozen, tokens, state.dtype), tokens)
        c_frozen, e_frozen, scale_frozen, shift_frozen, top_frozen = _online(z_frozen, m_frozen)
        if divergence == "rkl":
            d = _rescaled(scale, d + s * (shift - shift_frozen)) + _expectation(e, c - c_frozen)
        elif divergence == "fkl":
            d = _rescaled(scale_frozen, d + s_frozen * (shift_frozen - shift)) + _expectation(e_frozen, c_frozen - c)
        s_frozen, m_frozen = scale_frozen * s_frozen + e_frozen.sum(1), top_frozen
        chosen_frozen = _picked(chosen_frozen, z_frozen, first, tokens.ids)
    if entropy:
        # In place, c is not needed any more. A weight of 0 times -inf is the only NaN that is not one of s, too.
        t = _rescaled(scale, t + s * shift) + c.mul_(e).nansum(1)
    s, m = scale * s + e.sum(1), top
    chosen = _picked(chosen, z, first, tokens.ids)
    # One write of the whole state: written view by view, Dynamo would compile for every number of tokens.
    state.copy_(torch.stack((m, s, t, chosen, m_frozen, s_frozen, chosen_frozen, d)))


def merge_jsd(sums: Tensor, z: Tensor, z_frozen: Tensor, tokens: Tokens, lse: Tensor, frozen_lse: Tensor) -> None:
    """Add a slice's part of ½ KL(p ‖ mean) and of ½ KL(q ‖ mean) to `sums` [2, T], in place."""
    log_p = _tempered(_capped(z, tokens, sums.dtype), tokens) - lse[:, None]
    log_q = _tempered(_capped(z_frozen, tokens, sums.dtype), tokens) - frozen_lse[:, None]
    log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
    halves = (_expectation(log_p.exp(), log_p - log_mean), _expectation(log_q.exp(), log_q - log_mean))
    sums += 0.5 * torch.stack(halves)


def gradient(
    out: Tensor,
    z: Tensor,
    z_frozen: Tensor | None,
    first: int,
    tokens: Tokens,
    coefficients: GradientCoefficients,
    *,
    divergence: Divergence | None,
) -> None:
    """Write the gradient of a slice's raw logits into `out` [R, W], which may be z itself."""
    k = coefficients
    capped = _capped(z, tokens, k.lse.dtype)
    # A token all of whose logits are ruled out: p = 0, where -inf less -inf were NaN.
    log_p = _tempered(capped, tokens) - k.lse.masked_fill(k.lse == -torch.inf, torch.inf)[:, None]
    if k.b is None and divergence is None:
        dz = log_p.exp_().mul_(k.a[:, None])
    else:
        dz = _weighted(log_p, z_frozen, tokens, k, divergence)
    _add_chosen(dz, k.g, first, tokens.ids)
    if tokens.tempered:
        dz *= tokens.inverse_temperature[:, None]
    if tokens.softcap is not None:
        dz *= 1 - (capped / tokens.softcap).square()
    if tokens.rows is None:
        out.copy_(dz)
    else:
        out[tokens.rows] = dz.to(out.dtype)


def _weighted(
    log_p: Tensor, z_frozen: Tensor | None, tokens: Tokens, k: GradientCoefficients, divergence: Divergence | None
) -> Tensor:
    """The gradient but for the chosen tokens, where it needs log p."""
    p = log_p.exp()
    inner = k.a[:, None] if k.b is None else torch.addcmul(k.a[:, None], k.b[:, None], log_p)
    log_q = None
    if divergence is not None and z_frozen is not None and k.frozen_lse is not None and k.d is not None:
        log_q = _tempered(_capped(z_frozen, tokens, k.lse.dtype), tokens) - k.frozen_lse[:, None]
        if divergence == "rkl":
            inner = inner + k.d[:, None] * (log_p - log_q)
        elif divergence == "jsd":
            inner = inner + (0.5 * k.d)[:, None] * (log_p - torch.logaddexp(log_p, log_q) + math.log(2))
    # A token that is ruled out has p = 0 and log p = -inf: no gradient, not 0 · inf.
    dz = torch.where(p > 0, p * inner, 0.0)
    if divergence == "fkl" and log_q is not None and k.d is not None:
        dz -= k.d[:, None] * log_q.exp()
    return dz


def _capped(z: Tensor, tokens: Tokens, dtype: torch.dtype) -> Tensor:
    z = (z if tokens.rows is None else z[tokens.rows]).to(dtype)
    return z if tokens.softcap is None else tokens.softcap * torch.tanh(z / tokens.softcap)


def _tempered(capped: Tensor, tokens: Tokens) -> Tensor:
    return capped * tokens.inverse_temperature[:, None] if tokens.tempered else capped


def _online(z: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns z - m', its exp, and how sums relative to the old maximum m become sums relative to the new one m'.

    Before the first finite logit m is -inf: then there is nothing to rescale, and nothing is subtracted.
    """
    top = torch.maximum(m, z.amax(1))
    base = top.masked_fill(top == -torch.inf, 0.0)
    c = z - base[:, None]
    return c, c.exp(), (m - base).exp(), (m - base).masked_fill(m == -torch.inf, 0.0), top


def _expectation(weights: Tensor, values: Tensor) -> Tensor:
    """Σ weights · values over the slice, where a weight of 0 makes nothing of an infinite value."""
    return torch.where(weights > 0, weights * values, 0.0).sum(1)


def _rescaled(scale: Tensor, total: Tensor) -> Tensor:
    """Scale · total, where a scale that underflows to 0 makes nothing of an infinite total."""
    return torch.where(scale > 0, scale * total, 0.0)


def _picked(chosen: Tensor, z: Tensor, first: int, ids: Tensor) -> Tensor:
    inside, column = _inside(z, first, ids)
    return torch.where(inside, z.gather(1, column[:, None])[:, 0], chosen)


def _add_chosen(dz: Tensor, g: Tensor, first: int, ids: Tensor) -> None:
    inside, column = _inside(dz, first, ids)
    # One column a row, so nothing is added twice: a plain write, deterministic on every device.
    row = torch.arange(len(dz), device=dz.device)
    dz[row, column] = dz[row, column] + torch.where(inside, g, 0.0)


def _inside(z: Tensor, first: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    column = ids - first
    return (column >= 0) & (column < z.shape[1]), column.clamp(0, z.shape[1] - 1)
