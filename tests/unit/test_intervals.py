"""Intervals over problems and seeds: against tables, scipy, and how often they cover."""

import numpy as np
import pytest
from scipy import stats

from exprl.evaluation.evaluate import EvaluationResult
from exprl.evaluation.intervals import (
    DIFFERENCE,
    T_QUANTILES,
    Interval,
    crossed_interval,
    interval_95,
    paired_interval_95,
    seed_interval,
)
from exprl.evaluation.pass_at_k import pass_at_k
from exprl.evaluation.table import differences


def _ends(interval: Interval):
    return [interval.low, interval.high]


class TestOverProblems:
    values = np.random.default_rng(3).beta(0.5, 1.5, size=60)

    @pytest.mark.parametrize(("right", "problems"), [(0, 1), (0, 8), (0, 64), (1, 8), (3, 20), (128, 256), (20, 20)])
    def test_of_zeros_and_ones_is_that_of_clopper_and_pearson(self, right, problems):
        exact = stats.binomtest(right, problems).proportion_ci(0.95, "exact")
        found = interval_95([1.0] * right + [0.0] * (problems - right))
        assert _ends(found) == pytest.approx([exact.low, exact.high], rel=0.06, abs=1e-9)
        assert found.mean == right / problems

    def test_many_problems_approach_the_normal_interval(self):
        values = np.tile(self.values, 100)
        half = 1.96 * values.std() / np.sqrt(values.size)
        assert _ends(interval_95(values)) == pytest.approx([values.mean() - half, values.mean() + half], abs=half / 20)

    @pytest.mark.parametrize("n", [1, 64])
    @pytest.mark.parametrize("problems", [8, 64])
    @pytest.mark.parametrize("mean", [0.005, 0.05, 0.5, 0.995])
    @pytest.mark.parametrize("concentration", [0.1, 10.0, None])
    def test_covers_the_mean_as_often_as_it_says(self, n, problems, mean, concentration):
        generator, trials = np.random.default_rng(7), 300
        shape = (trials, problems)
        rates = (
            np.full(shape, mean)
            if concentration is None
            else generator.beta(mean * concentration, (1 - mean) * concentration, shape)
        )
        values = generator.binomial(n, rates) / n
        found = [crossed_interval(row[None], resamples=1000) for row in values]
        covered = np.mean([each.low <= mean <= each.high for each in found])
        assert covered >= 0.93  # 300 trials of 95 % give less than 0.93 once in twenty; these cover more than that

    @pytest.mark.parametrize("mean", [0.01, 0.02])
    def test_covers_pass_at_k_of_problems_that_are_mostly_out_of_reach(self, mean):
        generator, problems, n, k = np.random.default_rng(8), 64, 64, 16
        table = np.array([pass_at_k(n, c, k) for c in range(n + 1)])
        rates = np.where(generator.random((300, problems)) < mean, 1.0, 0.0)
        found = [crossed_interval(row[None], resamples=1000) for row in table[generator.binomial(n, rates)]]
        assert np.mean([each.low <= mean <= each.high for each in found]) >= 0.93

    def test_one_problem_says_next_to_nothing(self):
        assert _ends(interval_95([0.25])) == pytest.approx([0.25 * 0.025, 1 - 0.75 * 0.025], rel=0.05)

    def test_stays_within_the_support_and_around_the_mean(self):
        for values in ([0.0] * 5, [1.0] * 5, [0.0, 1e-12], [1.0] * 300, list(self.values)):
            found = interval_95(values)
            assert 0 <= found.low <= found.mean <= found.high <= 1

    def test_is_repeatable(self):
        assert interval_95(self.values) == interval_95(list(self.values))

    def test_memory_is_bounded_for_many_problems(self):
        found = crossed_interval(np.zeros((1, 3_000_000)), resamples=2)
        assert found.low == found.mean == 0 < found.high < 1e-5

    @pytest.mark.parametrize("values", [[], [[[0.1]]], [0.1, float("nan")], [1.1], [-0.1]])
    def test_refuses_what_is_no_share(self, values):
        with pytest.raises(ValueError, match=r"one finite value a problem|values must lie in"):
            interval_95(values)

    def test_a_sum_that_rounding_put_above_one_is_a_share(self):
        assert interval_95([1.0 + 2e-16, 1.0]).mean == pytest.approx(1)


class TestDifferences:
    def test_two_policies_that_solve_nothing_may_still_differ(self):
        found = paired_interval_95([0.0] * 64, [0.0] * 64)
        reach = 1 - 0.025 ** (1 / 64)  # Clopper and Pearson's at 0 of 64
        assert _ends(found) == pytest.approx([-reach, reach], rel=0.03)

    def test_pairing_removes_what_the_problems_share(self):
        values = np.random.default_rng(3).beta(0.5, 1.5, size=60) * 0.8
        paired = paired_interval_95(values, values + 0.1)
        apart = interval_95(values)
        assert paired.mean == pytest.approx(0.1)
        assert paired.high - paired.low < np.sqrt(2) * (apart.high - apart.low)  # what two that are not paired have

    def test_covers_a_rare_gain(self):
        generator, gain = np.random.default_rng(1), 0.02
        solved = generator.random((300, 64)) < gain
        found = [paired_interval_95(np.zeros(64), row) for row in solved.astype(float)]
        assert np.mean([each.low <= gain <= each.high for each in found]) >= 0.93

    def test_refuses_other_problems(self):
        with pytest.raises(ValueError, match="same problems twice"):
            paired_interval_95([0.1, 0.2], [0.1])

    def test_an_evaluation_reports_them(self):
        nothing = EvaluationResult(
            problem_ids=("a", "b"),
            correct=(0, 0),
            samples=4,
            progress=None,
            guessed=None,
            length=1.0,
            cut_off=0.0,
            ks=(1,),
        )
        assert nothing.summary()["interval_95"]["pass@1"] == pytest.approx([0, 1 - 0.025**0.5], rel=0.03)
        assert differences(nothing, nothing)["pass@1"].high > 0.5


class TestOverSeeds:
    def test_student(self):
        means = np.random.default_rng(0).random(4)
        low, high = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
        assert _ends(seed_interval(means)) == pytest.approx([low, high], rel=1e-4)
        assert stats.t.ppf(0.975, range(1, len(T_QUANTILES) + 1)) == pytest.approx(T_QUANTILES, abs=1e-4)
        assert _ends(seed_interval(np.arange(50.0)))[1] > stats.t.interval(0.95, 49, 24.5, stats.sem(np.arange(50)))[1]

    def test_reaches_as_far_as_either(self):
        values = np.random.default_rng(1).random((3, 40))
        parts = crossed_interval(values), seed_interval(values.mean(1))
        assert _ends(interval_95(values)) == [min(p.low for p in parts), max(p.high for p in parts)]
        assert interval_95(values[:1]) == crossed_interval(values[:1]) == interval_95(values[0])

    def test_of_many_problems_is_that_of_resampling_seeds(self):
        # the spread over problems is gone, what remains is each of the 3^3 draws of seeds
        means = np.array([0.2, 0.5, 0.6])
        found = crossed_interval(np.repeat(means[:, None], 20_000, axis=1), resamples=2000)
        draws = np.array(np.meshgrid(means, means, means)).reshape(3, -1).mean(0)
        assert _ends(found) == pytest.approx([draws.min(), draws.max()], abs=0.005)  # each 1 in 27 > 2.5 %

    def test_seeds_that_differ_widen_it(self):
        problems = np.random.default_rng(5).random(50) * 0.4 + 0.3
        equal = np.stack([problems] * 4)
        narrow, wide = map(
            _ends, (crossed_interval(equal), crossed_interval(equal + np.array([[-0.3], [-0.1], [0.1], [0.3]])))
        )
        assert narrow == pytest.approx(_ends(crossed_interval(problems[None])), abs=0.005)
        assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])

    def test_seeds_that_solve_nothing_do_not_make_it_certain(self):
        assert interval_95(np.zeros((5, 61))).high == pytest.approx(1 - 0.025 ** (1 / 61), rel=0.03)

    def test_a_seed_interval_stays_within_what_can_be(self):
        assert _ends(interval_95(np.array([[0.0] * 9, [1.0] * 9]))) == [0, 1]

    @pytest.mark.parametrize("seeds", [2, 3])
    def test_few_seeds_that_differ_are_rarely_taken_for_an_effect(self, seeds):
        # No effect but that of the seed: resampling alone says there is one far more often than 1 time in 20.
        generator = np.random.default_rng(seeds)
        studies = [generator.normal(0, 0.2, (seeds, 1)) + generator.normal(0, 0.01, (seeds, 150)) for _ in range(80)]
        hull = [_ends(interval_95(study, DIFFERENCE)) for study in studies]
        resampled = [_ends(crossed_interval(study, DIFFERENCE, resamples=1000)) for study in studies]
        wrong = [sum(not low <= 0 <= high for low, high in intervals) / 80 for intervals in (hull, resampled)]
        assert wrong[0] <= 0.08 < wrong[1]

    @pytest.mark.parametrize("values", [np.zeros((0, 3)), np.full((2, 2), np.nan)])
    def test_refuses_what_has_no_mean(self, values):
        with pytest.raises(ValueError, match="one finite value a problem"):
            interval_95(values)
