"""Every estimator worked by hand.

The two rollouts of most tests, with prefix scores:

    P: r = (0.25, 0.75), segments of 1 and 3 tokens: token mean (0.25 + 3 * 0.75) / 4 = 0.625
    Q: r = (0.50, 0.25), segments of 2 and 2 tokens: token mean 0.375
"""

import math
import random
import statistics

import pytest
import torch

from exprl.advantages import (
    GroupAdvantage,
    GroupwiseAdvantage,
    SegmentBatch,
    SegmentDelta,
    SegmentDeltaFinal,
    SegmentEnd,
    SegmentGroup,
    SegmentReturn,
    SegmentSum,
    check_comparison,
    group_relative,
    has_signal,
    scores_of,
)
from exprl.config import validate
from exprl.errors import ConfigError, ContractError
from exprl.registry import ADVANTAGES
from exprl.types import Advantages, RolloutReward, Segment, SegmentRewards

SEGMENT_ESTIMATORS = [
    SegmentDelta(),
    SegmentDelta(first="last"),
    SegmentDelta(first="zero"),
    SegmentDeltaFinal(),
    SegmentSum(std=False),
    SegmentReturn(),
    SegmentEnd(),
    SegmentGroup(),
    SegmentBatch(),
]


def segments_of(lengths):
    starts = [sum(lengths[:k]) for k in range(len(lengths))]
    return tuple(Segment(start, start + n) for start, n in zip(starts, lengths, strict=True))


def process(values, lengths, cut_off=False):
    return SegmentRewards(segments=segments_of(lengths), values=tuple(values), cut_off=cut_off)


def outcome(value, length=4, cut_off=False):
    return RolloutReward(value=value, length=length, cut_off=cut_off)


P = process((0.25, 0.75), (1, 3))
Q = process((0.50, 0.25), (2, 2))
BROKEN = process((0.25, None), (1, 3))
CUT_OFF = process((None, None), (1, 3), cut_off=True)
EMPTY = process((), ())


def values(estimator, *groups):
    return [[a.values for a in group] for group in estimator.estimate(groups)]


def approx(expected):
    return [pytest.approx(row) for row in expected]


# ------------------------------------------------------------------ what is given


@pytest.mark.parametrize("estimator", [GroupAdvantage(), *SEGMENT_ESTIMATORS], ids=repr)
def test_what_are_no_rewards_is_said(estimator):
    one = outcome(1.0)
    for groups, said in (
        ([[one, 0.5]], r"a reward is a RolloutReward or SegmentRewards, but got 0\.5 \(float\)"),
        ([one], "groups: for each problem the rewards of its rollouts, but one is RolloutReward"),
    ):
        with pytest.raises(ContractError, match=said):
            estimator.estimate(groups)
    with pytest.raises(ContractError, match="domains: one for each group, but got 1 for 2"):
        estimator.estimate([[one], [one]], ["math"])


@pytest.mark.parametrize("number", [math.nan, math.inf, None, "much"])
def test_an_estimator_of_ones_own_gives_finite_numbers(number):
    class Own(GroupwiseAdvantage):
        def of_group(self, group):
            return [(number,) for _ in group]

    with pytest.raises(ContractError, match=r"^advantage 'Own': an advantage is a finite number"):
        Own().estimate([[outcome(1.0), outcome(0.0)]])


# ------------------------------------------------------------------ group


def test_group_by_hand():
    # R = 1, 0, 0: mean 1/3, sample variance ((2/3)² + 2 (1/3)²) / 2 = 1/3, deviation 0.57735
    std = math.sqrt(1 / 3) + 1e-6
    rewards = [outcome(1.0), outcome(0.0), outcome(0.0)]
    assert values(GroupAdvantage(), rewards) == [approx([(2 / 3 / std,), (-1 / 3 / std,), (-1 / 3 / std,)])]
    no_std = GroupAdvantage(std=False)
    assert values(no_std, rewards) == [approx([(2 / 3,), (-1 / 3,), (-1 / 3,)])]
    # leave one out: 1 - 0, 0 - (1 + 0) / 2
    rloo = GroupAdvantage(std=False, baseline="leave_one_out")
    assert values(rloo, rewards) == [approx([(1.0,), (-0.5,), (-0.5,)])]


def test_group_against_trl_and_verl():
    # Both: (r - r.mean()) / (r.std() + eps) with torch's default, the sample deviation (trl grpo_trainer.py,
    # verl core_algos.compute_grpo_outcome_advantage; verl's compute_rloo_outcome_advantage for leave_one_out).
    rewards = torch.rand(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    got = group_relative(rewards.tolist(), std=True, baseline="mean", eps=1e-6)
    assert got == pytest.approx(expected.tolist())
    n = len(rewards)
    rloo = rewards * n / (n - 1) - rewards.mean() * n / (n - 1)
    assert group_relative(rewards.tolist(), std=False, baseline="leave_one_out", eps=1e-6) == pytest.approx(
        rloo.tolist()
    )


def test_group_leaves_a_failed_judgement_out():
    # Means are over 1 and 0 alone: A = +-0.5. As a 0 the failed one would have given 2/3 and -1/3.
    [group] = GroupAdvantage(std=False).estimate([[outcome(1.0), outcome(None), outcome(0.0)]])
    assert [a.values for a in group] == [(0.5,), (0.0,), (-0.5,)]
    assert [a.valid for a in group] == [True, False, True]


def test_group_counts_a_cut_off_outcome_as_an_ordinary_zero():
    no_std = GroupAdvantage(std=False)
    [group] = no_std.estimate([[outcome(1.0), outcome(0.0, cut_off=True)]])
    assert [a.values for a in group] == [(0.5,), (-0.5,)]
    assert all(a.valid for a in group)


def test_group_with_fewer_than_two_valid_rollouts_is_zero():
    assert values(GroupAdvantage(), [outcome(1.0), outcome(None)], [outcome(1.0)], []) == [
        [(0.0,), (0.0,)],
        [(0.0,)],
        [],
    ]


def test_group_of_equal_rewards_has_no_signal():
    [group] = GroupAdvantage().estimate([[outcome(0.1), outcome(0.1), outcome(0.1)]])
    assert not has_signal(group, 1e-6)


def test_overlong_rollouts_lose_reward_before_they_are_compared():
    # Limit 100, buffer 20: 80 tokens lose nothing, 90 half of 0.5, 100 all of it. Rewards 1, 0.75, 0.5, 0: mean 0.5625.
    dapo = GroupAdvantage(std=False, overlong_penalty=0.5, overlong_buffer=20, overlong_limit=100)
    group = [outcome(1.0, 80), outcome(1.0, 90), outcome(1.0, 100), outcome(0.0, 10)]
    assert values(dapo, group) == [approx([(0.4375,), (0.1875,), (-0.0625,), (-0.5625,)])]
    # A wrong one that ran into the limit is below a short wrong one, which `clip_length` alone would not say.
    [short, long] = dapo.estimate([[outcome(0.0, 10), outcome(0.0, 100, cut_off=True)]])[0]
    assert (short.values, long.values) == ((0.25,), (-0.25,))


@pytest.mark.parametrize("seed", range(5))
def test_overlong_against_verl(seed):
    # verl/experimental/reward_loop/reward_manager/dapo.py: min(-exceeded / buffer * factor, 0), added to rewards of
    # -1 and 1; group-normalised advantages do not change with the scale of rewards.
    rng = random.Random(seed)
    right, lengths = [rng.random() < 0.5 for _ in range(12)], [rng.randrange(1, 101) for _ in range(12)]
    theirs = [
        (1.0 if ok else -1.0) + min(-(length - (100 - 40)) / 40 * 1.0, 0.0)
        for ok, length in zip(right, lengths, strict=True)
    ]
    expected = group_relative(theirs, std=True, baseline="mean", eps=1e-12)
    ours = GroupAdvantage(overlong_penalty=0.5, overlong_buffer=40, overlong_limit=100, eps=1e-12)
    group = [outcome(float(ok), length) for ok, length in zip(right, lengths, strict=True)]
    assert values(ours, group) == [approx([(value,) for value in expected])]


def test_an_overlong_penalty_needs_a_limit_with_room_for_its_buffer():
    with pytest.raises(ConfigError, match=r"^overlong_limit: required with overlong_penalty 0\.5"):
        GroupAdvantage(overlong_penalty=0.5)
    with pytest.raises(ConfigError, match=r"^overlong_buffer: must be at most overlong_limit \(100\), but got 4096"):
        GroupAdvantage(overlong_penalty=0.5, overlong_limit=100)


def test_group_takes_rollout_rewards_only():
    assert GroupAdvantage.accepts == {"rollout"}
    with pytest.raises(ConfigError, match="'group' takes one reward a rollout, but got one a segment"):
        GroupAdvantage().estimate([[P, Q]])


# ------------------------------------------------------------------ segment_delta


def test_segment_delta_by_hand():
    # Deltas of the second segments: 0.75 - 0.25 = 0.5 and 0.25 - 0.5 = -0.25, whatever the first is compared with.
    # group: mean of r_1 = 0.375, so -0.125 and +0.125.
    assert values(SegmentDelta(), [P, Q]) == [approx([(-0.125, 0.5), (0.125, -0.25)])]
    # last: r_1 - r_K = 0.25 - 0.75 and 0.5 - 0.25.
    last = SegmentDelta(first="last")
    assert values(last, [P, Q]) == [approx([(-0.5, 0.5), (0.25, -0.25)])]
    zero = SegmentDelta(first="zero")
    assert values(zero, [P, Q]) == [approx([(0.25, 0.5), (0.5, -0.25)])]


def test_segment_delta_of_one_rollout_keeps_its_steps():
    # Its own r_1 is the mean, so the first is 0; the second does not depend on a group.
    assert values(SegmentDelta(), [P]) == [approx([(0.0, 0.5)])]


def test_segment_delta_mixes_k():
    # K = 1 with r = 1 beside P. group: mean of r_1 = (0.25 + 1) / 2 = 0.625.
    assert values(SegmentDelta(), [P, outcome(1.0)]) == [approx([(-0.375, 0.5), (0.375,)])]
    # last: P as ever; the lone segment is compared with the mean of r_K = (0.75 + 1) / 2 = 0.875.
    last = SegmentDelta(first="last")
    assert values(last, [P, outcome(1.0)]) == [approx([(-0.5, 0.5), (0.125,)])]


# ------------------------------------------------------------------ segment_delta_final, segment_sum


def test_segment_delta_final_by_hand():
    # r_1, and r_2 - r_1 + r_K: 0.75 - 0.25 + 0.75 and 0.25 - 0.5 + 0.25. Nothing of it depends on the group.
    assert values(SegmentDeltaFinal(), [P, Q]) == [approx([(0.25, 1.25), (0.5, 0.0)])]
    assert values(SegmentDeltaFinal(), [P]) == [approx([(0.25, 1.25)])]
    # A lone segment with r = 1 is compared with the mean of r_K = 0.875.
    assert values(SegmentDeltaFinal(), [P, outcome(1.0)]) == [approx([(0.25, 1.25), (0.125,)])]


def test_segment_sum_by_hand():
    # Sums 1 and 0.75: mean 0.875, sample deviation sqrt(2) / 8.
    assert values(SegmentSum(std=False), [P, Q]) == [approx([(0.125, 0.125), (-0.125, -0.125)])]
    std = math.sqrt(2) / 8 + 1e-6
    assert values(SegmentSum(), [P, Q]) == [approx([(0.125 / std,) * 2, (-0.125 / std,) * 2])]
    assert values(SegmentSum(), [P]) == [[(0.0, 0.0)]]
    # One segment a rollout is GRPO.
    rewards = [outcome(1.0), outcome(0.0), outcome(0.25)]
    assert values(SegmentSum(), rewards) == values(GroupAdvantage(), rewards)


# ------------------------------------------------------------------ segment_return, _end, _group, _batch


def test_segment_return_by_hand():
    # r_K - r_{k-1}: P (0.75 - 0, 0.75 - 0.25) = (0.75, 0.5), Q (0.25, -0.25).
    # Means at k = 1 and k = 2: 0.5 and 0.125.
    assert values(SegmentReturn(), [P, Q]) == [approx([(0.25, 0.375), (-0.25, -0.375)])]


def test_segment_return_of_fewer_segments_counts_as_nothing_left_to_gain():
    # P beside a lone segment with r = 1. k = 1: (0.75 + 1) / 2 = 0.875. k = 2: (0.5 + 0) / 2 = 0.25.
    assert values(SegmentReturn(), [P, outcome(1.0)]) == [approx([(-0.125, 0.25), (0.125,)])]


def test_segment_end_by_hand():
    # r_k - r_K: P (0.25 - 0.75, 0), Q (0.5 - 0.25, 0).
    assert values(SegmentEnd(), [P, Q]) == [approx([(-0.5, 0.0), (0.25, 0.0)])]


def test_segment_group_by_hand():
    # Baseline: mean of the token means, (0.625 + 0.375) / 2 = 0.5. (Divided by T = 4 once more, as in the authors'
    # script, it would be 0.125, and every advantage here positive.)
    assert values(SegmentGroup(), [P, Q]) == [approx([(-0.25, 0.25), (0.0, -0.25)])]


def test_segment_batch_by_hand():
    # A second group of one rollout with score 1 and token mean 1: (0.625 + 0.375 + 1) / 3 = 2/3.
    b = 2 / 3
    assert values(SegmentBatch(), [P, Q], [outcome(1.0)]) == [
        approx([(0.25 - b, 0.75 - b), (0.5 - b, 0.25 - b)]),
        approx([(1 - b,)]),
    ]


def test_segment_batch_adds_up_the_ranks():
    # This rank holds P and Q (sum of token means 1.0, count 2), the other one a sum of 1.0 over 1 rollout.
    seen = []

    def all_reduce(sums):
        seen.append(sums)
        return [own + 1.0 for own in sums]

    [group] = SegmentBatch().estimate([[P, Q]], all_reduce=all_reduce)
    assert seen == [[1.0, 2.0]]
    assert group[0].values == pytest.approx((0.25 - 2 / 3, 0.75 - 2 / 3))


def test_segment_batch_of_one_rollout_is_zero():
    assert values(SegmentBatch(), [P], [BROKEN]) == [[(0.0, 0.0)], [(0.0, 0.0)]]


@pytest.mark.parametrize("estimator", [SegmentReturn(), SegmentGroup()], ids=lambda e: e.registered_name)
def test_group_baselines_of_one_rollout_are_zero(estimator):
    assert values(estimator, [P, BROKEN, CUT_OFF]) == [[(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)]]


# ------------------------------------------------------------------ K = 1


@pytest.mark.parametrize("estimator", SEGMENT_ESTIMATORS, ids=lambda e: f"{e.registered_name}-{vars(e.config)}")
def test_one_segment_gives_the_reward_minus_the_group_mean(estimator):
    # R = 1.0 (2 tokens), 0.25 (6 tokens), mean 0.625 whatever the lengths.
    expected = [(0.375,), (-0.375,)]
    assert values(estimator, [outcome(1.0, 2), outcome(0.25, 6)]) == [approx(expected)]
    assert values(estimator, [process((1.0,), (2,)), process((0.25,), (6,))]) == [approx(expected)]


# ------------------------------------------------------------------ invalid, cut off, empty


@pytest.mark.parametrize("estimator", SEGMENT_ESTIMATORS, ids=lambda e: f"{e.registered_name}-{vars(e.config)}")
def test_invalid_and_cut_off_rollouts_change_nothing_for_the_others(estimator):
    [alone] = estimator.estimate([[P, Q]])
    [group] = estimator.estimate([[BROKEN, P, CUT_OFF, EMPTY, Q]])
    assert [group[1], group[4]] == list(alone)
    assert group[0] == Advantages(segments=BROKEN.segments, values=(0.0, 0.0), valid=False)
    assert group[2] == Advantages(segments=CUT_OFF.segments, values=(0.0, 0.0), valid=True)
    assert group[3] == Advantages(segments=(), values=())


@pytest.mark.parametrize("estimator", [GroupAdvantage(), *SEGMENT_ESTIMATORS], ids=lambda e: e.registered_name)
def test_groups_without_any_score(estimator):
    failed = [outcome(None), outcome(None)]
    for groups in ([], [[]], [failed], [failed, []]):
        estimated = estimator.estimate(groups)
        assert [len(group) for group in estimated] == [len(group) for group in groups]
        assert not any(has_signal(group, 0.0) for group in estimated)


@pytest.mark.parametrize("estimator", [GroupAdvantage(), *SEGMENT_ESTIMATORS], ids=lambda e: e.registered_name)
def test_a_rollout_without_tokens_counts_in_the_mean_and_has_no_advantage(estimator):
    [group] = estimator.estimate([[outcome(1.0), outcome(0.0, length=0)]])
    assert group[0].values[0] > 0.4
    assert group[1] == Advantages(segments=(), values=())


def test_scores_of():
    assert scores_of(outcome(0.5, 3)).token_mean == 0.5
    assert scores_of(P).token_mean == 0.625
    assert scores_of(P).final == 0.75
    assert [scores_of(r) for r in (outcome(None), BROKEN, CUT_OFF, EMPTY)] == [None] * 4


# ------------------------------------------------------------------ scale and signal


def test_rms_by_hand():
    # segment_end of P and Q: -0.5 on 1 token, 0.25 on 2, and 0 elsewhere.
    # Over the tokens that are not 0: sqrt((1 * 0.25 + 2 * 0.0625) / 3) = sqrt(0.125) = 0.353553.
    rms = math.sqrt(0.125)
    scaled = SegmentEnd(scale="rms")
    assert values(scaled, [P, Q]) == [approx([(-0.5 / rms, 0.0), (0.25 / rms, 0.0)])]


def test_rms_is_that_of_all_ranks():
    # The other rank adds a sum of squares of 3.625 over 1 token: sqrt((0.375 + 3.625) / (3 + 1)) = 1.
    def all_reduce(sums):
        return [own + other for own, other in zip(sums, (3.625, 1.0), strict=True)]

    [group] = SegmentEnd(scale="rms").estimate([[P, Q]], all_reduce=all_reduce)
    assert [a.values for a in group] == approx([(-0.5, 0.0), (0.25, 0.0)])


def test_rms_leaves_zeros_and_rounding_alone():
    scaled = SegmentDelta(scale="rms")
    assert values(scaled, [outcome(0.1), outcome(0.1), outcome(0.1)]) == [approx([(0.0,)] * 3)]
    assert values(scaled, [CUT_OFF, BROKEN]) == [[(0.0, 0.0), (0.0, 0.0)]]


def test_ranks_reduce_equally_often_whatever_they_hold():
    calls = []
    for groups in ([], [[BROKEN]], [[P, Q]]):
        count = []
        SegmentBatch(scale="rms").estimate(groups, all_reduce=lambda s, c=count: c.append(1) or s)
        calls.append(len(count))
    assert calls == [2, 2, 2]


def test_has_signal():
    segments = segments_of((2, 2))
    weak = Advantages(segments=segments, values=(0.0, -0.02))
    assert has_signal([weak], 0.01)
    assert not has_signal([weak], 0.02)
    assert not has_signal([Advantages(segments=segments, values=(1.0, 1.0), valid=False)], 0.0)
    assert not has_signal([], 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_deltas_add_up_to_what_the_rollout_gained(seed):
    rng = random.Random(seed)
    rewards = [
        process([rng.random() for _ in range(k)], [rng.randrange(1, 9)] * k) for k in rng.choices(range(1, 7), k=5)
    ]
    mean = statistics.fmean(r.values[0] for r in rewards)
    for reward, advantages in zip(rewards, SegmentDelta().estimate([rewards])[0], strict=True):
        assert math.fsum(advantages.values) == pytest.approx(reward.values[-1] - mean)
        assert len(advantages.per_token()) == reward.length


def test_registered_with_checked_options():
    names = [
        *("group", "segment_batch", "segment_delta", "segment_delta_final", "segment_end", "segment_group"),
        *("segment_return", "segment_sum"),
    ]
    assert ADVANTAGES.names() == names
    for name in names:
        assert validate(ADVANTAGES.get(name).Config, {}).scale == "none"
    with pytest.raises(ConfigError, match="first"):
        validate(SegmentDelta.Config, {"first": "mean"})


# ------------------------------------------------------------------ something to compare with

LONE_ROLLOUTS_TEACH = (SegmentDelta, SegmentDeltaFinal, SegmentEnd)  # later segments are compared with those before


@pytest.mark.parametrize("estimator", SEGMENT_ESTIMATORS, ids=lambda e: f"{e.registered_name} {e.config}")
def test_lone_rollouts_are_refused_where_they_teach_nothing(estimator):
    for prompts in (1, 3):
        check_comparison(estimator, "segment", prompts=prompts, samples=2)
        check_comparison(estimator, "rollout", prompts=prompts, samples=2)
        batch = isinstance(estimator, SegmentBatch) and prompts > 1
        for granularity, teaches in (("rollout", False), ("segment", isinstance(estimator, LONE_ROLLOUTS_TEACH))):
            if teaches or batch:
                check_comparison(estimator, granularity, prompts=prompts, samples=1)
            else:
                with pytest.raises(ConfigError, match=r"samples_per_prompt: 1, .* every advantage .* is 0"):
                    check_comparison(estimator, granularity, prompts=prompts, samples=1)


def test_grpo_needs_a_group():
    for config in (GroupAdvantage.Config(), GroupAdvantage.Config(std=False), GroupAdvantage.Config(scale="rms")):
        check_comparison(GroupAdvantage.made(config), "rollout", prompts=4, samples=2)
        with pytest.raises(ConfigError, match="Sample 2 or more"):
            check_comparison(GroupAdvantage.made(config), "rollout", prompts=4, samples=1)
