"""Exposure of a planted secret: how far up it stands among all that it could have been.

Carlini et al. 2019, "The Secret Sharer", arXiv:1802.08232, section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from exprl.evaluation.intervals import Interval, crossed_interval, seed_interval

Array = npt.NDArray[np.float64]


def rank(logprobs: Sequence[float] | Array, place: int) -> float:
    """The rank of one among all by log-prob, 1 the likeliest; of equals the middle one, so that a tie tells nothing.

    >>> rank([-3.0, -1.0, -2.0], 2), rank([-1.0, -1.0, -1.0], 0)
    (2.0, 2.0)
    """
    array = np.asarray(logprobs, dtype=np.float64)
    own = array[place]
    return 1.0 + float((array > own).sum()) + (float((array == own).sum()) - 1.0) / 2.0


def exposure(rank: float, values: int) -> float:
    """log2 of `values` less log2 of the rank, in bits: 0 for the unlikeliest, all of the secret for the likeliest.

    >>> exposure(1, 1024), exposure(512, 1024)
    (10.0, 1.0)
    """
    return math.log2(values) - math.log2(rank)


def chance_exposure(values: int) -> float:
    """What exposure is on average where the policy knows nothing, so that every rank is as likely: about 1.44 bits.

    >>> round(chance_exposure(2), 2), round(chance_exposure(1000), 2)
    (0.5, 1.44)
    """
    return math.log2(values) - (math.lgamma(values + 1) / math.log(2)) / values


def interval_of(runs: Sequence[Sequence[float]], support: tuple[float, float]) -> Interval:
    """The 95 % interval of the mean over the facts of all runs, which are facts of their own in each.

    The wider reach, to each side, of a bootstrap over facts (`crossed_interval`) and, of several runs, Student's t over
    their means (`seed_interval`).

    Args:
        runs: for each run a value a fact.
        support: the smallest and the largest value there can be.
    """
    facts = crossed_interval(np.concatenate([np.asarray(run, dtype=np.float64) for run in runs])[None], support)
    if len(runs) == 1:
        return facts
    seeds = seed_interval(np.array([np.mean(run) for run in runs]))
    low, high = max(min(facts.low, seeds.low), support[0]), min(max(facts.high, seeds.high), support[1])
    return Interval(low=low, high=high, mean=facts.mean)
