"""Intervals over seeds and problems: against every resample there is, scipy, and what chance alone does."""

import itertools

import numpy as np
import pytest
from scipy import stats

from exprl.evaluation.pass_at_k import Interval, bootstrap
from exprl.study.statistics import T_QUANTILES, crossed_bootstrap, interval_95, seed_interval


def brute_force(values):
    """Every resample of seeds and problems there is."""
    seeds, problems = values.shape
    return np.array(
        [
            values[np.ix_(rows, columns)].mean()
            for rows in itertools.product(range(seeds), repeat=seeds)
            for columns in itertools.product(range(problems), repeat=problems)
        ]
    )


class TestBootstrap:
    values = np.random.default_rng(1).random((3, 4))

    def test_is_that_of_all_resamples(self):
        ours = crossed_bootstrap(self.values, resamples=200_000)
        low, high = np.quantile(brute_force(self.values), [0.025, 0.975])
        assert ours.mean == pytest.approx(self.values.mean())
        assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.005)

    def test_a_paired_difference_is_too(self):
        other = self.values + np.random.default_rng(2).normal(0.1, 0.3, self.values.shape)
        ours = crossed_bootstrap(other - self.values, resamples=200_000)
        low, high = np.quantile(brute_force(other - self.values), [0.025, 0.975])
        assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.01)

    def test_of_one_seed_agrees_with_scipy(self):
        values = np.random.default_rng(3).beta(0.5, 1.5, size=60)
        theirs = stats.bootstrap(
            (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(4)
        ).confidence_interval
        ours = crossed_bootstrap(values[None])
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)

    def test_seeds_that_differ_widen_it(self):
        problems = np.random.default_rng(5).random(50)
        equal = np.stack([problems] * 4)
        apart = equal + np.array([[-0.3], [-0.1], [0.1], [0.3]])
        narrow, wide = crossed_bootstrap(equal), crossed_bootstrap(apart)
        assert narrow.high - narrow.low == pytest.approx(np.diff(_ends(bootstrap(problems)))[0], abs=0.01)
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)

    def test_is_repeatable(self):
        assert crossed_bootstrap(self.values) == crossed_bootstrap(self.values)


class TestInterval:
    def test_student(self):
        means = np.random.default_rng(0).random(4)
        low, high = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
        assert _ends(seed_interval(means)) == pytest.approx([low, high], rel=1e-4)
        assert stats.t.ppf(0.975, range(1, len(T_QUANTILES) + 1)) == pytest.approx(T_QUANTILES, abs=1e-4)
        assert _ends(seed_interval(np.arange(50.0)))[1] > stats.t.interval(0.95, 49, 24.5, stats.sem(np.arange(50)))[1]

    def test_reaches_as_far_as_either(self):
        values = np.random.default_rng(1).random((3, 40))
        parts = crossed_bootstrap(values), seed_interval(values.mean(1))
        assert _ends(interval_95(values)) == [min(p.low for p in parts), max(p.high for p in parts)]
        assert interval_95(values[:1]) == crossed_bootstrap(values[:1])

    @pytest.mark.parametrize("seeds", [2, 3, 5])
    def test_few_seeds_that_differ_are_rarely_taken_for_an_effect(self, seeds):
        # No effect but that of the seed: the bootstrap alone says there is one far more often than 1 time in 20.
        generator = np.random.default_rng(seeds)
        studies = [generator.normal(0, 0.05, (seeds, 1)) + generator.normal(0, 0.05, (seeds, 20)) for _ in range(150)]
        wrong = [
            sum(not low <= 0 <= high for low, high in map(_ends, map(kind, studies))) / 150
            for kind in (interval_95, crossed_bootstrap)
        ]
        assert wrong[0] <= 0.08 < wrong[1]

    @pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 3)), np.full((2, 2), np.nan)])
    def test_refuses_what_has_no_mean(self, values):
        with pytest.raises(ValueError, match="one finite value a seed and problem"):
            interval_95(values)


def _ends(interval: Interval):
    return [interval.low, interval.high]
