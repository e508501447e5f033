"""Intervals of means of bounded values over problems, and over seeds, that also hold near the ends of the range.

A bootstrap knows only what was seen: where no sample was right it says "0 to 0", from one problem or from a thousand.
Here each end of the interval is reckoned as if one more problem had been seen, at that end of what values can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RESAMPLES = 10_000
CHUNK = 2**22
"""Weights drawn at a time, which bounds memory at a hundred MB for any number of problems."""

ROUNDING = 1e-9
"""How far a value that is a sum may lie outside its support."""

SHARE = (0.0, 1.0)
"""What a share, such as pass@k, can be."""
DIFFERENCE = (-1.0, 1.0)
"""What a difference of two shares can be."""

T_QUANTILES = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)
"""Student's t at 97.5 % for 1, 2, … degrees of freedom; the last one serves for more as well."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its confidence interval."""

    low: float
    high: float
    mean: float


def interval_95(values: Sequence[float] | Array, support: tuple[float, float] = SHARE) -> Interval:
    """The 95 % interval of a mean over problems, or over seeds and problems: the wider reach, to each side, of two.

    - `crossed_interval` knows of the spread over problems, but takes the few seeds there are for all there could be.
    - `seed_interval`, Student's t over the seeds' own means, knows how little few seeds say, but nothing of problems.

    With one seed it is the first alone and says nothing of other seeds.

    Args:
        values: [P] one value a problem, or [S, P] one a seed and problem.
        support: the smallest and the largest value there can be; the interval stays within.

    Raises:
        ValueError: no values, or one is not finite or outside the support.

    >>> nothing = interval_95([0.0] * 64)
    >>> nothing.low, nothing.mean, round(nothing.high, 2)  # of 64 problems none was solved
    (0.0, 0.0, 0.06)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"needs one finite value a problem, or a seed and problem, but got shape {array.shape}")
    within = np.clip(array, *support)
    if np.abs(within - array).max() > ROUNDING:
        raise ValueError(f"values must lie in {support}, but reach from {array.min()} to {array.max()}")
    # A report asks for the same intervals in the file, in the tables and in the plots.
    table = np.ascontiguousarray(np.atleast_2d(within))
    return _interval_95(table.tobytes(), table.shape, support)


def paired_interval_95(before: Sequence[float] | Array, after: Sequence[float] | Array) -> Interval:
    """The interval of the mean of `after - before`, two shares of each problem (and seed); both [P] or [S, P].

    Raises:
        ValueError: the two are not of the same shape, or see `interval_95`.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a paired interval needs the same problems twice, but got {first.shape} and {second.shape}")
    return interval_95(second - first, DIFFERENCE)


@lru_cache(maxsize=4096)
def _interval_95(data: bytes, shape: tuple[int, ...], support: tuple[float, float]) -> Interval:
    values = np.frombuffer(data, dtype=np.float64).reshape(shape)
    both = crossed_interval(values, support)
    if len(values) == 1:
        return both
    seeds = seed_interval(values.mean(axis=1))
    low, high = max(min(both.low, seeds.low), support[0]), min(max(both.high, seeds.high), support[1])
    return Interval(low=low, high=high, mean=both.mean)


def crossed_interval(
    values: Array, support: tuple[float, float] = SHARE, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """95 % interval of the mean of bounded values, with seeds and problems both resampled.

    For one seed it is Gaffke's (2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a
    nonnegative variable"; Learned-Miller and Thomas 2019, arXiv:1905.06208): problems get the weights of the Bayesian
    bootstrap (Rubin 1981), uniform on the simplex, together with one more problem that has the largest value there can
    be for the upper end, and the smallest for the lower. Of values that are 0 or 1 it is Clopper and Pearson's
    interval. It is conjectured to cover at least as often as it says for any distribution on the support;
    `benchmarks/intervals.py` measures it. Seeds are drawn apart from problems, with replacement, and the mean is taken
    over all pairs (Owen 2007, the pigeonhole bootstrap): so what a lucky seed gives to all problems, and what an easy
    problem gives to all seeds, widens it. With few seeds it is too narrow for what seeds do; see `interval_95`.

    Args:
        values: [S, P] one value a seed and problem.
        support: the smallest and the largest value there can be.
        seed: makes the interval repeatable.
        resamples: how often weights are drawn.
    """
    generator = np.random.default_rng(seed)
    problems = values.shape[1]
    rows = max(1, CHUNK // (problems + 1))
    drawn = [_resampled(values, min(rows, resamples - start), generator) for start in range(0, resamples, rows)]
    sums, spare = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    mean = float(values.mean())
    low, high = np.quantile(sums + spare * support[0], 0.025), np.quantile(sums + spare * support[1], 0.975)
    # weights that sum to almost 1 must put neither the mean outside the interval nor the interval outside the support
    return Interval(low=max(min(float(low), mean), support[0]), high=min(max(float(high), mean), support[1]), mean=mean)


def _resampled(values: Array, count: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """[count] weighted sums over the problems that were seen, and [count] weights of the one that was not."""
    seeds, problems = values.shape
    weights = problem_weights(count, problems, generator)
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
    by_seed = weights[:, :-1] @ values.T  # [count, S]
    return (by_seed * of_seeds).sum(axis=1), weights[:, -1]


def problem_weights(count: int, problems: int, generator: np.random.Generator) -> Array:
    """[count, P + 1] weights of the P problems and of the unseen one, each row uniform on the simplex."""
    weights: Array = generator.standard_exponential((count, problems + 1))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def seed_interval(means: Array) -> Interval:
    """Student's 95 % interval of the mean of S ≥ 2 seeds' means: right for normal ones, however few."""
    count = len(means)
    quantile = T_QUANTILES[min(count - 1, len(T_QUANTILES)) - 1]
    mean, half = float(means.mean()), float(quantile * means.std(ddof=1) / np.sqrt(count))
    return Interval(low=mean - half, high=mean + half, mean=mean)
