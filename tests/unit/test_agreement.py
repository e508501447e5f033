"""Judges compared: the figures of scikit-learn and scipy, pairs on what both graded, and equal weights for both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from exprl.evaluation import agreement as figures
from exprl.evaluation.bootstrap import interval_of
from exprl.evaluation.calibration import AUROC
from exprl.evaluation.localisation import Graded
from exprl.evaluation.ranks import rank_correlation
from exprl.study.calibration import CHANCE, Calibration
from exprl.study.compared import pair_of, pairs_of, sheet_of

OPTIONS = Calibration(experiment="quickstart", judges={"x": {"name": "reference_steps"}}, resamples=200)


def scores(seed: int, count: int = 50) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    one = random.integers(1, 6, count).astype(float)  # with ties
    return one, np.clip(one + random.normal(0, 1.5, count).round(1), 1, 5)


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_scikit_learn_and_scipy(seed: int) -> None:
    one, other = scores(seed)
    weights = np.random.default_rng(seed).integers(1, 4, len(one))
    accepted = [own >= 4 for own in (one, other)]
    assert figures.agreement(one, other, weights) == pytest.approx(
        metrics.accuracy_score(*accepted, sample_weight=weights), abs=1e-12
    )
    assert figures.kappa(one, other, weights) == pytest.approx(
        metrics.cohen_kappa_score(*accepted, sample_weight=weights), abs=1e-12
    )
    repeated = [np.repeat(own, weights) for own in (one, other)]
    assert rank_correlation(one, other, weights) == pytest.approx(stats.spearmanr(*repeated).statistic, abs=1e-12)
    assert figures.kendall(one, other, weights) == pytest.approx(stats.kendalltau(*repeated).statistic, abs=1e-12)
    correct = np.random.default_rng(seed + 9).random(len(one)) < 0.4
    expected = [metrics.roc_auc_score(correct, own, sample_weight=weights) for own in (one, other)]
    assert figures.auroc_difference(one, other, correct, weights) == pytest.approx(expected[0] - expected[1], abs=1e-12)
    balanced = [metrics.balanced_accuracy_score(correct, own, sample_weight=weights) for own in accepted]
    assert figures.misplacement_difference(one, other, correct, weights) == pytest.approx(
        balanced[1] - balanced[0], abs=1e-12
    )


def test_many_weights_at_once_are_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = scores(7)
    weights = np.random.default_rng(1).exponential(size=(5, len(one)))
    for figure in (figures.agreement, figures.kappa, rank_correlation, figures.kendall):
        assert figure(one, other, weights) == pytest.approx([float(figure(one, other, own)) for own in weights])
    whole = figures.kendall(one, other, weights)
    monkeypatch.setattr(figures, "BLOCK", 3 * len(one))
    assert figures.kendall(one, other, weights) == pytest.approx(whole), "in blocks of three rows"


def test_what_a_constant_judge_cannot_say_is_nan() -> None:
    constant, varied = np.full(4, 5.0), np.array([1.0, 2.0, 4.0, 5.0])
    ones = np.ones(4)
    assert np.isnan(rank_correlation(constant, varied, ones))
    assert np.isnan(figures.kendall(constant, varied, ones))
    assert np.isnan(figures.kappa(constant, constant, ones))
    assert figures.kappa(constant, varied, ones) == 0


def test_a_judge_and_itself_differ_by_nothing_in_every_resample() -> None:
    one, _ = scores(0)
    correct = np.arange(len(one)) % 2
    same = interval_of(figures.AUROC_DIFFERENCE, [one, one, correct], list(range(len(one))), resamples=100)
    assert same.mean == 0
    assert np.isnan([same.low, same.high]).all(), "nothing seen says how far others would differ"


def test_differences_are_paired() -> None:
    """Two judges that err on the same problems: the interval of the difference is narrower than that of either."""
    random = np.random.default_rng(3)
    correct = random.random(200) < 0.5
    one = np.clip(3 + 1.0 * correct + random.normal(0, 1.5, 200), 1, 5)
    other = np.clip(one - 0.3 + random.normal(0, 0.1, 200), 1, 5)
    problems = list(range(200))
    difference = interval_of(figures.AUROC_DIFFERENCE, [one, other, correct], problems, resamples=400)
    alone = interval_of(AUROC, [one, correct], problems, resamples=400)
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)


# ------------------------------------------------------------------ pairs


def graded(place: int, score: float, correct: bool) -> Graded:
    return Graded(
        place=place,
        problem_id=f"p{place}",
        domain="math",
        text="x",
        correct=correct,
        scores=(score,),
        first_wrong=None,
    )


def test_a_failed_judgement_takes_out_its_own_pair_alone() -> None:
    one = [graded(place, 1.0 + place % 5, place % 2 == 0) for place in range(10)]
    other = [replace(own, scores=(own.scores[0],)) for own in one if own.place != 4]  # its judgement failed
    third = list(one)
    arms = {("a", "right"): one, ("b", "right"): other, ("c", "right"): third, (CHANCE, "–"): one}
    pairs = {(pair.first[0], pair.second[0]): pair for pair in pairs_of(arms, OPTIONS)}
    assert {name: pair.rollouts for name, pair in pairs.items()} == {("a", "b"): 9, ("a", "c"): 10, ("b", "c"): 9}
    assert pairs["a", "b"].measures["agreement"].mean == 1


def test_few_problems_have_no_correlations_and_no_differences() -> None:
    one = [graded(place, 1.0 + place % 5, place % 2 == 0) for place in range(6)]
    other = [replace(own, scores=(6 - own.scores[0],)) for own in one]
    measures = pair_of(("a", "right"), ("b", "right"), one, other, OPTIONS).measures
    assert [name for name, found in measures.items() if not np.isnan(found.mean)] == ["agreement"]


def test_pairs_are_of_one_judge_or_one_reference() -> None:
    one = [graded(place, 1.0 + place % 5, place % 2 == 0) for place in range(4)]
    arms = {(judge, reference): one for judge in "ab" for reference in ("right", "wrong")}
    assert [(pair.first, pair.second) for pair in pairs_of(arms, OPTIONS)] == [
        (("a", "right"), ("a", "wrong")),
        (("a", "right"), ("b", "right")),
        (("a", "wrong"), ("b", "wrong")),
        (("b", "right"), ("b", "wrong")),
    ]


def test_judges_that_graded_nothing_in_common_have_no_figures() -> None:
    pair = pair_of(("a", "right"), ("b", "right"), [graded(0, 5, True)], [graded(1, 5, True)], OPTIONS)
    assert pair.rollouts == 0
    assert all(np.isnan(interval.mean) for interval in pair.measures.values())
    assert pair.to_json()["measures"]["kappa"] == {"low": None, "high": None, "mean": None}
    page = sheet_of([pair]).markdown()
    assert page.endswith(
        "\n–: fewer than 10 problems, or a judge has one score for all (kappa: both accept all, or none)\n"
    )
    assert page.splitlines()[2] == "| a, right | b, right | 0 | – | – | – | – | – | – |"
