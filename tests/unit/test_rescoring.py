"""Two ways of scoring compared: ranks against scipy's, pieces and signs worked by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from exprl.evaluation.ranks import rank_correlation, ranks
from exprl.evaluation.rescoring import Rescored, pieces, rescored, reward_steps
from exprl.study.counterfactual import Record, StepRecord, average, markdown, report_json, text_of
from exprl.types import Advantages, AnyReward, RolloutReward, Segment, SegmentRewards


def segments(ends: tuple[int, ...]) -> tuple[Segment, ...]:
    return tuple(Segment(start, end) for start, end in pairwise((0, *ends)))


def process(ends: tuple[int, ...], *values: float | None) -> SegmentRewards:
    return SegmentRewards(segments=segments(ends), values=values)


def credit(ends: tuple[int, ...], *values: float, valid: bool = True) -> Advantages:
    return Advantages(segments=segments(ends), values=values, valid=valid)


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_that_of_scipy(seed: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(seed)
    one = random.integers(0, 5, 40).astype(float)
    other = np.round(one + random.normal(size=40), 1)
    expected = stats.spearmanr(one, other).statistic
    assert rank_correlation(one, other, np.ones(40)) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(-one, other, np.ones(40)) == pytest.approx(-expected, abs=1e-12)


def test_a_weight_counts_an_entry_so_often() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(7)
    one, other = random.integers(0, 4, (2, 30)).astype(float)
    weights = random.integers(0, 4, (6, 30))
    for row, rho in zip(weights, rank_correlation(one, other, weights.astype(float)), strict=True):
        expected = stats.spearmanr(np.repeat(one, row), np.repeat(other, row)).statistic
        assert rho == pytest.approx(expected, abs=1e-12)


def test_nothing_to_rank_has_no_correlation() -> None:
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0), np.ones(3)))
    assert np.isnan(rank_correlation(np.zeros(0), np.zeros(0), np.ones(0)))
    assert ranks(np.zeros(0), np.zeros(0)).shape == (0,)


def test_pieces_are_where_both_are_constant() -> None:
    assert list(pieces([(2, 0.5), (5, 1.0)], [(5, 0.2)])) == [(2, 0.5, 0.2), (3, 1.0, 0.2)]
    assert not list(pieces(None, [(5, 0.2)]))
    with pytest.raises(ValueError, match="end at the same token"):
        list(pieces([(4, 0.5)], [(5, 0.2)]))


def test_rewards_that_are_none_take_no_part() -> None:
    assert reward_steps(RolloutReward(value=None, length=3)) is None
    assert reward_steps(process((2, 5), 0.1, None)) is None
    assert reward_steps(SegmentRewards(segments=segments((2, 5)), values=(), cut_off=True)) is None
    assert reward_steps(RolloutReward(value=0.5, length=3)) == [(3, 0.5)]


def test_figures_by_hand() -> None:
    """Three rollouts of two problems; the other scoring has one reward and one advantage a rollout."""
    old_rewards: list[list[AnyReward]] = [[process((2, 4), 0.0, 1.0), process((4,), 0.5)], [process((3, 4), 0.2, 0.0)]]
    new_rewards: list[list[AnyReward]] = [
        [RolloutReward(value=0.9, length=4), RolloutReward(value=0.1, length=4)],
        [RolloutReward(value=0.3, length=4)],
    ]
    old = [[credit((2, 4), -1.0, 1.0), credit((4,), 1.0)], [credit((3, 4), 0.0, 1e-12)]]
    new = [[credit((4,), 1.0), credit((4,), 1.0, valid=False)], [credit((4,), -1.0)]]
    figures = rescored((old_rewards, old), (new_rewards, new))
    # last rewards 1, 0.5, 0 against 0.9, 0.1, 0.3
    assert figures.rewards.mean == pytest.approx(0.5)
    # pieces: (-1, 1), (1, 1), (1, 0: it is left out), (0, -1), (0, -1) of 2, 2, 4, 3 and 1 tokens
    assert figures.flipped_segments.mean == pytest.approx(1 / 5)
    assert figures.flipped_tokens.mean == pytest.approx(2 / 12)
    assert figures.silenced_tokens.mean == pytest.approx(4 / 12)
    assert figures.awakened_tokens.mean == pytest.approx(4 / 12)
    assert figures.flipped_tokens.low < 2 / 12 < figures.flipped_tokens.high


def test_the_same_scoring_changes_nothing() -> None:
    rewards: list[list[AnyReward]] = [[process((2, 4), 0.0, 1.0)], [process((1, 4), 0.5, 0.25)]]
    advantages = [[credit((2, 4), -1.0, 1.0)], [credit((1, 4), 0.0, 2.0)]]
    figures = rescored((rewards, advantages), (rewards, advantages))
    assert (figures.rewards.mean, figures.segment_rewards.mean) == (1.0, 1.0)
    changed = (figures.flipped_segments, figures.flipped_tokens, figures.silenced_tokens, figures.awakened_tokens)
    assert all((one.low, one.mean, one.high) == (0.0, 0.0, 0.0) for one in changed)


# ------------------------------------------------------------------ records and tables


def record(inner: float, norm: float, figures: Rescored) -> Record:
    return Record(digest="d", rescored=figures, norm=norm, inner=inner)


@pytest.fixture
def steps() -> list[StepRecord]:
    rewards: list[list[AnyReward]] = [[process((2,), 0.5)], [process((2,), 1.0)]]
    figures = rescored((rewards, [[credit((2,), 1.0)]] * 2), (rewards, [[credit((2,), -1.0)]] * 2))

    def step(number: int, policy: int, one: Record) -> StepRecord:
        return StepRecord(
            step=number, policy_version=number - 1, policy=policy, part="whole", norm=2.0, alternatives={"a": one}
        )

    return [step(1, 0, record(2.0, 4.0, figures)), step(8, 10, record(0.0, 0.0, figures))]


def test_a_record_is_read_back_as_it_was(steps: list[StepRecord]) -> None:
    assert [StepRecord.from_json(step.to_json()).to_json() for step in steps] == [step.to_json() for step in steps]
    assert steps[1].away == 3


def test_no_gradient_has_no_cosine_and_is_counted(steps: list[StepRecord]) -> None:
    assert steps[0].figures("a")["cosine"].mean == 0.25
    assert steps[0].figures("a")["size"].mean == 2.0
    assert np.isnan(steps[1].figures("a")["cosine"].mean)
    means = average(steps, "a")
    assert means["cosine"].mean == 0.25, "of the steps that have one"
    assert means["size"].mean == 1.0
    assert means["flipped_segments"].mean == 1.0
    page = markdown("run", steps, {"a": ("x=1",)})
    assert "| 1 of 2 |" in page
    assert "| 8 | 10, 3 off |" in page
    written = report_json(steps, {"a": ("x=1",)})["alternatives"]["a"]
    assert [step["cosine"]["mean"] for step in written["steps"]] == [0.25, None]
    assert text_of("cosine", means["cosine"], interval=False) == "0.250"
