"""Calibration figures: hand-worked numbers, scikit-learn's, and labels brought to segments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import calibration as sklearn_calibration, metrics

from exprl.errors import ConfigError
from exprl.evaluation.bootstrap import interval_of
from exprl.evaluation.calibration import (
    AUROC,
    CALIBRATION_ERROR,
    MISPLACEMENT,
    SHARE,
    auroc,
    calibration_error,
    mean_within,
    misplacement,
    reliability,
)
from exprl.evaluation.intervals import Interval
from exprl.evaluation.localisation import Graded, graded, late_gain, localisation_error, prefixes_of
from exprl.rollouts import Label, StoredGroup
from exprl.study.calibrated import Row, at_random, measured, rows_of, sheet_of
from exprl.study.calibration import Plan
from exprl.types import Judgement, Prompt, Question, Rollout, Segment, SegmentRewards


def drawn(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return (
        random.integers(1, 6, count).astype(float),  # with ties
        random.random(count) < 0.4,
        random.exponential(size=count),
    )


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    scores, correct, weights = drawn(seed)
    assert auroc(scores, correct, weights) == pytest.approx(
        metrics.roc_auc_score(correct, scores, sample_weight=weights), abs=1e-12
    )
    accuracy = metrics.balanced_accuracy_score(correct, scores >= 4, sample_weight=weights)
    assert misplacement(scores, correct, weights) == pytest.approx(1 - accuracy, abs=1e-12)
    confidence = np.random.default_rng(seed).random(len(scores))
    right, said = sklearn_calibration.calibration_curve(correct, confidence, n_bins=10)
    ours_said, ours_right, counts = reliability(confidence, correct)
    assert ours_said[counts > 0] == pytest.approx(said)
    assert ours_right[counts > 0] == pytest.approx(right)


@pytest.mark.parametrize("seed", range(3))
def test_auroc_counts_pairs(seed: int) -> None:
    scores, correct, weights = drawn(seed, 20)
    pairs = [(i, j) for i in range(20) for j in range(20) if correct[i] and not correct[j]]
    won = sum(weights[i] * weights[j] * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2) for i, j in pairs)
    assert auroc(scores, correct, weights) == pytest.approx(won / sum(weights[i] * weights[j] for i, j in pairs))


def test_many_weights_at_once_are_each_alone() -> None:
    scores, correct, _ = drawn(0)
    weights = np.random.default_rng(1).exponential(size=(4, 60))
    for figure in (misplacement, auroc):
        assert figure(scores, correct, weights) == pytest.approx([figure(scores, correct, one) for one in weights])
    confidence = (scores - 1) / 4
    many = calibration_error(confidence, correct, weights)
    assert many == pytest.approx([calibration_error(confidence, correct, one) for one in weights])


def test_misplacement_and_calibration_by_hand() -> None:
    scores = np.array([5.0, 4.0, 3.9, 5.0, 1.0])
    correct = np.array([True, True, True, False, False])
    assert misplacement(scores, correct, np.ones(5)) == pytest.approx((1 / 3 + 1 / 2) / 2)
    # bins: 1.0 (two, one right), 0.75 and 0.725 (right), 0 (wrong): |1 - 2| + |2 - 1.475| + 0 over 5
    assert calibration_error((scores - 1) / 4, correct, np.ones(5)) == pytest.approx((1 + 0.525) / 5)


@pytest.mark.parametrize("figure", [MISPLACEMENT, AUROC])
def test_what_one_class_alone_cannot_say_is_nan(figure) -> None:
    assert np.isnan(figure.of(np.array([1.0, 5.0]), np.array([True, True]), np.ones(2)))
    interval = interval_of(figure, [[1.0], [True]], ["p"])
    assert np.isnan([interval.mean, interval.low, interval.high]).all()


# ------------------------------------------------------------------ intervals


def test_intervals_are_over_problems() -> None:
    values = np.array([0.0, 1.0] * 50)
    apart = interval_of(SHARE, [values], [f"p{number}" for number in range(100)])
    together = interval_of(SHARE, [values], [f"p{number % 4}" for number in range(100)])
    assert apart.mean == together.mean == 0.5
    assert together.high - together.low > 2 * (apart.high - apart.low), "25 rollouts of a problem are one draw"
    assert apart == interval_of(SHARE, [values], [f"p{number}" for number in range(100)]), "repeatable"


@pytest.mark.parametrize(("hits", "count"), [(0, 3), (0, 40), (7, 7), (4, 12)])
def test_a_share_of_one_rollout_a_problem_has_clopper_and_pearsons_interval(hits: int, count: int) -> None:
    values = np.arange(count) < hits
    found = interval_of(SHARE, [values], list(range(count)), resamples=20_000)
    exact = stats.binomtest(hits, count).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.012)


def test_misses_of_few_right_rollouts_have_the_interval_of_few() -> None:
    """40 problems, 3 of them with a right rollout, all accepted: of 3, and not of 40."""
    scores = np.array([5.0] * 3 + [1.0] * 37)
    correct = np.arange(40) < 3
    found = interval_of(MISPLACEMENT, [scores, correct], list(range(40)), resamples=20_000)
    assert (found.low, found.mean) == (0, 0)
    # the mean of a share with Beta(1, 3) and one with Beta(1, 37)
    generator = np.random.default_rng(1)
    expected = np.quantile((generator.beta(1, 3, 200_000) + generator.beta(1, 37, 200_000)) / 2, 0.975)
    # the two shares have one problem's weight in common, which widens it
    assert found.high == pytest.approx(expected, abs=0.03)
    assert found.high >= expected - 0.005


@pytest.mark.parametrize(("mean", "resamples"), [(0.9, 400), (0.5, 400)])
def test_the_interval_of_a_share_covers_it_where_few_problems_are_seen(mean: float, resamples: int) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = (generator.random(6) < mean).astype(float).repeat(2)  # two rollouts a problem, alike
        found = interval_of(SHARE, [values], np.arange(6).repeat(2).tolist(), resamples=resamples)
        covered += found.low <= mean <= found.high
    assert covered >= 0.93 * 200  # the bootstrap of what was seen: about 0.47 for 0.9


@pytest.mark.parametrize(
    ("figure", "columns", "point"),
    [
        (AUROC, [[5.0, 5.0, 1.0, 1.0], [1, 1, 0, 0]], 1.0),
        (AUROC, [[1.0, 1.0, 5.0, 5.0], [1, 1, 0, 0]], 0.0),
        (CALIBRATION_ERROR, [[1.0, 1.0, 0.0, 0.0], [1, 1, 0, 0]], 0.0),
        (CALIBRATION_ERROR, [[1.0, 1.0, 1.0, 1.0], [0, 0, 0, 0]], 1.0),
        (mean_within(-4, 4), [[0.0, 0.0, 0.0, 0.0]], 0.0),
    ],
)
def test_agreement_of_few_problems_is_no_certainty(figure, columns, point: float) -> None:
    found = interval_of(figure, columns, list("abcd"))
    assert found.mean == point
    assert found.high - found.low > 0.4


# ------------------------------------------------------------------ where the first error is


def one(scores: tuple[float, ...], first_wrong: int | None, correct: bool = False, place: int = 0) -> Graded:
    return Graded(
        place=place,
        problem_id="p",
        domain="math",
        text="abc\ndefghi",
        correct=correct,
        scores=scores,
        first_wrong=first_wrong,
    )


@pytest.mark.parametrize(
    ("scores", "first_wrong", "off", "late"),
    [
        ((2.0, 3.0, 3.0, 3.0), 2, 0.0, 0.0),  # rises up to the error, and no more
        ((1.0, 2.0, 3.0, 4.0), 1, 0.75, 1.0),  # rises on: nothing seen
        ((3.0, 2.0, 4.0, 1.0), 1, 0.5, 0.5),
        ((1.0, 1.0, 1.0, 1.0), 0, 0.0, None),  # nothing is right from the beginning
        ((1.4, 1.2, 1.3, 1.1), 0, 0.0, 1.0),  # the same of a judge with scores between
        ((1.0, 1.0, 1.0, 1.0), 3, 0.75, None),  # taken to be wrong three segments before it is
        ((2.0, 1.0, 1.0, 1.0), 0, 0.25, 1.0),
    ],
)
def test_where_a_score_stops_rising(scores, first_wrong: int, off: float, late: float | None) -> None:
    assert localisation_error(scores, first_wrong) == off
    assert late_gain(scores, first_wrong) == (None if late is None else pytest.approx(late))


def test_prefixes_hold_the_error_from_its_segment_on() -> None:
    found = prefixes_of([one((1.0, 2.0, 3.0), 1), one((4.0, 5.0), None, correct=True), one((2.0,), None)])
    assert found.wrong.tolist() == [False, True, True, False, False], "of the last nobody knows where"
    assert found.scores.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert found.positions.tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1 / 2, 1])


@pytest.mark.parametrize(("first_error", "segment"), [(0, 0), (3, 0), (4, 1), (9, 1)])
def test_a_character_is_brought_to_its_segment(first_error: int, segment: int) -> None:
    prompt = Prompt(problem_id="p", text="", token_ids=())
    rollout = Rollout(
        prompt=prompt,
        token_ids=(1, 2, 3),
        text="abc\ndefghi",
        token_ends=(2, 4, 10),
        sampler_logprobs=(0.0,) * 3,
        finish_reason="stop",
    )
    judged = SegmentRewards(
        segments=(Segment(0, 2), Segment(2, 3)), values=(0.0, 0.5), judgements=(Judgement(score=1), Judgement(score=3))
    )
    lost = SegmentRewards(
        segments=judged.segments,
        values=(0.0, None),
        judgements=(Judgement(score=1), Judgement(score=None, status="error")),
    )
    group = StoredGroup(
        question=Question(problem_id="p", text="?"),
        domain="math",
        digest=None,
        rollouts=(rollout, rollout, rollout),
        rewards=(judged, lost, judged),
        labels=(Label(correct=False, first_error=first_error), Label(correct=True), Label()),
    )
    found, failed = graded([group])
    assert found == [one((1.0, 3.0), segment)]
    assert failed == 1


def test_a_perfect_judge_and_chance() -> None:
    rollouts = [one((2.0, 2.0, 1.0), 1), one((2.0, 4.0, 5.0), None, correct=True)] * 10
    rollouts = [replace(own, problem_id=str(number), place=number) for number, own in enumerate(rollouts)]
    perfect = measured(rollouts, seed=0, resamples=200)
    assert (perfect["misplacement"].mean, perfect["auroc"].mean, perfect["localisation_error"].mean) == (0, 1, 0)
    many = [replace(own, place=number) for number, own in enumerate(rollouts * 20)]
    chance = measured(at_random([many[:10], many], 0), seed=0, resamples=200)
    assert chance["auroc"].mean == pytest.approx(0.5, abs=0.1)
    assert chance["prefix_auroc"].mean == pytest.approx(0.5, abs=0.1)


def of_problems(*curves: tuple[tuple[float, ...], int | None]) -> list[Graded]:
    """One rollout a problem: its scores, and where it goes wrong, if it does."""
    made = [one(scores, wrong, correct=wrong is None, place=place) for place, (scores, wrong) in enumerate(curves)]
    return [replace(own, problem_id=str(own.place)) for own in made]


@pytest.mark.parametrize("score", [1.0, 3.0])
def test_a_judge_whose_score_never_moves_places_nothing(score: float) -> None:
    always = of_problems(((score,) * 4, 0), ((score,) * 2, 1), ((score,) * 3, None))
    found = measured(always, seed=0, resamples=100)
    assert np.isnan(found["localisation_error"].mean)
    assert found["flat"].mean == 1


def test_a_perfect_judge_is_off_by_nothing_where_the_first_segment_is_wrong_too() -> None:
    perfect = of_problems(((1.0,) * 4, 0), ((3.0, 1.0), 1), ((2.0, 4.0, 5.0), None))
    found = measured(perfect, seed=0, resamples=100)
    assert found["localisation_error"].mean == 0
    assert found["flat"].mean == 0.5, "its score stays at 1 where nothing is right"


def test_chance_is_no_single_draw() -> None:
    """Eight rollouts, one of them right: a draw's AUROC is any of 0 to 1."""
    rollouts = of_problems(((1.0, 1.0), None), *[((1.0, 1.0), place % 2) for place in range(7)])
    [row] = rows_of("chance", "–", at_random([rollouts], 0), 0, Plan.load("calibration/champ").calibration)
    assert (row.rollouts, row.right) == (8, 1)
    assert row.measures["auroc"].mean == pytest.approx(0.5, abs=0.06)
    assert row.measures["misplacement"].mean == pytest.approx(0.5, abs=0.06)
    assert row.measures["auroc"].low < 0.3, "which is no certainty that other problems would say the same"


def test_the_table_as_a_page() -> None:
    measures = {"misplacement": Interval(low=0.1, high=0.3, mean=0.2)}
    row = Row(judge="j", reference="right", domain="all", rollouts=4, right=1, failed=2, measures=measures)
    page = sheet_of([row]).markdown().splitlines()
    assert page[2] == "| j | right | 1 of 4, 2 failed | 20.0 % (10.0 to 30.0) |"
    assert page[0] == "| judge | reference | right of | misplaced |", "what nobody has is no column"
    with_domain = sheet_of([row, replace(row, domain="math")]).markdown().splitlines()
    assert [line.split(" | ")[2] for line in with_domain[2:]] == ["all", "math"]


# ------------------------------------------------------------------ the config


def test_the_shipped_calibration_asks_each_judge_with_each_reference() -> None:
    plan = Plan.load("calibration/champ")
    assert [(arm.judge, arm.reference) for arm in plan.arms] == [
        (judge, reference) for judge in ("reference_steps", "smollm2") for reference in ("right", "none", "wrong")
    ]
    wrong = plan.arms[-1].experiment.reward.config.judge
    assert (wrong.name, wrong.config.around.name) == ("wrong_reference", "same_model")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("judges.chance={name: reference_steps}", r"judges\.chance: names a folder"),
        ("judges.x={name: nobody}", r"judges\.x \(right reference\): reward\.judge"),
        ("references=[left]", "references"),
        ("references=[right, wrong, right]", "references: each is asked for once, but right stands there several"),
        ("judges.perturbed={name: reference_steps}", r"judges\.perturbed: names a folder"),
        ("overrides.reward.show=segment", r"overrides\.reward\.show: .* Set overrides\.reward\.show=prefix"),
        ("perturbations.mine={text: please}", r"perturbations\.mine: needs a name"),
        ("perturbations.mine={name: append}", r"perturbations\.mine: .*text"),
        ("perturbations.mine={name: apend, text: x}", r"perturbations\.mine: .*Did you mean 'append'"),
        ("perturbations.padding.sentences=0", r"perturbations\.padding: sentences"),
        ("perturbations.original={name: append, text: x}", r"perturbations\.original: names a folder"),
    ],
)
def test_a_wrong_calibration_is_told(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan.load("calibration/champ", [override])


def test_failures_are_counted_unless_the_config_says_so() -> None:
    assert {arm.experiment.reward.config.max_failure_rate for arm in Plan.load("calibration/champ").arms} == {1.0}
    strict = Plan.load("calibration/champ", ["overrides.reward.max_failure_rate=0.1"])
    assert {arm.experiment.reward.config.max_failure_rate for arm in strict.arms} == {0.1}


def test_an_experiment_is_no_calibration() -> None:
    with pytest.raises(ConfigError, match="no calibration"):
        Plan.load("quickstart")
