"""How good a judge's scores are against labels, as pure functions of arrays.

Every figure takes weights, so that a bootstrap is one call: `[N]` weights give a number, `[R, N]` weights R of them.
A figure that the data cannot give, such as an area under a curve without positives, is NaN. Those in capitals are the
same with what `bootstrap.interval_of` must know of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from exprl.evaluation.bootstrap import Figure

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

ACCEPTED = 4.0
"""The judge says correct from this Likert score on (ExpRL, judge calibration)."""
BINS = 10

LOWEST_SCORE, HIGHEST_SCORE = -np.inf, np.inf
"""Below and above every score: what an unseen problem's rollouts may get."""
RIGHT, WRONG = 1.0, 0.0


def misplacement(scores: Array, correct: Flags, weights: Array) -> Array:
    """(FNR + FPR) / 2 of "correct iff the score is at least 4" (ExpRL, arXiv:2606.17024).

    Args:
        scores: [N] Likert scores.
        correct: [N] labels.
        weights: [..., N].

    >>> scores, correct = np.array([5.0, 2.0, 4.0, 1.0]), np.array([True, True, False, False])
    >>> float(misplacement(scores, correct, np.ones(4)))
    0.5
    """
    accepted, correct = scores >= ACCEPTED, np.asarray(correct, dtype=bool)
    return (_share(~accepted, correct, weights) + _share(accepted, ~correct, weights)) / 2


def auroc(scores: Array, positive: Flags, weights: Array) -> Array:
    """The chance that a positive one has a higher score than a negative one, ties counting half.

    Args:
        scores: [N].
        positive: [N].
        weights: [..., N].

    >>> float(auroc(np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True]), np.ones(4)))
    0.875
    """
    order = np.argsort(scores, kind="stable")
    ranked, up = scores[order], np.asarray(positive, dtype=bool)[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else np.zeros(0, np.intp)
    w = weights[..., order]
    of_ties = [np.add.reduceat(w * mask, first, axis=-1) if len(first) else w for mask in (up, ~up)]
    positives, negatives = of_ties
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Array = (positives * below).sum(-1) / (positives.sum(-1) * negatives.sum(-1))
    return area


def calibration_error(confidence: Array, correct: Flags, weights: Array) -> Array:
    """The expected calibration error in `BINS` equal bins (Guo et al. 2017, arXiv:1706.04599).

    Args:
        confidence: [N] in [0, 1], the score read as the probability of being right.
        correct: [N].
        weights: [..., N].

    >>> float(calibration_error(np.array([0.05, 0.05, 0.95]), np.array([False, True, True]), np.ones(3)).round(4))
    0.3167
    """
    inside = _membership(confidence)
    gaps = (weights * (correct - confidence)) @ inside
    with np.errstate(invalid="ignore", divide="ignore"):
        error: Array = np.abs(gaps).sum(-1) / weights.sum(-1)
    return error


def reliability(confidence: Array, correct: Flags) -> tuple[Array, Array, Array]:
    """Of each of `BINS` bins mean confidence, share of right ones, and how many there are; NaN where there are none."""
    inside = _membership(confidence)
    counts = inside.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return confidence @ inside / counts, correct @ inside / counts, counts


def mean(values: Array, weights: Array) -> Array:
    """The weighted mean of [N] values; NaN of none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = (weights @ values) / weights.sum(-1)
    return found


def mean_within(low: float, high: float) -> Figure:
    """The mean of values that lie between two."""
    return Figure(of=mean, lowest=(((low,),),), highest=(((high,),),))


_WORST = ((LOWEST_SCORE, RIGHT), (HIGHEST_SCORE, WRONG))
_BEST = ((HIGHEST_SCORE, RIGHT), (LOWEST_SCORE, WRONG))

MISPLACEMENT = Figure(of=misplacement, lowest=(_BEST,), highest=(_WORST,), by=1)
AUROC = Figure(of=auroc, lowest=(_WORST,), highest=(_BEST,), by=1)
CALIBRATION_ERROR = Figure(
    of=calibration_error,
    lowest=(((1.0, RIGHT),), ((0.0, WRONG),)),
    highest=(((1.0, WRONG),), ((0.0, RIGHT),)),
)
SHARE = mean_within(0.0, 1.0)


def _share(hit: Flags, among: Flags, weights: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Array = (weights @ (hit & among)) / (weights @ among)
    return share


def _membership(confidence: Array) -> Array:
    """[N, BINS] which bin each is in; 1 belongs to the last."""
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    members: Array = np.eye(BINS)[places]
    return members
