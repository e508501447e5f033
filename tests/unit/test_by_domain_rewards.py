"""Routing by domain: each problem's reward, what is asked of a step, and who is named where it fails."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import pytest
import torch

from exprl.advantages import SegmentDelta
from exprl.config import validate_choice
from exprl.errors import ContractError, JudgeError, RewardError
from exprl.judges import Judge
from exprl.registry import REWARDS
from exprl.resources import Resources
from exprl.rewards import ByDomainReward, OutcomeReward, ProcessReward, SparseReward
from exprl.rewards.steps import StepChecks, advice_on, judged_as
from exprl.slicers import DelimiterSlicer
from exprl.terminal.progress import no_progress
from exprl.training.glossary import metric_of
from exprl.training.metrics import domain_metrics, judge_metrics
from exprl.types import Judgement, Problem, RolloutGroup, RolloutReward, Segment, SegmentRewards
from exprl.verifiers import ExactVerifier
from tests.by_domain import JUDGE, of
from tests.rollouts import group_of, rollout_of, scored_of


class Recording(Judge):
    """Notes whom it is asked about, and gives the middle score."""

    def __init__(self, *judgements: Judgement) -> None:
        super().__init__()
        self.judgements, self.asked, self.life = judgements or (Judgement(score=3.0),), list[str](), list[str]()

    def judge(self, requests: Any, on_progress: Any = no_progress) -> list[Judgement]:
        self.asked += [request.problem.id for request in requests]
        on_progress(len(requests))
        return [self.judgements[number % len(self.judgements)] for number in range(len(requests))]

    def start(self, requests: Any) -> None:
        self.life += [f"start {request.problem.id}" for request in requests]

    def check(self, problems: Sequence[Problem]) -> None:
        self.life += [f"check {problem.id}" for problem in problems]

    def prepare(self) -> None:
        self.life.append("prepare")

    def sync(self) -> None:
        self.life.append("sync")

    def close(self) -> None:
        self.life.append("close")

    def texts(self) -> dict[str, str]:
        return {"prompt": str(id(self))}

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: Any) -> None:
        self.asked = state["asked"]


def mixed(one: Judge, other: Judge) -> ByDomainReward:
    slicer = DelimiterSlicer(delimiter="\n", position="end")
    return ByDomainReward(
        domains={
            "math": ProcessReward(judge=one, slicer=slicer),
            "science": OutcomeReward(judge=other),
            "code": SparseReward(verifier=ExactVerifier()),
        }
    )


def groups() -> list[RolloutGroup]:
    lines = rollout_of("a\n", "b\n", "c\n")
    said = (rollout_of("The answer is 4"), rollout_of("The answer is 5"))
    return [
        group_of(of("code", "c1"), *said),
        group_of(of("math", "m1"), lines),
        group_of(of("science", "s1"), lines, lines),
        group_of(of("math", "m2"), lines),
    ]


def test_each_group_has_the_reward_of_its_domain() -> None:
    one, other = Recording(), Recording()
    told = list[int]()
    code, first, science, second = mixed(one, other).score(groups(), told.append)
    assert [own.value for own in code] == [1.0, 0.0]
    assert [type(own) for own in (*science, *first, *second)] == [RolloutReward] * 2 + [SegmentRewards] * 2
    assert first[0].values == (0.5, 0.5, 0.5)
    assert (one.asked, other.asked) == (["m1"] * 3 + ["m2"] * 3, ["s1", "s1"])
    assert sum(told) == 6 + 2 + 2


def test_a_rollout_reward_is_one_segment_for_an_advantage_of_segments() -> None:
    rewards = mixed(Recording(), Recording()).score(groups())
    code, math, *_ = SegmentDelta().estimate(rewards, [g.problem.domain for g in groups()])
    assert [(own.segments, own.values) for own in code] == [((Segment(0, 1),), (0.5,)), ((Segment(0, 1),), (-0.5,))]
    assert math[0].values == (0.0, 0.0, 0.0)


def test_life_reaches_every_route() -> None:
    one, other = Recording(), Recording()
    reward = mixed(one, other)
    problems = [group.problem for group in groups()]
    reward.check(problems)
    reward.prepare()
    reward.start(problems[2], groups()[2].rollouts[0])
    reward.sync()
    reward.score(groups())
    reward.close()
    assert one.life == ["check m1", "check m2", "prepare", "sync", "close"]
    assert other.life == ["check s1", "prepare", "start s1", "sync", "close"]
    state = reward.state_dict()
    fresh = Recording(), Recording()
    mixed(*fresh).load_state_dict(state)
    assert [judge.asked for judge in fresh] == [one.asked, other.asked]
    assert reward.texts() == {"domains.math: prompt": str(id(one)), "domains.science: prompt": str(id(other))}


def test_every_reward_looks_at_its_own_part_of_a_step() -> None:
    failing = Recording(Judgement(score=None, status="error", rationale="no idea"))
    reward = mixed(Recording(), failing)
    problems, rewards = [group.problem for group in groups()], reward.score(groups())
    places = [0, 1, *[2] * 16, 3]  # 32 rollouts of science
    many = [problems[place] for place in places], [rewards[place] for place in places]
    with pytest.raises(JudgeError, match=r"^reward\.domains\.science: 32 of 32 judgements of this step failed"):
        StepChecks(reward).check(*many)
    StepChecks(reward).check(problems[:2], rewards[:2])
    one_line = [group_of(group.problem, rollout_of("a\n")) for group in groups()]
    said = advice_on(reward, problems, reward.score(one_line))
    assert said is not None
    assert said.startswith("reward.domains.math: 2 of 2 rollouts (of 1 tokens on average) are one segment")
    assert advice_on(reward, problems[2:3], reward.score(one_line[2:3])) is None


def steps_until_stopped(checks: StepChecks, reward: ByDomainReward, most: int) -> int | None:
    """At which of so many steps a run stops; None: at none."""
    problems = [group.problem for group in groups()]
    for number in range(1, most + 1):
        step = problems, reward.score(groups())
        try:
            checks.check(*step)
        except JudgeError as error:
            if not str(error).startswith("reward.domains.science: 32 of 32 judgements of the last steps failed"):
                raise
            return number
        checks.count(*step)
    return None


def resumed(checks: StepChecks, reward: ByDomainReward) -> StepChecks:
    """In the process that goes on, from a checkpoint."""
    content = BytesIO()
    torch.save(checks.state_dict(), content)
    content.seek(0)
    fresh = StepChecks(reward)
    fresh.load_state_dict(torch.load(content, weights_only=True))
    return fresh


FAILS = Judgement(score=None, status="error", rationale="no idea")


def test_a_route_with_few_rollouts_a_step_stops_a_run_when_they_have_become_more() -> None:
    reward = mixed(Recording(), Recording(FAILS))
    assert steps_until_stopped(StepChecks(reward), reward, 20) == 16  # 2 of science a step


def test_a_run_that_is_interrupted_stops_where_it_would_have() -> None:
    reward = mixed(Recording(), Recording(FAILS))
    checks = StepChecks(reward)
    for _ in range(3):
        assert steps_until_stopped(checks, reward, 4) is None
        checks = resumed(checks, reward)
    assert steps_until_stopped(checks, reward, 10) == 4


def test_a_run_that_was_stopped_can_go_on() -> None:
    bad, good = mixed(Recording(), Recording(FAILS)), mixed(Recording(), Recording())
    checks = StepChecks(bad)
    assert steps_until_stopped(checks, bad, 20) == 16
    assert steps_until_stopped(resumed(checks, good), good, 20) is None
    assert steps_until_stopped(resumed(checks, bad), bad, 20) == 16, "what is as it was stops it again"


def test_what_is_long_past_stops_no_run() -> None:
    bad, good = mixed(Recording(), Recording(FAILS)), mixed(Recording(), Recording())
    checks = StepChecks(bad)
    for reward, steps in ((bad, 4), (good, 40), (bad, 4)):  # 8 of the last 32, which is no more than a quarter
        assert steps_until_stopped(checks, reward, steps) is None


def test_a_step_without_any_reward_stops_a_run_at_once() -> None:
    reward = mixed(Recording(), Recording(Judgement(score=None, status="error", rationale="no idea")))
    science = groups()[2:3]
    with pytest.raises(JudgeError, match="none of the 2 rollouts of this step has a reward"):
        StepChecks(reward).check([science[0].problem], reward.score(science))


def test_programs_are_not_counted_as_judgements() -> None:
    routes = {"law": {"name": "outcome", "judge": JUDGE}, "code": {"name": "execution"}}
    reward = validate_choice(REWARDS, {"name": "by_domain", "domains": routes}, "reward").build(Resources())
    asked = Judgement(score=5.0), Judgement(score=None, status="error")
    step = [
        scored_of(
            [rollout_of("a")],
            problem=of(domain),
            rewards=[RolloutReward(value=1.0 if one.score else None, length=1, judgements=(one,))],
        )
        for domain, one in (("law", asked[0]), ("code", asked[0]), ("code", asked[1]))
    ]
    who = judged_as(reward, [s.group.problem for s in step])
    assert who == ["judge", "program", "program"]
    total, own = judge_metrics(step, who), domain_metrics(step, [], who, tolerance=0.0)
    assert (total["judge/count"], total["judge/ok_rate"], total["judge/score_5"]) == (1, 1, 1)
    assert (total["program/count"], total["program/ok_rate"], total["program/error_rate"]) == (2, 0.5, 0.5)
    assert (own["judge/count/law"], own["program/count/code"], own["program/ok_rate/code"]) == (1, 2, 0.5)
    assert all(metric_of(name) is not None for name in (*total, *own))
    assert not {"judge/count/code", "program/count/law"} & own.keys()


def test_a_reward_that_breaks_its_contract_is_named_with_its_route() -> None:
    class Lost(SparseReward):
        def score(self, groups: Any, on_progress: Any = no_progress) -> Any:
            return super().score(groups, on_progress)[1:]

    class Wrong(SparseReward):
        def score(self, groups: Any, on_progress: Any = no_progress) -> Any:
            return [(RolloutReward(value="much", length=1),)]  # type: ignore[arg-type]

    for cls, error, said in (
        (Lost, RewardError, r"^reward 'Lost' \(domains\.code\) returned rewards of 0 groups for 1"),
        (Wrong, ContractError, r"^reward 'Wrong' \(domains\.code\): a reward is a number in \[0, 1\]"),
    ):
        reward = ByDomainReward(domains={"code": cls(verifier=ExactVerifier())})
        with pytest.raises(error, match=said):
            reward.score(groups()[:1])


def test_routes_of_routes() -> None:
    inner = ByDomainReward(
        domains={"code": SparseReward(verifier=ExactVerifier())}, default=OutcomeReward(judge=Recording())
    )
    outer = ByDomainReward(domains={"math": ProcessReward(judge=Recording())}, default=inner)
    assert type(outer).granularities(outer.config) == {
        "domains.math": "segment",
        "default.domains.code": "rollout",
        "default.default": "rollout",
    }
    problems = [group.problem for group in groups()]
    found = {key: places for key, _, places in outer.scorers(problems)}
    assert found == {"domains.math": [1, 3], "default.domains.code": [0], "default.default": [2]}


def test_a_wrong_reference_is_one_of_the_same_domain() -> None:
    wrong = {"name": "outcome", "judge": {"name": "wrong_reference", "around": JUDGE}}
    node = {"name": "by_domain", "domains": {"math": wrong}, "default": wrong}
    problems = [of("math", str(n), steps=[f"math {n}"]) for n in range(5)]
    problems += [of(domain, domain, steps=[domain]) for domain in ("law", "art", "law 2")]
    built = validate_choice(REWARDS, node, "reward").build(Resources(problems=problems, seed=1))
    for problem in problems:
        judge = built.routes[problem.domain].judge
        shown = judge.shown(problem).scaffold.reference.reveal()
        assert shown.startswith("math") == (problem.domain == "math")
        assert shown != problem.scaffold.reference.reveal()
    with pytest.raises(JudgeError, match="needs at least 2 different references"):
        validate_choice(REWARDS, node, "reward").build(Resources(problems=problems[:6], seed=1))
