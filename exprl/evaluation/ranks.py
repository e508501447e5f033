"""Spearman's rank correlation with weights, so that a bootstrap over problems is one call."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_ROUNDING = 1e-12
"""Variance of ranks, which lie in [0, 1], below which there is nothing to correlate."""


def rank_correlation(one: Array, other: Array, weights: Array) -> Array:
    """Spearman's rho: the correlation of the ranks, ties sharing their middle; NaN where one side is all the same.

    An entry of weight w counts as w entries, so whole weights are the same as repeated entries.

    Args:
        one: [N].
        other: [N].
        weights: [..., N] at least 0.

    >>> float(rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]), np.ones(3)))
    0.5
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = weights / weights.sum(-1, keepdims=True)
    return correlation(ranks(one, shares), ranks(other, shares), shares)


def correlation(one: Array, other: Array, shares: Array) -> Array:
    """Pearson's of two [..., N] that lie about as far apart as ranks do; NaN where one side is all the same."""
    first, second = (_centred(values, shares) for values in (one, other))
    variances = (shares * first**2).sum(-1), (shares * second**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: Array = (shares * first * second).sum(-1) / np.sqrt(variances[0] * variances[1])
    return np.where(np.minimum(*variances) > _ROUNDING, np.clip(rho, -1.0, 1.0), np.nan)


def ranks(values: Array, shares: Array) -> Array:
    """[..., N] the share of all that lies below each of [N] values, ties counting half.

    >>> ranks(np.array([5.0, 7.0, 7.0, 9.0]), np.full(4, 0.25)).tolist()
    [0.125, 0.5, 0.5, 0.875]
    """
    _, codes = np.unique(values, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(codes[order]) > 0]) if len(codes) else np.zeros(0, np.intp)
    of_ties = np.add.reduceat(shares[..., order], first, axis=-1) if len(codes) else shares
    below: Array = (np.cumsum(of_ties, axis=-1) - of_ties / 2)[..., codes]
    return below


def _centred(of_ranks: Array, shares: Array) -> Array:
    centred: Array = of_ranks - (shares * of_ranks).sum(-1, keepdims=True)
    return centred
