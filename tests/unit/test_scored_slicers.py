"""A slicer that cuts by scores within a process reward: each prefix is judged once, and failures are no scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from exprl.config import validate_choice
from exprl.errors import ConfigError, ContractError, JudgeError
from exprl.experiment import load_experiment
from exprl.judges import NoReferenceJudge, ReferenceStepsJudge, WrongReferenceJudge
from exprl.judges.base import Judge
from exprl.registry import REWARDS
from exprl.resources import Resources
from exprl.rewards import ByDomainReward, ProcessReward
from exprl.rewards.process import ProcessReward as Process
from exprl.runs.preflight import check_training
from exprl.slicers import ChangePointSlicer, DelimiterSlicer, ScoredSlicer
from exprl.terminal.progress import no_progress
from exprl.training import metrics
from exprl.training.exchange import remote
from exprl.types import (
    Advantages,
    Curve,
    Judgement,
    JudgeRequest,
    Rollout,
    RolloutGroup,
    ScoredGroup,
    Segment,
    SegmentRewards,
)
from exprl.verifiers import ExactVerifier
from tests.rollouts import problem_of, rollout_of

STEPS = ("a 1", "b 2", "c 3", "d 4")
PROBLEM = problem_of(steps=STEPS)
FAILED = Judgement(score=None, status="timeout", rationale="too late")
LEVELS = ChangePointSlicer(every=1, fit="level", max_tokens=None)


def lines(*texts: str, finish: Any = "stop") -> Rollout:
    """A token a word, and one a line break."""
    tokens = [token for text in texts for token in (*text.replace(" ", "| ").split("|"), "\n")]
    return rollout_of(*tokens, finish=finish)


RIGHT_THEN_WRONG = lines("a 1", "b 2", "c 9", "d 4")


class ByLength(Judge):
    """The score that a function has for a trace's length in characters; keeps what it was asked, and nothing else."""

    def __init__(self, score: Callable[[int], float | None]) -> None:
        super().__init__()
        self.score, self.asked, self.calls, self.started = score, list[str](), 0, list[str]()

    def judge(self, requests: Sequence[JudgeRequest], on_progress: Any = no_progress) -> list[Judgement]:
        self.calls += 1
        self.asked += [request.trace for request in requests]
        scores = [self.score(len(request.trace)) for request in requests]
        return [FAILED if s is None else Judgement(score=s, rationale="said", probabilities=(1.0,)) for s in scores]

    def start(self, requests: Sequence[JudgeRequest]) -> None:
        self.started += [request.trace for request in requests]


def scored(reward: ProcessReward, *rollouts: Rollout) -> list[SegmentRewards]:
    [rewards] = reward.score([RolloutGroup(problem=PROBLEM, rollouts=rollouts)])
    assert all(isinstance(one, SegmentRewards) for one in rewards)
    return list(rewards)  # type: ignore[arg-type]


def ends(reward: SegmentRewards) -> list[int]:
    return [segment.end for segment in reward.segments]


# ------------------------------------------------------------------ by hand


def test_segments_end_where_the_score_rises_and_have_the_scores_there() -> None:
    reward = ProcessReward(slicer=LEVELS, judge=ReferenceStepsJudge())
    [one] = scored(reward, RIGHT_THEN_WRONG)
    assert ends(one) == [2, 5, 12], "behind each right line, and all that comes after them"
    assert one.values == (0.25, 0.5, 0.5)
    assert one.curve is not None
    assert one.curve.ends == tuple(range(1, 13))
    assert one.curve.scores == (1.0, *[2.0] * 3, *[3.0] * 8)


def test_no_prefix_is_judged_twice_and_all_in_one_call() -> None:
    judge = ByLength(lambda length: 1.0 + (length > 6))
    reward = ProcessReward(slicer=LEVELS, judge=judge)
    rollouts = [RIGHT_THEN_WRONG, lines("x 1", "y 2", "z 3")]
    found = scored(reward, *rollouts)
    assert judge.calls == 1
    assert len(judge.asked) == len(set(judge.asked)) == sum(len(rollout) for rollout in rollouts)
    for one in found:
        assert len(one.judgements) == len(one.segments) == 2
        assert one.judgements[0].rationale == "said", "those of the segments are whole"
        assert one.curve is not None
        assert one.curve.judgements[0] == Judgement(score=1.0), "of the others the scores are kept"
        assert one.asked == one.curve.judgements


def test_the_judge_begins_with_the_sweep_while_others_are_sampled() -> None:
    judge = ByLength(lambda length: 1.0)
    reward = ProcessReward(slicer=LEVELS, judge=judge)
    reward.start(PROBLEM, RIGHT_THEN_WRONG)
    scored(reward, RIGHT_THEN_WRONG)
    assert judge.started == judge.asked


def test_what_is_cut_off_is_one_segment_that_nobody_is_asked_about() -> None:
    judge = ByLength(lambda length: 1.0)
    reward = ProcessReward(slicer=LEVELS, judge=judge)
    cut = lines("a 1", "b 2", finish="length")
    [one, nothing] = scored(reward, cut, rollout_of(finish="length"))
    assert (one.cut_off, one.segments, one.values, one.curve) == (True, (Segment(0, len(cut)),), (), None)
    assert nothing.segments == ()
    assert judge.asked == []
    assert reward.advice([(one, one)]) is None, "that says nothing of its cuts"
    [asked] = scored(ProcessReward(slicer=LEVELS, judge=judge, clip_length=False), cut)
    assert not asked.cut_off
    assert "one segment for slicer 'change_point'" in str(reward.advice([(asked,)]))


def test_an_empty_rollout_is_not_asked_about() -> None:
    judge = ByLength(lambda length: 5.0)
    [blank, nothing] = scored(ProcessReward(slicer=LEVELS, judge=judge), rollout_of(" ", "\n", ""), rollout_of())
    assert judge.asked == []
    assert (blank.values, nothing.values, nothing.segments) == ((0.0,), (), ())


# ------------------------------------------------------------------ failures


def test_a_failed_point_is_no_score_and_costs_no_rollout() -> None:
    whole = ProcessReward(slicer=LEVELS, judge=ByLength(lambda length: 1.0 + (length > 6)))
    failing = ProcessReward(slicer=LEVELS, judge=ByLength(lambda n: None if n in (3, 9) else 1.0 + (n > 6)))
    [before], [after] = scored(whole, RIGHT_THEN_WRONG), scored(failing, RIGHT_THEN_WRONG)
    assert (after.segments, after.values, after.valid) == (before.segments, before.values, True)
    assert after.curve is not None
    assert after.curve.judgements.count(FAILED) == 2
    assert after.curve.scores.count(None) == 2


def test_a_failed_end_takes_the_rollout_out_of_the_loss() -> None:
    last = len(RIGHT_THEN_WRONG.text)
    judge = ByLength(lambda length: None if length == last else 1.0 + (length > 6))
    [one] = scored(ProcessReward(slicer=LEVELS, judge=judge), RIGHT_THEN_WRONG)
    assert one.values[-1] is None
    assert not one.valid
    [none] = scored(ProcessReward(slicer=LEVELS, judge=ByLength(lambda _: None)), RIGHT_THEN_WRONG)
    assert (ends(none), none.values, none.valid) == ([12], (None,), False)


def test_all_failures_of_the_sweep_count_for_stopping_the_run() -> None:
    judge = ByLength(lambda length: None if length % 2 else 3.0)  # the whole has an even length
    reward = ProcessReward(slicer=LEVELS, judge=judge, max_failure_rate=0.25)
    [one] = scored(reward, RIGHT_THEN_WRONG)
    assert one.valid
    failed = sum(score is None for score in one.asked and one.curve.scores)  # type: ignore[union-attr]
    with pytest.raises(JudgeError, match=rf"{failed} of 12 judgements of this step failed .*[\s\S]*too late"):
        reward.check_step([(one,)])


def test_metrics_and_other_ranks_know_of_every_judgement() -> None:
    [one] = scored(ProcessReward(slicer=LEVELS, judge=ByLength(lambda n: None if n == 3 else 2.0)), RIGHT_THEN_WRONG)
    group = RolloutGroup(problem=PROBLEM, rollouts=(RIGHT_THEN_WRONG,))
    advantages = Advantages(segments=one.segments, values=(0.0,))
    figures = metrics.judge_metrics([ScoredGroup(group=group, rewards=(one,), advantages=(advantages,))])
    assert figures["judge/count"] == 12
    assert figures["judge/timeout_rate"] == pytest.approx(1 / 12)
    [(_, (told,))] = remote([(group, (replace(one, curve=replace(one.curve, judgements=(FAILED,) * 12)),))])
    assert told.asked == (FAILED,) * 12
    assert told.judgements[0].rationale == ""


# ------------------------------------------------------------------ judges and routes


def test_the_curve_is_that_of_whoever_judges() -> None:
    other = problem_of("q", answer="6", steps=("x 5", "y 6"))
    inner = ReferenceStepsJudge()
    wrong = WrongReferenceJudge(around=inner, problems=[PROBLEM, other])
    none = NoReferenceJudge(around=inner, verifier=ExactVerifier())
    rollout = lines("x 5", "a 1", "y 6", "Answer: 4")
    found = [scored(ProcessReward(slicer=LEVELS, judge=judge), rollout)[0] for judge in (inner, wrong, none)]
    assert [ends(one) for one in found] == [[5, 12], [2, 8, 12], [12]]
    assert [one.values for one in found] == [(0.25, 0.25), (0.5, 1.0, 1.0), (1.0,)]
    assert found[2].curve is not None
    assert found[2].curve.scores[8:] == (1.0, 1.0, 5.0, 5.0), "the verifier's word on each prefix"


def test_a_route_of_a_domain_may_cut_by_scores_and_another_by_the_text() -> None:
    process = ProcessReward(slicer=LEVELS, judge=ReferenceStepsJudge())
    by_line = ProcessReward(slicer=DelimiterSlicer(delimiter="\n", position="end"), judge=ReferenceStepsJudge())
    reward = ByDomainReward(domains={"math": process, "code": by_line})
    groups = [
        RolloutGroup(problem=replace(PROBLEM, domain=domain), rollouts=(RIGHT_THEN_WRONG,))
        for domain in ("math", "code")
    ]
    [[math], [code]] = reward.score(groups)
    assert [len(math.segments), len(code.segments)] == [3, 4]  # type: ignore[union-attr]
    assert math.curve is not None  # type: ignore[union-attr]
    assert code.curve is None  # type: ignore[union-attr]


# ------------------------------------------------------------------ a curve beside any slicer


def test_a_curve_changes_no_reward() -> None:
    options: dict[str, Any] = {
        "slicer": DelimiterSlicer(delimiter="\n", position="end"),
        "judge": ReferenceStepsJudge(),
    }
    [plain] = scored(ProcessReward(**options), RIGHT_THEN_WRONG)
    [with_curve] = scored(ProcessReward(**options, curve_every=2), RIGHT_THEN_WRONG)
    assert plain.curve is None
    assert replace(with_curve, curve=None) == plain
    assert with_curve.curve is not None
    assert with_curve.curve.ends == (2, 3, 4, 6, 8, 9, 10, 12)
    assert with_curve.curve.scores == (2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0)
    [cuts] = scored(ProcessReward(slicer=ChangePointSlicer(every=3), judge=ReferenceStepsJudge()), RIGHT_THEN_WRONG)
    more = ProcessReward(slicer=ChangePointSlicer(every=3), judge=ReferenceStepsJudge(), curve_every=2)
    [same] = scored(more, RIGHT_THEN_WRONG)
    assert same.segments == cuts.segments, "the slicer is given what it asked for"
    assert len(same.asked) > len(cuts.asked)


def test_a_curve_has_a_judgement_a_prefix() -> None:
    with pytest.raises(ValueError, match="1 for 2"):
        Curve(ends=(1, 2), judgements=(FAILED,))


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"name": "process", "slicer": {"name": "change_point"}, "show": "segment"},
            r"^reward\.show: must be prefix with slicer 'change_point', .* but got 'segment'",
        ),
        (
            {"name": "process", "curve_every": 4, "show": "segment"},
            r"^reward\.curve_every: 4 asks about prefixes, but show is 'segment'\. Set show=prefix",
        ),
        ({"name": "outcome", "slicer": {"name": "change_point"}}, r"^reward\.slicer: unknown option"),
        ({"name": "sparse", "slicer": {"name": "change_point"}}, r"^reward\.slicer: unknown option"),
    ],
)
def test_what_has_no_scores_of_prefixes_is_refused(node: dict[str, Any], message: str) -> None:
    judge = {} if node["name"] == "sparse" else {"judge": {"name": "reference_steps"}}
    with pytest.raises(ConfigError, match=message):
        validate_choice(REWARDS, {**node, **judge}, "reward")


def test_a_reward_of_ones_own_that_gets_no_scores_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = type("Mine", (Process,), {"gives_scores": False})
    REWARDS.names()
    monkeypatch.setitem(REWARDS._classes, "mine", mine)
    experiment = load_experiment("quickstart", ["reward.name=mine", "reward.slicer.name=change_point"])
    with pytest.raises(ConfigError, match=r"^reward\.slicer: 'change_point' cuts by a judge's scores, which 'mine'"):
        check_training(experiment)
    check_training(load_experiment("quickstart", ["reward.slicer.name=change_point"]))


class Own(ScoredSlicer):
    """Somebody's, which gives what it is made with."""

    def __init__(self, ends: Any, segments: Any) -> None:
        super().__init__()
        self.ends, self.segments = ends, segments

    def prefix_ends(self, rollout: Rollout) -> Any:
        return self.ends

    def slice_scored(self, rollout: Rollout, scores: Sequence[float | None]) -> Any:
        assert len(scores) == len(self.ends)
        return self.segments


@pytest.mark.parametrize(
    ("points", "segments", "message"),
    [
        ((4, 2, 12), (), r"^slicer 'Own': gave \(4, 2, 12\).*ascend from 1 or more to all 12 tokens"),
        ((4, 8), (), "to all 12 tokens"),
        ((), (), "to all 12 tokens"),
        ((0, 12), (), "from 1 or more"),
        ((6.0, 12), (), "whole numbers"),
        (None, (), r"gave None \(NoneType\)"),
        ((6, 12), (Segment(0, 6),), "segments must be contiguous and cover all 12 tokens"),
        ((6, 12), (Segment(0, 5), Segment(5, 12)), "a segment that ends at token 5, where it asked for no score"),
        ((6, 12), None, "must return a tuple of Segment"),
    ],
)
def test_a_slicer_that_breaks_its_contract_is_named(points: Any, segments: Any, message: str) -> None:
    reward = ProcessReward(slicer=Own(points, segments), judge=ByLength(lambda _: 2.0))
    with pytest.raises(ContractError, match=message):
        scored(reward, RIGHT_THEN_WRONG)


def test_one_of_ones_own_is_given_its_scores() -> None:
    slicer = Own(tuple(np.array([6, 12])), (Segment(0, 6), Segment(6, 12)))
    [one] = scored(ProcessReward(slicer=slicer, judge=ReferenceStepsJudge()), RIGHT_THEN_WRONG)
    assert one.values == (0.5, 0.5)


def test_built_from_yaml() -> None:
    node = {
        "name": "process",
        "slicer": {"name": "change_point", "every": 1, "fit": "level", "max_segments": 2},
        "judge": {"name": "reference_steps"},
    }
    reward = validate_choice(REWARDS, node, "reward").build(Resources())
    [one] = scored(reward, RIGHT_THEN_WRONG)
    assert len(one.segments) == 2
