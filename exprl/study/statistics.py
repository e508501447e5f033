"""Intervals of a mean over seeds and problems."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from exprl.evaluation.pass_at_k import Interval

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.uint16]

CHUNK = 512  # resamples multiplied at a time, which takes less memory than all of them

T_QUANTILES = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
)
"""Student's t at 97.5 % for 1, 2, … degrees of freedom; the last one serves for more as well."""


def interval_95(values: Array) -> Interval:
    """The 95 % interval of a mean over seeds and problems: the wider reach, to each side, of two.

    - `crossed_bootstrap` knows of the spread over problems, but takes the few seeds there are for all there could be.
    - `seed_interval`, Student's t over the seeds' own means, knows how little few seeds say, but nothing of problems.

    With one seed it is the bootstrap over problems alone and says nothing of other seeds. For a paired difference give
    the difference of two arms, seed by seed and problem by problem.

    Args:
        values: [S, P] one value a seed and problem.

    Raises:
        ValueError: no values, or one is not finite.
    """
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"needs one finite value a seed and problem, but got an array of shape {values.shape}")
    # A report asks for the same intervals in the file, in the tables and in the plots.
    return _interval_95(np.ascontiguousarray(values, dtype=np.float64).tobytes(), values.shape)


@lru_cache(maxsize=4096)
def _interval_95(data: bytes, shape: tuple[int, ...]) -> Interval:
    values = np.frombuffer(data, dtype=np.float64).reshape(shape)
    both = crossed_bootstrap(values)
    if len(values) == 1:
        return both
    seeds = seed_interval(values.mean(axis=1))
    return Interval(low=min(both.low, seeds.low), high=max(both.high, seeds.high), mean=both.mean)


def seed_interval(means: Array) -> Interval:
    """Student's 95 % interval of the mean of S ≥ 2 seeds' means: right for normal ones, however few."""
    count = len(means)
    quantile = T_QUANTILES[min(count - 1, len(T_QUANTILES)) - 1]
    mean, half = float(means.mean()), float(quantile * means.std(ddof=1) / np.sqrt(count))
    return Interval(low=mean - half, high=mean + half, mean=mean)


def crossed_bootstrap(values: Array, seed: int = 0, resamples: int = 10_000) -> Interval:
    """95 % percentile interval with seeds and problems both resampled (Owen 2007, the pigeonhole bootstrap).

    Each resample draws S seeds and, apart from them, P problems, with replacement, and takes the mean over all pairs of
    the two. So what a lucky seed gives to all problems, and what an easy problem gives to all seeds, widens the
    interval. With few seeds it is too narrow for what seeds do; see `interval_95`.

    Args:
        values: [S, P] one value a seed and problem.
        seed: makes the interval repeatable.
        resamples: how often both are drawn.
    """
    by_seed, by_problem = resampled(*values.shape, seed, resamples)
    means = [
        ((by_seed[start : start + CHUNK] @ values) * by_problem[start : start + CHUNK]).sum(1) / values.size
        for start in range(0, resamples, CHUNK)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(low=float(low), high=float(high), mean=float(values.mean()))


@lru_cache(maxsize=2)
def resampled(seeds: int, problems: int, seed: int, resamples: int) -> tuple[Counts, Counts]:
    """How often each resample has each seed, [R, S], and each problem, [R, P]."""
    generator = np.random.default_rng(seed)
    drawn = (generator.multinomial(n, np.full(n, 1 / n), size=resamples) for n in (seeds, problems))
    by_seed, by_problem = (counts.astype(np.uint16) for counts in drawn)
    return by_seed, by_problem
