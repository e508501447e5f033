"""Calibration figures: hand-worked numbers, scikit-learn's where it is there, and labels brought to segments."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from exprl.errors import ConfigError
from exprl.evaluation.calibration import auroc, bootstrapped, calibration_error, mean, misplacement, reliability
from exprl.evaluation.intervals import Interval
from exprl.evaluation.localisation import Graded, graded, late_gain, localisation_error, prefixes_of
from exprl.rollouts import Label, StoredGroup
from exprl.study.calibrated import Row, at_random, markdown, measured
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
    metrics = pytest.importorskip("sklearn.metrics")
    calibration = pytest.importorskip("sklearn.calibration")
    scores, correct, weights = drawn(seed)
    assert auroc(scores, correct, weights) == pytest.approx(
        metrics.roc_auc_score(correct, scores, sample_weight=weights), abs=1e-12
    )
    accuracy = metrics.balanced_accuracy_score(correct, scores >= 4, sample_weight=weights)
    assert misplacement(scores, correct, weights) == pytest.approx(1 - accuracy, abs=1e-12)
    confidence = np.random.default_rng(seed).random(len(scores))
    right, said = calibration.calibration_curve(correct, confidence, n_bins=10)
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


@pytest.mark.parametrize("figure", [misplacement, auroc])
def test_what_one_class_alone_cannot_say_is_nan(figure) -> None:
    assert np.isnan(figure(np.array([1.0, 5.0]), np.array([True, True]), np.ones(2)))
    interval = bootstrapped(partial(figure, np.array([1.0]), np.array([True])), ["p"])
    assert np.isnan([interval.mean, interval.low, interval.high]).all()


def test_intervals_are_over_problems() -> None:
    values = np.array([0.0, 1.0] * 50)
    apart = bootstrapped(partial(mean, values), [f"p{number}" for number in range(100)])
    together = bootstrapped(partial(mean, values), [f"p{number % 4}" for number in range(100)])
    assert apart.mean == together.mean == 0.5
    assert together.high - together.low > 2 * (apart.high - apart.low), "25 rollouts of a problem are one draw"
    assert apart == bootstrapped(partial(mean, values), [f"p{number}" for number in range(100)]), "repeatable"


# ------------------------------------------------------------------ where the first error is


def one(scores: tuple[float, ...], first_wrong: int | None, correct: bool = False) -> Graded:
    return Graded(problem_id="p", domain="math", correct=correct, scores=scores, first_wrong=first_wrong)


@pytest.mark.parametrize(
    ("scores", "first_wrong", "off", "late"),
    [
        ((2.0, 3.0, 3.0, 3.0), 2, 0.0, 0.0),  # rises up to the error, and no more
        ((1.0, 2.0, 3.0, 4.0), 1, 0.75, 1.0),  # rises on: nothing seen
        ((3.0, 2.0, 4.0, 1.0), 1, 0.5, 0.5),
        ((1.0, 1.0, 1.0, 1.0), 0, 0.25, None),  # never rises
    ],
)
def test_where_a_score_stops_rising(scores, first_wrong: int, off: float, late: float | None) -> None:
    assert localisation_error(one(scores, first_wrong)) == off
    assert late_gain(one(scores, first_wrong)) == (None if late is None else pytest.approx(late))


def test_prefixes_hold_the_error_from_its_segment_on() -> None:
    found = prefixes_of([one((1.0, 2.0, 3.0), 1), one((4.0, 5.0), None, correct=True), one((2.0,), None)])
    assert found.wrong.tolist() == [False, True, True, False, False], "of the last nobody knows where"
    assert found.scores.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


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
    rollouts = [Graded(**{**vars(graded_one), "problem_id": str(number)}) for number, graded_one in enumerate(rollouts)]
    perfect = measured(rollouts, seed=0, resamples=200)
    assert (perfect["misplacement"].mean, perfect["auroc"].mean, perfect["localisation_error"].mean) == (0, 1, 0)
    chance = measured(at_random([rollouts * 20], 0), seed=0, resamples=200)
    assert chance["auroc"].mean == pytest.approx(0.5, abs=0.1)
    assert chance["prefix_auroc"].mean == pytest.approx(0.5, abs=0.1)


def test_the_table_as_a_page() -> None:
    measures = {"misplacement": Interval(low=0.1, high=0.3, mean=0.2)}
    row = Row(judge="j", reference="right", domain="all", rollouts=4, right=1, failed=2, measures=measures)
    assert markdown([row]).splitlines()[2] == "| j | right | all | 1 of 4, 2 failed | 20.0 % (10.0 to 30.0) |"


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
    ],
)
def test_a_wrong_calibration_is_told(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan.load("calibration/champ", [override])


def test_an_experiment_is_no_calibration() -> None:
    with pytest.raises(ConfigError, match="no calibration"):
        Plan.load("quickstart")
