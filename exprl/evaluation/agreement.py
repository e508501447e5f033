"""How far two judges agree on the same rollouts, as pure functions of arrays with weights (see `calibration`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from exprl.evaluation.bootstrap import Figure
from exprl.evaluation.calibration import (
    ACCEPTED,
    HIGHEST_SCORE,
    LOWEST_SCORE,
    auroc,
    misplacement,
)
from exprl.evaluation.ranks import rank_correlation

Array = npt.NDArray[np.float64]

BLOCK = 2**22
"""Pairs held at a time."""


def agreement(one: Array, other: Array, weights: Array) -> Array:
    """The share of rollouts of which both say correct (a score of at least 4), or neither.

    Args:
        one: [N] Likert scores.
        other: [N] those of another judge.
        weights: [..., N].

    >>> float(agreement(np.array([5.0, 2.0, 4.0, 1.0]), np.array([4.0, 5.0, 4.0, 1.0]), np.ones(4)))
    0.75
    """
    same = (one >= ACCEPTED) == (other >= ACCEPTED)
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Array = (weights @ same) / weights.sum(-1)
    return share


def kappa(one: Array, other: Array, weights: Array) -> Array:
    """Cohen's (1960): agreement beyond that of two who say correct as often, independently; NaN where none is left.

    Args:
        one: [N] Likert scores.
        other: [N].
        weights: [..., N].

    >>> float(kappa(np.array([5.0, 2.0, 4.0, 1.0]), np.array([4.0, 5.0, 4.0, 1.0]), np.ones(4)))
    0.5
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = (weights @ (scores >= ACCEPTED) / weights.sum(-1) for scores in (one, other))
        expected = first * second + (1 - first) * (1 - second)
        beyond: Array = (agreement(one, other, weights) - expected) / (1 - expected)
    return np.where(np.isclose(expected, 1), np.nan, beyond)


def kendall(one: Array, other: Array, weights: Array) -> Array:
    """Kendall's tau-b: concordant pairs less discordant ones, over pairs that are not tied; takes O(N^2).

    Args:
        one: [N].
        other: [N].
        weights: [..., N]; a pair has the product of its two.

    >>> round(float(kendall(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0]), np.ones(3))), 4)
    0.3333
    """
    codes = [np.unique(values, return_inverse=True)[1] for values in (one, other)]
    both = untied_one = untied_other = np.zeros(weights.shape[:-1])
    rows = max(1, BLOCK // max(1, len(one)))
    for start in range(0, len(one), rows):
        own = slice(start, start + rows)
        first, second = (np.sign(code[own, None] - code[None, :]).astype(np.float64) for code in codes)
        sums = [(weights[..., own] * (weights @ signs.T)).sum(-1) for signs in (first * second, first**2, second**2)]
        both, untied_one, untied_other = both + sums[0], untied_one + sums[1], untied_other + sums[2]
    with np.errstate(invalid="ignore", divide="ignore"):
        tau: Array = both / np.sqrt(untied_one * untied_other)
    return tau


def auroc_difference(one: Array, other: Array, correct: Array, weights: Array) -> Array:
    """The AUROC of the first judge less that of the second; all [N]."""
    difference: Array = auroc(one, correct > 0, weights) - auroc(other, correct > 0, weights)
    return difference


def misplacement_difference(one: Array, other: Array, correct: Array, weights: Array) -> Array:
    """The misplacement of the first judge less that of the second; all [N]."""
    difference: Array = misplacement(one, correct > 0, weights) - misplacement(other, correct > 0, weights)
    return difference


# ------------------------------------------------------------------ for `interval_of`

_ACCEPTED, _REFUSED = HIGHEST_SCORE, LOWEST_SCORE

AGREEMENT = Figure(
    of=agreement,
    lowest=(((_ACCEPTED, _REFUSED),),),
    highest=(((_ACCEPTED, _ACCEPTED),),),
)
KAPPA = Figure(of=kappa)
SPEARMAN = Figure(of=rank_correlation)
KENDALL = Figure(of=kendall)
AUROC_DIFFERENCE = Figure(of=auroc_difference)
MISPLACEMENT_DIFFERENCE = Figure(of=misplacement_difference)
