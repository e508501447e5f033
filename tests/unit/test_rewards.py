"""Rewards worked by hand, with the deterministic judge; faults are injected by a judge that gives canned verdicts."""

from __future__ import annotations

import pytest

from exprl.config import from_layers, validate_choice
from exprl.errors import ConfigError, DataError, JudgeError, RewardError
from exprl.judges import ReferenceStepsJudge
from exprl.judges.base import Judge
from exprl.registry import REWARDS
from exprl.resources import Resources
from exprl.rewards import OutcomeReward, ProcessReward, SparseReward, normalize
from exprl.rewards.checks import check_rewards
from exprl.slicers import DelimiterSlicer
from exprl.terminal.progress import no_progress
from exprl.types import (
    Judgement,
    Problem,
    Rollout,
    RolloutGroup,
    RolloutReward,
    Segment,
    SegmentRewards,
)
from exprl.verifiers import ExactVerifier
from tests.rollouts import group_of, problem_of, rollout_of

STEPS = ("one", "two", "three", "four")


def problem(problem_id: str = "p", answer: str | None = "4") -> Problem:
    return problem_of(problem_id, answer=answer, steps=STEPS)


def rollout(text: str, finish: str = "stop") -> Rollout:
    """One token a line, and the end-of-sequence token of no width where it stopped."""
    return rollout_of(*text.splitlines(keepends=True), *([""] if finish == "stop" else []), finish=finish)


def group(*rollouts: Rollout, of: Problem | None = None) -> RolloutGroup:
    return group_of(of or problem(), *rollouts)


class Canned(Judge):
    """Records what it is asked and gives the verdicts it was made with."""

    def __init__(self, *judgements: Judgement) -> None:
        super().__init__()
        self.judgements, self.calls, self.syncs, self.checked = judgements, [], 0, []

    def judge(self, requests, on_progress=no_progress):
        self.calls.append(list(requests))
        on_progress(len(requests))
        return list(self.judgements[: len(requests)])

    def sync(self):
        self.syncs += 1

    def check(self, problems):
        self.checked += problems


LINES = DelimiterSlicer(delimiter="\n", position="end")
OK = [Judgement(score=float(score)) for score in (1, 2, 3, 4, 5)]
FAILED = Judgement(score=None, status="unparseable", rationale="no idea")


# ------------------------------------------------------------------ normalization


@pytest.mark.parametrize(
    ("strategy", "values"),
    [
        ("smooth", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("clipped_extremes", [0.0, 0.0, 0.0, 1.0, 1.0]),
        ("extremes_only", [0.0, None, None, None, 1.0]),
        ("semi_smooth", [0.0, None, None, 0.8, 1.0]),
    ],
)
def test_normalization_of_whole_scores(strategy, values):
    assert [normalize(float(score), strategy) for score in range(1, 6)] == values


@pytest.mark.parametrize(
    ("strategy", "score", "value"),
    [
        ("smooth", 3.2, 0.55),
        ("clipped_extremes", 3.01, 1.0),
        ("extremes_only", 1.49, 0.0),
        ("extremes_only", 1.5, None),
        ("extremes_only", 4.5, 1.0),
        ("semi_smooth", 3.5, 0.8),
        ("semi_smooth", 4.49, 0.8),
        ("semi_smooth", 3.49, None),
    ],
)
def test_normalization_of_expected_scores(strategy, score, value):
    assert normalize(score, strategy) == (None if value is None else pytest.approx(value))


# ------------------------------------------------------------------ sparse


def test_sparse_by_hand():
    reward = SparseReward(verifier=ExactVerifier())
    groups = [
        group(rollout("Answer: 4"), rollout("Answer: 5"), rollout("no idea")),
        group(rollout("Answer: 4", "length"), rollout("Answer: 7"), of=problem("q", answer="7")),
    ]
    done: list[int] = []
    first, second = reward.score(groups, done.append)
    assert [r.value for r in first] == [1.0, 0.0, 0.0]
    assert [r.value for r in second] == [0.0, 1.0]
    assert [r.cut_off for r in second] == [True, False]
    assert [r.length for r in first] == [2, 2, 2]
    assert sum(done) == 5


def test_sparse_may_look_at_cut_off_rollouts():
    reward = SparseReward(clip_length=False, verifier=ExactVerifier())
    [[scored]] = reward.score([group(rollout("Answer: 4", "length"))])
    assert scored.value == 1.0
    assert not scored.cut_off


def test_sparse_needs_a_verifier_and_answers():
    verifier = ExactVerifier()
    reward = SparseReward.from_config(SparseReward.Config(), Resources(verifier=verifier))
    assert reward.verifier is verifier
    with pytest.raises(ConfigError, match="needs a verifier"):
        SparseReward.from_config(SparseReward.Config(), Resources())
    reward.check([problem()])
    with pytest.raises(DataError, match="'q' has no final answer"):
        reward.check([problem(), problem("q", answer=None)])


# ------------------------------------------------------------------ outcome


def test_outcome_by_hand():
    reward = OutcomeReward(judge=ReferenceStepsJudge())
    groups = [
        group(rollout("one\ntwo\nthree\nfour"), rollout("one\ntwo\nx"), rollout("x")),
        group(rollout("one\n", "length"), rollout("")),
    ]
    first, second = reward.score(groups)
    assert [r.value for r in first] == [1.0, 0.5, 0.0]
    assert [r.value for r in second] == [0.0, 0.0]
    assert [r.cut_off for r in second] == [True, False]
    assert second[0].judgements == ()
    assert second[1].judgements[0].status == "ok"
    assert all(r.valid for r in (*first, *second))
    assert first[0].length == 5


def test_outcome_without_length_clipping():
    config = {"clip_length": False}
    [[scored]] = OutcomeReward(**config, judge=ReferenceStepsJudge()).score([group(rollout("one\n", "length"))])
    assert scored.value == 0.25


def test_a_failed_judgement_leaves_the_rollout_out():
    reward = OutcomeReward(max_failure_rate=0.5, judge=Canned(OK[4], FAILED))
    [[good, bad]] = reward.score([group(rollout("a"), rollout("b"))])
    assert (good.value, good.valid) == (1.0, True)
    assert (bad.value, bad.valid) == (None, False)
    assert bad.judgements == (FAILED,)


def test_a_dropped_score_leaves_the_rollout_out():
    config = {"normalization": "extremes_only"}
    [rewards] = OutcomeReward(**config, judge=Canned(*OK)).score([group(*[rollout("a")] * 5)])
    assert [r.valid for r in rewards] == [True, False, False, False, True]


# ------------------------------------------------------------------ process


def test_process_by_hand():
    reward = ProcessReward(slicer=LINES, judge=ReferenceStepsJudge())
    groups = [
        group(rollout("one\ntwo\nx\nfour\n"), rollout("one\ntwo\n", "length")),
        group(rollout("x\ntwo\n")),
    ]
    [[first, cut], [second]] = reward.score(groups)
    assert first.values == (0.25, 0.5, 0.5, 0.5)
    assert [(s.start, s.end) for s in first.segments] == [(0, 1), (1, 2), (2, 3), (3, 5)]
    assert second.values == (0.0, 0.0)
    assert (cut.cut_off, cut.values, len(cut.segments), cut.valid) == (True, (), 2, True)
    assert len(first.judgements) == 4


def test_prefix_and_segment_views():
    for show, traces in (("prefix", ["one\n", "one\ntwo\n"]), ("segment", ["one\n", "two\n"])):
        judge = Canned(*OK)
        ProcessReward(show=show, slicer=LINES, judge=judge).score([group(rollout("one\ntwo\n"))])
        [requests] = judge.calls
        assert [request.trace for request in requests] == traces
        assert {request.view for request in requests} == {show}
    judge = Canned(*OK)
    OutcomeReward(judge=judge).score([group(rollout("one\ntwo\n"))])
    assert [(r.trace, r.view) for r in judge.calls[0]] == [("one\ntwo\n", "rollout")]


def test_all_requests_of_a_step_go_out_in_one_call():
    judge = Canned(*OK)
    groups = [group(rollout("a\nb\n"), rollout("c\n")), group(rollout("d\n", "length"), rollout("e\n"))]
    done: list[int] = []
    [[first, second], [cut, third]] = ProcessReward(slicer=LINES, judge=judge).score(groups, done.append)
    assert len(judge.calls) == 1
    assert [request.trace for request in judge.calls[0]] == ["a\n", "a\nb\n", "c\n", "e\n"]
    assert (first.values, second.values, third.values) == ((0.0, 0.25), (0.5,), (0.75,))
    assert cut.cut_off
    assert sum(done) >= 4


def test_one_failed_segment_leaves_its_rollout_out():
    config = {"max_failure_rate": 0.5}
    reward = ProcessReward(**config, slicer=LINES, judge=Canned(OK[1], FAILED, OK[2]))
    [[hurt, whole]] = reward.score([group(rollout("a\nb\n"), rollout("c\n"))])
    assert hurt.values == (0.25, None)
    assert not hurt.valid
    assert whole.valid


def test_a_rollout_without_text_is_not_asked_about():
    judge = Canned()
    [[empty]] = ProcessReward(slicer=LINES, judge=judge).score([group(rollout(""))])
    assert judge.calls == []
    assert empty.values == (0.0,)
    assert empty.valid
    judge = Canned()
    [[no_token]] = ProcessReward(slicer=LINES, judge=judge).score([group(rollout("", "length"))])
    assert (no_token.segments, no_token.values, no_token.length) == ((), (), 0)


# ------------------------------------------------------------------ too many failures


def test_too_many_failures_stop_the_run_and_show_why():
    late = Judgement(score=None, status="timeout")
    judgements = [OK[0], *[FAILED] * 3, late, Judgement(score=None, status="error", rationale="out of memory")]
    reward = OutcomeReward(judge=Canned(*judgements))
    scored = reward.score([group(*[rollout("a")] * 6)])
    with pytest.raises(JudgeError) as caught:
        reward.check_step(scored)
    message = str(caught.value)
    assert "5 of 6 judgements of this step failed (3 unparseable, 1 timeout, 1 error)" in message
    assert "max_failure_rate 25%" in message
    assert "[unparseable] no idea\n  [timeout] (no reply)\n  [error] out of memory" in message
    assert message.count("no idea") == 1, "the last three replies, no more"


def test_the_failure_rate_is_a_limit_not_a_count():
    for failures, limit in ((1, 0.25), (2, 0.5), (3, 1.0), (0, 0.0)):
        judgements = [*[FAILED] * failures, *OK][:4]
        reward = OutcomeReward(max_failure_rate=limit, judge=Canned(*judgements))
        [rewards] = reward.score([group(*[rollout("a")] * 4)])
        reward.check_step([rewards])
        assert [r.valid for r in rewards].count(False) == failures
    reward = OutcomeReward(max_failure_rate=0.2, judge=Canned(FAILED, *OK))
    with pytest.raises(JudgeError, match="1 of 4"):
        reward.check_step(reward.score([group(*[rollout("a")] * 4)]))


def test_the_failure_rate_also_limits_the_rollouts_that_are_lost():
    """One failed judgement in ten loses every second rollout of five segments."""
    reward = ProcessReward(slicer=LINES, judge=Canned(*[*OK, FAILED, *OK[1:]] * 2))
    scored = reward.score([group(*[rollout("a\nb\nc\nd\ne\n")] * 4)])
    assert [r.valid for r in scored[0]] == [True, False, True, False]
    with pytest.raises(
        JudgeError, match=r"2 of 20 judgements, and with them 2 of 4 rollouts, of this step failed"
    ) as caught:
        reward.check_step(scored)
    assert "[unparseable] no idea" in str(caught.value)
    lenient = ProcessReward(max_failure_rate=0.5, slicer=LINES, judge=Canned())
    lenient.check_step(scored)


def test_the_share_is_that_of_all_ranks():
    """One rank's judge fails throughout, which is a quarter of the step: what one rank scores raises nothing."""
    ill, well = OutcomeReward(judge=Canned(FAILED, FAILED)), OutcomeReward(judge=Canned(*OK, *OK))
    ranks = [ill.score([group(*[rollout("a")] * 2)]), well.score([group(*[rollout("a")] * 5), group(rollout("b"))])]
    well.check_step([rewards for rank in ranks for rewards in rank])
    with pytest.raises(JudgeError, match="2 of 2"):
        ill.check_step(ranks[0])


def test_a_step_without_a_reward_stops_whatever_the_limit():
    reward = OutcomeReward(max_failure_rate=1.0, judge=Canned(FAILED, FAILED))
    scored = reward.score([group(*[rollout("a")] * 2)])
    with pytest.raises(JudgeError, match=r"none of the 2 rollouts of this step has a reward.*2 of 2[^\n]*\n.*no idea"):
        reward.check_step(scored)
    config = {"normalization": "extremes_only"}
    reward = OutcomeReward(**config, judge=Canned(*OK[1:3]))
    with pytest.raises(JudgeError, match=r"reward\.normalization drops every score of it \(the last: 2, 3\)"):
        reward.check_step(reward.score([group(*[rollout("a")] * 2)]))


# ------------------------------------------------------------------ one answer each


class Loose(Canned):
    """Returns what it was made with, asked about whatever."""

    def judge(self, requests, on_progress=no_progress):
        return self.judgements


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (OK[:3], "judge 'Loose' returned 3 for 2 requests"),
        (OK[:1], "judge 'Loose' returned 1 for 2 requests"),
        ([], "returned 0 for 2 requests"),
        ([OK[0], None], "judge 'Loose' returned a NoneType where a Judgement belongs"),
        ([4.0, 5.0], r"returned a float where a Judgement belongs\. Give Judgement\(score=…\)"),
    ],
)
def test_a_judge_gives_one_judgement_a_request(given, message):
    for reward in (OutcomeReward(judge=Loose(*given)), ProcessReward(slicer=LINES, judge=Loose(*given))):
        with pytest.raises(JudgeError, match=message):
            reward.score([group(rollout("a\n"), rollout("b\n"))])


def test_a_reward_gives_one_reward_a_rollout():
    groups = [group(rollout("a\n"), rollout("b\n"))]
    [right] = OutcomeReward(judge=Canned(*OK)).score(groups)
    check_rewards(groups, [right], "reward 'mine'")
    for given, message in (
        ([], "reward 'mine' returned rewards of 0 groups for 1"),
        ([right[:1]], "reward 'mine' returned 1 rewards for the 2 rollouts of problem 'p'"),
        (
            [(right[0], 0.5)],
            r"'mine', rollout 1 of problem 'p': a float is no reward. Give RolloutReward\(value=",
        ),
        ([(right[0], RolloutReward(value=1.0, length=7))], "about 7 tokens, but it has 2"),
        ([(right[0], SegmentRewards(segments=(Segment(0, 1),), values=(0.5,)))], "about 1 tokens, but it has 2"),
    ):
        with pytest.raises(RewardError, match=message):
            check_rewards(groups, given, "reward 'mine'")


# ------------------------------------------------------------------ configs


def test_built_from_yaml():
    node = {
        "name": "process",
        "slicer": {"delimiter": "\n", "position": "end"},
        "judge": {"name": "reference_steps"},
        "show": "prefix",
    }
    reward = validate_choice(REWARDS, node, "reward").build(Resources())
    assert isinstance(reward, ProcessReward)
    assert reward.slicer.config.delimiter == "\n"
    [[scored]] = reward.score([group(rollout("one\n"))])
    assert scored.values == (0.25,)
    outcome = validate_choice(REWARDS, {"name": "outcome", "judge": {"name": "reference_steps"}}, "reward").build(
        Resources()
    )
    assert isinstance(outcome.judge, ReferenceStepsJudge)
    assert (reward.granularity, outcome.granularity, SparseReward.granularity) == ("segment", "rollout", "rollout")


def test_config_errors_name_the_key():
    with pytest.raises(ConfigError, match=r"reward\.judge: required"):
        validate_choice(REWARDS, {"name": "process"}, "reward")
    with pytest.raises(ConfigError, match=r"^reward\.max_failure_rate: must be in \[0, 1\]"):
        validate_choice(
            REWARDS, {"name": "outcome", "judge": {"name": "reference_steps"}, "max_failure_rate": 2}, "reward"
        )
    with pytest.raises(ConfigError, match=r"normalization.*Choose one of: clipped_extremes"):
        validate_choice(
            REWARDS, {"name": "outcome", "judge": {"name": "reference_steps"}, "normalization": "smoth"}, "reward"
        )


def test_check_and_sync_reach_the_judge():
    judge = Canned()
    for reward in (OutcomeReward(judge=judge), ProcessReward(slicer=LINES, judge=judge)):
        reward.check([problem()])
        reward.sync()
    assert (judge.syncs, len(judge.checked)) == (2, 2)
    SparseReward(verifier=ExactVerifier()).sync()


def test_swapping_the_reward_keeps_the_judge():
    layers = [
        {"judge": {"name": "reference_steps", "strict": False}, "show": "segment"},
        {"normalization": "semi_smooth"},
    ]
    config = from_layers(ProcessReward.Config, layers)
    assert (config.judge.config.strict, config.show, config.normalization) == (False, "segment", "semi_smooth")
