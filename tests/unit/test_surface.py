"""What the surface of a response explains: partial correlations against their formula, variance out of sample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from exprl.evaluation import surface as figures
from exprl.evaluation.bootstrap import FEWEST, interval_of
from exprl.evaluation.localisation import Graded
from exprl.study.explained import EXPLAINED, POSITION, explained


def made(seed: int, count: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    random = np.random.default_rng(seed)
    correct = (random.random(count) < 0.4).astype(float)
    features = np.column_stack([random.integers(1, 9, count), random.random(count)]).astype(float)
    scores = 2 + correct + 0.3 * features[:, 0] + random.normal(0, 0.5, count)
    return features, scores, correct, (np.arange(count) // 2).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_a_partial_correlation_is_that_of_its_formula(seed: int) -> None:
    features, scores, correct, _ = made(seed)
    x, y, z = features[:, 0], scores, correct
    of = {
        pair: stats.spearmanr(*pair_values).statistic
        for pair, pair_values in zip(("xy", "xz", "yz"), ((x, y), (x, z), (y, z)), strict=True)
    }
    expected = (of["xy"] - of["xz"] * of["yz"]) / np.sqrt((1 - of["xz"] ** 2) * (1 - of["yz"] ** 2))
    assert figures.partial_rank_correlation(x, y, z, np.ones(len(x))) == pytest.approx(expected, abs=1e-12)
    weights = np.random.default_rng(seed).exponential(size=(3, len(x)))
    assert figures.partial_rank_correlation(x, y, z, weights) == pytest.approx(
        [float(figures.partial_rank_correlation(x, y, z, own)) for own in weights]
    )


def test_what_follows_from_correctness_alone_is_not_called_style() -> None:
    """Right rollouts are longer and score higher, and within each kind length says nothing."""
    random = np.random.default_rng(0)
    correct = np.arange(400) % 2
    length, scores = 10 * correct + random.random(400), 3 * correct + random.random(400)
    assert stats.spearmanr(length, scores).statistic > 0.6
    partial = figures.partial_rank_correlation(length, scores, correct, np.ones(400))
    assert abs(partial) < 0.15


@pytest.mark.parametrize("seed", range(2))
def test_the_variance_is_explained_out_of_sample_as_scikit_learn_does(seed: int) -> None:
    features, scores, correct, problems = made(seed)
    by_group, by_all = figures.residuals(features, scores, correct, problems, seed)
    fold = figures.folds_of(problems, seed)
    assert all(len({fold[place] for place in np.flatnonzero(np.array(problems) == name)}) == 1 for name in problems)
    ranked = np.column_stack([stats.rankdata(column) for column in features.T])
    for design, ours in ((correct[:, None], by_group), (np.column_stack([correct, ranked]), by_all)):
        foretold = cross_val_predict(LinearRegression(), design, scores, cv=PredefinedSplit(fold))
        assert ours == pytest.approx(scores - foretold, abs=1e-9)
    share = figures.explained_variance(by_group, by_all, np.ones(len(scores)))
    assert share == pytest.approx(1 - (by_all**2).sum() / (by_group**2).sum())
    assert share > 0.4


def test_features_that_say_nothing_explain_nothing() -> None:
    random = np.random.default_rng(5)
    features, correct = random.random((300, 6)), np.arange(300) % 2
    left = figures.residuals(features, random.random(300), correct, list(range(300)))
    assert figures.explained_variance(*left, np.ones(300)) < 0.02, "in sample six features would explain 2 %"


def test_a_feature_of_one_rollout_alone_foretells_nothing() -> None:
    """Where it is left out, the feature is constant among the others, and no slope is known."""
    random = np.random.default_rng(0)
    rare = np.zeros((40, 1))
    rare[7] = 1.0
    by_group, by_all = figures.residuals(rare, 2 + random.random(40), np.arange(40) % 2, list(range(40)))
    assert by_all[7] == pytest.approx(by_group[7])
    assert figures.explained_variance(by_group, by_all, np.ones(40)) == pytest.approx(0, abs=0.1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 3])
def test_of_one_problem_nothing_is_foretold_and_nothing_warned(count: int) -> None:
    scores = np.arange(count, dtype=float)
    left = figures.residuals(scores[:, None], scores, np.zeros(count), ["p"] * count)
    assert np.isnan(left).all()
    assert np.isnan(figures.explained_variance(*left, np.ones(count)))


def test_a_constant_score_has_no_variance_to_explain() -> None:
    features, _, correct, problems = made(0)
    left = figures.residuals(features, np.full(len(correct), 3.0), correct, problems)
    assert np.isnan(figures.explained_variance(*left, np.ones(len(correct))))


@pytest.mark.parametrize(
    ("name", "plain", "more"),
    [
        ("length", "x = 1", "x = 1 and that is all"),
        ("lines", "a\nb\n\n", "a\nb\nc"),
        ("mark-up", "so x is 1", "so **x** is $1$"),
        ("mark-up", "one\ntwo", "- one\n2. two"),
        ("hedging", "x is 1", "x is perhaps 1"),
        ("certain", "x is 1", "x is clearly 1"),
        ("claims", "x is 1", "x is 1. Level: 5"),
        ("claims", "x is 1", "x is 1 ✓"),
        ("claims", "x is 1", "the final answer is \\boxed{1}"),
    ],
)
def test_a_feature_counts_what_it_is_called(name: str, plain: str, more: str) -> None:
    assert figures.FEATURES[name](plain) < figures.FEATURES[name](more)


@pytest.mark.parametrize(("problems", "said"), [(3, False), (FEWEST - 1, False), (FEWEST, True)])
def test_few_problems_say_nothing_of_a_correlation(problems: int, said: bool) -> None:
    """However many rollouts they have: the intervals of three leave 0 out nearly every second time."""
    random = np.random.default_rng(1)
    columns = [*random.random((2, 6 * problems)), np.arange(6 * problems) % 2]
    found = interval_of(figures.PARTIAL_RANK_CORRELATION, columns, np.arange(problems).repeat(6).tolist())
    assert np.isfinite([found.low, found.mean, found.high]).tolist() == [said] * 3


def test_a_judge_of_length_is_found_out() -> None:
    random = np.random.default_rng(2)
    rollouts = [
        Graded(
            place=place,
            problem_id=f"p{place // 2}",
            domain="math",
            text="word " * int(length),
            correct=bool(place % 3),
            scores=(1.0, 1.0 + length / 50),
            first_wrong=None if place % 3 else 0,
        )
        for place, length in enumerate(random.integers(1, 200, 90))
    ]
    found = explained(rollouts, seed=0, resamples=200)
    assert found["length"].mean == pytest.approx(1)
    assert found[EXPLAINED].low > 0.9
    assert found[POSITION].low > 0.5, "later prefixes score higher, whether or not they have an error"
    assert np.isnan(found["hedging"].mean), "nobody hedges"
