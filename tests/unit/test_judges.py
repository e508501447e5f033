"""Whose model judges, with whose reference, and judges that need none."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from exprl.config import validate_choice
from exprl.errors import ConfigError, JudgeError
from exprl.judges import (
    ReferenceJudge,
    ReferenceStepsJudge,
    SameModelJudge,
    SmallerModelJudge,
    WrongReferenceJudge,
)
from exprl.judges.llm import UnaidedJudge
from exprl.judges.reference_steps import steps_reached
from exprl.models.base import LanguageModel
from exprl.registry import JUDGES, REWARDS
from exprl.resources import Resources
from exprl.types import JudgeRequest
from tests.judging import backend, nested_requests, problem, scores

# ------------------------------------------------------------------ whose model


def test_weights_must_be_chosen():
    with pytest.raises(ConfigError, match="weights: required"):
        validate_choice(JUDGES, {"name": "same_model"}, "reward.judge")


@pytest.mark.parametrize("option", [{"cache_size": -1}, {"max_new_tokens": 0}, {"min_mass": 1.5}])
def test_options_out_of_range(option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        validate_choice(JUDGES, {"name": "same_model", "weights": "frozen", **option}, "judge")


def test_frozen_shares_the_reference_model_and_live_follows_the_policy(tiny):
    frozen = LanguageModel(model=copy.deepcopy(tiny.model), tokenizer=tiny.tokenizer, name="frozen")
    policy = LanguageModel(model=copy.deepcopy(tiny.model).train(), tokenizer=tiny.tokenizer, name="policy")
    resources = Resources(policy=policy, initial_policy=lambda: frozen)
    requests = nested_requests()[:3]
    judges = {
        weights: JUDGES.get("same_model").from_config(SameModelJudge.Config(weights=weights, min_mass=0), resources)
        for weights in ("frozen", "live")
    }
    before = {weights: judge.judge(requests) for weights, judge in judges.items()}
    assert [j.score for j in before["frozen"]] == scores(before["live"])
    assert policy.model.training
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(-1)
    judges["live"].sync()
    assert [j.score for j in judges["frozen"].judge(requests)] == scores(before["frozen"])
    assert [j.score for j in judges["live"].judge(requests)] != scores(before["live"])
    assert all(weight.grad is None for weight in policy.model.parameters())


def test_outside_a_run_the_error_says_what_to_pass():
    with pytest.raises(ConfigError, match="judge 'same_model' needs the frozen initial policy"):
        validate_choice(JUDGES, {"name": "same_model", "weights": "frozen"}, "judge").build(Resources())
    with pytest.raises(ConfigError, match="needs the policy model"):
        validate_choice(JUDGES, {"name": "same_model", "weights": "live"}, "judge").build(Resources())


@pytest.fixture
def folder(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path / "judge")
    tiny.tokenizer.save_pretrained(tmp_path / "judge")
    return str(tmp_path / "judge")


def test_smaller_model_loads_its_own(tiny, folder):
    node = {"name": "smaller_model", "model": {"name": "pretrained", "path": folder}, "min_mass": 0.0}
    judge = validate_choice(JUDGES, node, "judge").build(Resources(policy=tiny))
    assert isinstance(judge, SmallerModelJudge)
    same = SameModelJudge(weights="frozen", min_mass=0.0, backend=backend(tiny))
    requests = nested_requests()[:3]
    assert [j.score for j in judge.judge(requests)] == scores(same.judge(requests))
    assert not any(weight.requires_grad for weight in judge.backend.language_model.model.parameters())
    with pytest.raises(ConfigError, match="model: required"):
        validate_choice(JUDGES, {"name": "smaller_model"}, "judge")


def test_judges_of_one_run_that_name_the_same_model_load_it_once(folder):
    node = {"name": "smaller_model", "model": {"name": "pretrained", "path": str(folder), "dtype": "float32"}}
    routes = {"science": {"name": "outcome", "judge": {**node, "prompt": "science"}}}
    reward = {"name": "by_domain", "domains": routes, "default": {"name": "outcome", "judge": node}}
    built = validate_choice(REWARDS, reward, "reward").build(Resources())
    models = [one.judge.backend.language_model for one in (built.default, built.domains["science"])]
    assert models[0] is models[1]
    alone = validate_choice(JUDGES, node, "judge").build(Resources())
    assert alone.backend.language_model is not models[0]


@pytest.mark.parametrize("given", [{}, {"model": None}])
def test_smaller_model_needs_its_own_in_code_too(given):
    with pytest.raises(ConfigError, match=r"^model: "):
        SmallerModelJudge.Config(**given)


# ------------------------------------------------------------------ no reference


def around(name: str, inner: dict[str, object], resources: Resources):
    """The wrapper `name` around a judge, built."""
    return validate_choice(JUDGES, {"name": name, "around": inner}, "judge").build(resources)


def test_no_reference_asks_whichever_model_stood_there(tiny, folder):
    own = {"name": "smaller_model", "model": {"name": "pretrained", "path": folder}, "min_mass": 0.0}
    policy = {"name": "same_model", "weights": "frozen", "min_mass": 0.0}
    of_its_own = around("no_reference", own, Resources())
    of_the_run = around("no_reference", policy, Resources(policy=tiny, initial_policy=lambda: tiny))
    requests = [JudgeRequest(problem=problem("n", reference=None), trace="x")]
    of_its_own.check([requests[0].problem])
    unaided = UnaidedJudge(min_mass=0.0, backend=backend(tiny))
    assert [j.score for j in of_its_own.judge(requests)] == scores(unaided.judge(requests))
    assert [j.score for j in of_the_run.judge(requests)] == scores(unaided.judge(requests))


# ------------------------------------------------------------------ wrong reference

NUMBERED = [problem(f"p{k}", f"question {k}", f"step {k}\nAnswer: {k}") for k in range(6)]


def test_everyone_gets_another_ones_scaffold_always_the_same():
    judge = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=NUMBERED, seed=3)
    donors = {p.id: judge.shown(p).scaffold.reference.reveal() for p in NUMBERED}
    assert sorted(donors.values()) == sorted(p.scaffold.reference.reveal() for p in NUMBERED)
    for p in NUMBERED:
        assert donors[p.id] != p.scaffold.reference.reveal()
        assert judge.shown(p).question == p.question
    again = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=NUMBERED, seed=3)
    other = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=NUMBERED, seed=4)
    assert {p.id: again.shown(p).scaffold.reference.reveal() for p in NUMBERED} == donors
    assert {p.id: other.shown(p).scaffold.reference.reveal() for p in NUMBERED} != donors
    stranger = problem("stranger", reference=None)
    assert judge.shown(stranger) == judge.shown(stranger)
    assert judge.shown(stranger).scaffold.reference is not None


def test_two_problems_with_references_are_needed():
    with pytest.raises(JudgeError, match="at least 2 different references to swap, but got 1 problem with 1"):
        WrongReferenceJudge(around=ReferenceStepsJudge(), problems=[NUMBERED[0], problem("x", reference=None)])


def test_equal_references_are_never_handed_back():
    """Two problems in three share a solution, written a little differently; also one from elsewhere has it."""
    shared = ["step 1\nAnswer: 1", " Step  1\nanswer: 1 ", "step 1\u200b\nAnswer:\u00a01"]
    problems = [problem(f"p{k}", f"question {k}", shared[k % 3] if k % 3 else f"other {k}") for k in range(12)]
    for seed in range(5):
        judge = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=problems, seed=seed)
        for p in [*problems, problem("stranger", reference=shared[0])]:
            given = judge.shown(p).scaffold.reference.reveal()
            assert "".join(given.split()).lower() != "".join(p.scaffold.reference.reveal().split()).lower()
            assert given.startswith("other") or not p.scaffold.reference.reveal().strip().lower().startswith("step")


def test_references_that_are_all_one_are_refused_at_once():
    with pytest.raises(JudgeError, match="at least 2 different references to swap, but got 3 problems with 1"):
        WrongReferenceJudge(
            around=ReferenceStepsJudge(), problems=[problem(f"p{k}", reference=" Same. ") for k in range(3)]
        )


def test_the_steps_of_the_wrong_reference():
    judge = around("wrong_reference", {"name": "reference_steps"}, Resources(problems=NUMBERED))
    judge.check(NUMBERED)
    right = [JudgeRequest(problem=p, trace=p.scaffold.reference.reveal()) for p in NUMBERED]
    wrong = [JudgeRequest(problem=p, trace=judge.shown(p).scaffold.reference.reveal()) for p in NUMBERED]
    assert [judgement.score for judgement in ReferenceStepsJudge().judge(right)] == [5.0] * 6
    assert [judgement.score for judgement in judge.judge(right)] == [1.0] * 6
    assert [judgement.score for judgement in judge.judge(wrong)] == [5.0] * 6
    judge.sync()


def test_the_language_model_sees_the_wrong_reference_only(tiny, folder):
    resources = Resources(policy=tiny, initial_policy=lambda: tiny, problems=NUMBERED)
    judge = around("wrong_reference", {"name": "same_model", "weights": "frozen", "min_mass": 0.0}, resources)
    message = judge.around.prompt_for(JudgeRequest(problem=judge.shown(NUMBERED[0]), trace="t")).message
    assert "question 0" in message
    assert "step 0" not in message
    assert re_step(message) in {f"step {k}" for k in range(1, 6)}
    direct = ReferenceJudge.made(judge.around.config, backend=backend(tiny))
    requests = [JudgeRequest(problem=p, trace="step") for p in NUMBERED]
    manual = [JudgeRequest(problem=judge.shown(p), trace="step") for p in NUMBERED]
    assert [j.score for j in judge.judge(requests)] == scores(direct.judge(manual))
    own = {"name": "smaller_model", "min_mass": 0.0, "model": {"name": "pretrained", "path": folder}}
    other = around("wrong_reference", own, resources)
    assert [j.score for j in other.judge(requests)] == scores(direct.judge(manual))


def re_step(message: str) -> str:
    reference = message.split("<reference>\n")[1]
    return reference.splitlines()[0]


# ------------------------------------------------------------------ steps of the reference

STEPS = ("a=5", "b = 55", "c=7")


@pytest.mark.parametrize(
    ("trace", "strict", "loose"),
    [
        ("", 0, 0),
        ("a=5", 1, 1),
        ("a=5\nb = 55\nc=7", 3, 3),
        ("a=5\n\n  b =  55 \nc=7\nAnswer: 7", 3, 3),
        ("a=5\nb = 5", 1, 1),
        ("a=5\nb = 555", 1, 1),
        ("a=5\nb = 54\nb = 55", 1, 2),  # the second guess does not count when strict
        ("b = 55\na=5", 1, 1),
        ("Let a=5, so b = 55 and c=7.", 0, 3),
        ("aa=5\n", 0, 0),
        ("a=5\nc=7", 1, 1),
        ("a=5\na=5\nb = 55", 2, 2),
        ("a=5\nq = 8\nb = 55\nq = 9\nc=7", 3, 3),  # lines on which the reference is silent are passed over
        ("a=5\nb = 55 or so", 1, 2),
    ],
)
def test_steps_reached_by_hand(trace, strict, loose):
    assert steps_reached(trace, STEPS, strict=True) == strict
    assert steps_reached(trace, STEPS, strict=False) == loose


def test_a_step_is_searched_for_behind_the_last():
    assert steps_reached("7 then 5", ["5", "7"], strict=False) == 1
    assert steps_reached("5 5", ["5", "5", "5"], strict=False) == 2


def test_checkpoint_scores():
    with_steps = problem("s", reference="prose", steps=("one", "two", "three", "four"))
    lines = problem("l", reference="one\n\ntwo\n")
    judge = ReferenceStepsJudge(strict=True)
    requests = [
        JudgeRequest(problem=with_steps, trace="one\ntwo\nthree\nfive"),
        JudgeRequest(problem=with_steps, trace="one\ntwo\nthree\nfour"),
        JudgeRequest(problem=lines, trace="one\n2"),
        JudgeRequest(problem=lines, trace="zero"),
    ]
    done: list[int] = []
    judgements = judge.judge(requests, done.append)
    assert [judgement.score for judgement in judgements] == [4.0, 5.0, 3.0, 1.0]
    assert judgements[0].rationale == "3 of 4 steps reached"
    assert sum(done) == 4
    loose = ReferenceStepsJudge(strict=False)
    assert loose.judge([JudgeRequest(problem=lines, trace="zero, one, then two")])[0].score == 5.0


def test_checkpoint_needs_a_step_to_reach():
    with pytest.raises(JudgeError, match="no reference solution"):
        ReferenceStepsJudge().check([problem("n", reference=None)])
    with pytest.raises(JudgeError, match=r"'blank': its reference has no step"):
        ReferenceStepsJudge().check([problem("ok"), problem("blank", reference=" \n")])


# ------------------------------------------------------------------ imports


def test_judges_and_rewards_import_nothing_heavy():
    code = (
        "import sys, exprl.judges, exprl.rewards; "
        "print([m for m in ('torch', 'transformers', 'lightning', 'vllm') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
