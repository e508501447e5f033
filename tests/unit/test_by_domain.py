"""Routing by domain: options and their layers, and which component sees which problem."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
import torch

from exprl.advantages import GroupAdvantage, SegmentBatch, SegmentDelta, SegmentEnd
from exprl.build import Build
from exprl.component import choose, required_choice
from exprl.config import free_keys, from_layers, parse_overrides, to_node, to_yaml, validate_choice
from exprl.config.fields import choices_in
from exprl.config.reading import parse
from exprl.domains import Routes, check_labels
from exprl.errors import ConfigError, ContractError, DataError, JudgeError, ModelError, RewardError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.experiment import Experiment
from exprl.judges import Judge
from exprl.registry import JUDGES, REWARDS
from exprl.resources import Resources
from exprl.rewards import ByDomainReward, OutcomeReward, ProcessReward, Reward, SparseReward
from exprl.rewards.grading import graders
from exprl.rewards.steps import StepChecks, advice_on, judged_as
from exprl.runs.preflight import check_parts
from exprl.slicers import DelimiterSlicer
from exprl.terminal.progress import no_progress
from exprl.text.prompts import ByDomainPrompt, PromptBuilder, PromptTemplate
from exprl.training.evaluation_log import evaluation_metrics
from exprl.training.glossary import metric_of
from exprl.training.metrics import domain_metrics, judge_metrics
from exprl.types import Judgement, Problem, RolloutGroup, RolloutReward, ScoredGroup, Segment, SegmentRewards
from exprl.verifiers import ByDomainVerifier, ChoiceVerifier, ExactVerifier, MathVerifier
from tests.conftest import character_tokenizer
from tests.rollouts import group_of, problem_of, rollout_of, scored_of

JUDGE = {"name": "reference_steps", "strict": False}
BASE: dict[str, Any] = {
    "model": {"name": "chain"},
    "reward": {
        "name": "by_domain",
        "domains": {
            "math": {"name": "process", "judge": JUDGE, "normalization": "clipped_extremes"},
            "science": {"name": "outcome", "judge": JUDGE},
            "code": {"name": "sparse"},
        },
    },
    "verifier": {"name": "by_domain", "domains": {"math": {"name": "math"}}, "default": {"name": "exact"}},
    "prompt": {
        "name": "by_domain",
        "domains": {"code": {"template": "Program: {question}", "name": "template"}},
        "default": {"name": "template", "system": "Think."},
    },
}


def layered(*overrides: str) -> Experiment:
    return from_layers(Experiment, [BASE, parse_overrides(overrides)])


def of(domain: str, problem_id: str = "p", **options: Any) -> Problem:
    return replace(problem_of(problem_id, **options), domain=domain)


# ------------------------------------------------------------------ options


def test_what_is_saved_is_read_as_what_it_was() -> None:
    made = layered("reward.default.name=sparse")
    assert from_layers(Experiment, [parse(to_yaml(made))]) == made
    assert from_layers(Experiment, [to_node(made)]) == made


def test_an_override_changes_one_route_and_keeps_the_options_that_both_components_have() -> None:
    changed = layered("reward.domains.math.name=outcome").reward.config.domains
    assert changed["math"].name == "outcome"
    assert changed["math"].config.normalization == "clipped_extremes"
    assert changed["math"].config.judge.config.strict is False
    assert changed["science"] == layered().reward.config.domains["science"]


def test_ablations_are_one_override_a_domain() -> None:
    judge = layered("reward.domains.math.judge.name=no_reference").reward.config.domains["math"].config.judge
    assert (judge.name, judge.config.around.name, judge.config.around.config.strict) == (
        "no_reference",
        "reference_steps",
        False,
    )
    assert layered("reward.domains.code.name=outcome", "reward.domains.code.judge.name=reference_steps")
    assert list(layered("reward.domains.math=null").reward.config.domains) == ["science", "code"]
    assert layered("reward.name=sparse").reward.name == "sparse"


@pytest.mark.parametrize("wrapper", ["no_reference", "wrong_reference"])
def test_one_override_changes_routes_that_share_a_judge(wrapper: str) -> None:
    shared = {"reward": {"domains": {"science": {"judge": "${reward.domains.math.judge}"}}}}
    layers = [BASE, shared, parse_overrides([f"reward.domains.math.judge.name={wrapper}"])]
    domains = from_layers(Experiment, layers).reward.config.domains
    assert domains["math"].config.judge == domains["science"].config.judge
    assert (domains["science"].name, domains["science"].config.judge.name) == ("outcome", wrapper)


@pytest.mark.parametrize("wrapper", ["no_reference", "wrong_reference"])
def test_an_option_of_the_whole_is_set_in_every_route_that_has_it(wrapper: str) -> None:
    changed = layered(f"reward.judge.name={wrapper}").reward.config.domains
    assert [changed[domain].config.judge.name for domain in ("math", "science")] == [wrapper] * 2
    assert all(changed[domain].config.judge.config.around.config.strict is False for domain in ("math", "science"))
    assert changed["math"].config.normalization == "clipped_extremes"
    assert changed["code"] == layered().reward.config.domains["code"]


SAME_MODEL = "{name: same_model, weights: frozen, prompt: code}"
NESTED = "reward.domains.code={name: by_domain, domains: {law: {name: outcome, judge: {name: reference_steps}}}}"
NEW_ROUTE = f"reward.domains.code={{name: outcome, judge: {SAME_MODEL}}}"


def chains(*overrides: str, layers: Sequence[dict[str, Any]] = (BASE,)) -> dict[str, list[str]]:
    """The judges of each route that has one, the outermost first."""
    found: dict[str, list[str]] = {}
    reward = from_layers(Experiment, [*layers, parse_overrides(overrides)]).reward
    for key, choice in choices_in(reward, "reward"):
        if choice.cls.registered_family == "judge":
            route = key.split(".judge")[0].removeprefix("reward.")
            found.setdefault(route, []).append(choice.name)
    return found


@pytest.mark.parametrize("wrapper", ["no_reference", "wrong_reference"])
@pytest.mark.parametrize(
    ("more", "within"),
    [
        ((NEW_ROUTE,), {"domains.code": "same_model"}),
        ((f"reward.domains.math.judge={SAME_MODEL}",), {"domains.math": "same_model"}),
        (
            ("reward.domains.science.judge.name=same_model", "reward.domains.science.judge.weights=live"),
            {"domains.science": "same_model"},
        ),
        (("reward.domains.science.judge.strict=true",), {}),
        (("reward.domains.science.judge.around.strict=true",), {}),
        ((f"reward.default={{name: outcome, judge: {SAME_MODEL}}}",), {"default": "same_model"}),
        (
            (NESTED,),
            {"domains.code.domains.law": "reference_steps"},
        ),
    ],
)
def test_a_wrapper_for_all_stands_around_what_is_said_of_one_route(
    wrapper: str, more: tuple[str, ...], within: dict[str, str]
) -> None:
    every = {"domains.math": "reference_steps", "domains.science": "reference_steps"} | within
    for overrides in ((*more, f"reward.judge.name={wrapper}"), (f"reward.judge.name={wrapper}", *more)):
        assert chains(*overrides) == {route: [wrapper, judge] for route, judge in every.items()}


def test_options_said_of_a_route_hold_within_the_wrapper_for_all() -> None:
    made = layered(
        "reward.judge={name: no_reference, around: {strict: false}}", NEW_ROUTE, "reward.domains.math.judge.strict=true"
    ).reward.config.domains
    assert made["math"].config.judge.config.around.config.strict is True
    assert made["science"].config.judge.config.around.config.strict is False
    assert made["code"].config.judge.config.around.config.prompt == "code"


def test_a_wrapper_of_all_and_another_one_of_a_route_is_refused_naming_the_route() -> None:
    for route, both in (("no_reference", "wrong_reference"), ("wrong_reference", "no_reference")):
        said = (
            rf"^reward\.domains\.science\.judge\.around: '{route}' .* '{route}' is a wrapper itself: one of the two has"
        )
        with pytest.raises(ConfigError, match=said):
            layered(f"reward.judge.name={both}", f"reward.domains.science.judge.name={route}")


def test_a_wrapper_that_a_route_has_from_a_file_comes_off_with_the_name_within_it() -> None:
    file = {"reward": {"judge": {"name": "wrong_reference"}}}
    assert chains(NEW_ROUTE, layers=[BASE, file])["domains.code"] == ["same_model"], "a later layer has the last word"


def test_who_grades_each_route_in_words() -> None:
    made = layered(
        "reward.judge.name=wrong_reference", "reward.default={name: outcome, judge: {name: reference_steps}}", NESTED
    )
    assert list(graders(made.reward)) == [
        "reward.domains.math: process, judged by wrong_reference around reference_steps",
        "reward.domains.science: outcome, judged by wrong_reference around reference_steps",
        "reward.domains.code.domains.law: outcome, judged by wrong_reference around reference_steps",
        "reward.default: outcome, judged by wrong_reference around reference_steps",
    ]
    assert list(graders(layered("reward.domains.math=null").reward)) == [
        "reward.domains.science: outcome, judged by reference_steps",
        "reward.domains.code: sparse, without a judge",
    ]
    assert list(graders(layered("reward.name=sparse").reward)) == []


class Both(Reward):
    """Somebody's reward of two judges."""

    granularity = "rollout"
    first: Judge = required_choice(JUDGES)
    second: Judge = choose(JUDGES, default="reference_steps")

    def score(self, groups: Any, *args: Any) -> Any:
        """Never asked here."""


@pytest.mark.parametrize("overrides", [(), ("reward.domains.code.first.strict=true",)])
def test_a_route_whose_judges_have_other_options_is_not_left_without_the_wrapper(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    monkeypatch.setattr(REWARDS, "_classes", dict(REWARDS._classes))
    REWARDS.register("test_both")(Both)
    route = "reward.domains.code={name: test_both, first: {name: reference_steps}}"
    assert layered(route, "reward.judge.strict=true").reward.config.domains["code"].name == "test_both"
    with pytest.raises(ConfigError, match=r"^reward\.domains\.code\.judge: unknown option"):
        layered(route, "reward.judge.name=no_reference", *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("reward.domains.code.name=outcome",),
            r"reward\.domains\.code\.judge: required, but missing .* To take that of 'math': "
            r"reward\.domains\.code\.judge='\$\{reward\.domains\.math\.judge\}'\.$",
        ),
        (
            ("reward.name=outcome",),
            r"reward\.judge: required, but missing .* 'outcome' took the place of all of reward\.domains\. "
            r"To change these instead: reward\.domains\.math\.name=outcome reward\.domains\.science\.name=outcome\.$",
        ),
        (
            (NEW_ROUTE, "reward.domains.code.judge.name=wrong_reference"),
            r"reward\.domains\.code\.judge\.weights: unknown option\. 'wrong_reference' stands around another judge, "
            r"whose options are set below reward\.domains\.code\.judge\.around",
        ),
    ],
)
def test_what_is_missing_is_told_with_what_to_set(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        layered(*overrides)


def test_what_is_advised_where_a_judge_is_missing_works() -> None:
    code = layered("reward.domains.code.name=outcome", "reward.domains.code.judge=${reward.domains.math.judge}")
    assert code.reward.config.domains["code"].config.judge == code.reward.config.domains["math"].config.judge
    changed = layered("reward.domains.math.name=outcome", "reward.domains.science.name=outcome").reward.config.domains
    assert [changed[route].name for route in ("math", "science", "code")] == ["outcome", "outcome", "sparse"]


def test_options_come_back_with_a_component_that_has_them() -> None:
    same = {"name": "same_model", "weights": "frozen", "prompt": "science", "scoring": "expected"}
    rubric = {"name": "rubric", "monotone": True, "min_mass": 0.3}
    layers = [BASE, {"reward": {"domains": {"science": {"judge": same}}}}, {"reward": {"judge": rubric}}]
    for more in ((), ("reward.judge.name=no_reference",)):
        back = [*layers, *map(parse_overrides, [[one] for one in more]), {"reward": {"judge": {"name": "same_model"}}}]
        judge = from_layers(
            Experiment, [*back, {"reward": {"domains": {"math": {"judge": {"weights": "live"}}}}}]
        ).reward
        options = judge.config.domains["science"].config.judge.config
        assert (options.prompt, options.min_mass) == ("science", 0.3)
    there = from_layers(Experiment, layers).reward
    again = from_layers(Experiment, [parse(to_yaml(from_layers(Experiment, layers)))]).reward
    assert there == again


def test_a_domain_with_a_dot_in_its_name_is_overridden_in_quotation_marks() -> None:
    dotted = 'reward.domains."physics.mechanics"'
    made = layered(f"{dotted}=" + "{name: outcome, judge: {name: reference_steps}}", f"{dotted}.judge.strict=true")
    assert made.reward.config.domains["physics.mechanics"].config.judge.config.strict is True
    assert from_layers(Experiment, [parse(to_yaml(made))]) == made
    with pytest.raises(ConfigError, match=rf"^{re.escape(dotted)}\.judge\.strct: unknown option"):
        layered(f"{dotted}=" + "{name: outcome, judge: {name: reference_steps, strct: 1}}")
    (key,) = (key for key in free_keys(layered(f"{dotted}.name=execution")) if "physics" in key)
    assert key == f"{dotted}.workers"
    routes = Routes({"physics.mechanics": 1}, None, "reward")
    assert routes.places(["physics.mechanics"]) == {'domains."physics.mechanics"': [0]}
    with pytest.raises(ConfigError, match=r"write key\.path=value"):
        layered('reward.domains."physics.name=sparse')


def test_what_is_said_of_one_route_holds_over_what_is_said_of_all() -> None:
    changed = layered(
        "reward.normalization=extremes_only",
        "reward.domains.science.normalization=semi_smooth",
        "reward.domains.law={name: outcome, judge: {name: reference_steps}}",
        "reward.default={name: outcome, judge: {name: reference_steps}}",
    ).reward.config
    said = {key: choice.config.normalization for key, choice in changed.domains.items() if key != "code"}
    assert said == {"math": "extremes_only", "science": "semi_smooth", "law": "extremes_only"}
    assert changed.default.config.normalization == "extremes_only"
    assert list(layered("reward.judge.strict=true", "reward.domains.math=null").reward.config.domains) == [
        "science",
        "code",
    ]


def test_an_option_of_all_reaches_prompts_verifiers_and_routes_within_routes() -> None:
    made = layered("prompt.max_prompt_tokens=77", "verifier.timeout=3")
    prompts, verifiers = made.prompt.config, made.verifier.config
    assert prompts.domains["code"].config.max_prompt_tokens == prompts.default.config.max_prompt_tokens == 77
    assert verifiers.domains["math"].config.timeout == 3
    within = {"name": "by_domain", "domains": {"law": {"name": "outcome", "judge": JUDGE}}}
    layers = [BASE, {"reward": {"domains": {"code": within}}}, parse_overrides(["reward.judge.strict=true"])]
    code = from_layers(Experiment, layers).reward.config.domains["code"].config
    assert code.domains["law"].config.judge.config.strict is True


def test_a_route_that_is_another_one_s_by_interpolation_is_changed_once() -> None:
    shared = {"reward": {"domains": {"science": {"judge": "${reward.domains.math.judge}"}}}}
    layers = [BASE, shared, parse_overrides(["reward.judge.name=no_reference"])]
    domains = from_layers(Experiment, layers).reward.config.domains
    assert domains["math"].config.judge == domains["science"].config.judge
    assert domains["science"].config.judge.config.around.name == "reference_steps"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward.slicer.window=3", r"reward\.domains\.math\.slicer\.window: unknown option\. The slicer 'delimiter'"),
        ("reward.credit=share", r"reward\.credit: unknown option\. None of the rewards within it has one; what"),
        ("reward.judge.strct=1", r"reward\.domains\.math\.judge\.strct: unknown option\. Did you mean"),
        ("reward.domains.math.judge.strct=1", r"reward\.domains\.math\.judge\.strct: unknown option\. Did you mean"),
        ("reward.domains.math.name=proces", r"reward\.domains\.math\.name: Unknown reward 'proces'\. Did you mean"),
        ("reward.domains.cod.judge.name=x", r"reward\.domains\.cod\.name: required, but missing\. Choose one of"),
        (
            "reward.domains.law=null",
            r"reward\.domains\.law: expected a reward as \{name: \.\.\., options\}, but got No",
        ),
        ("reward.domains=[]", r"reward\.domains: expected a mapping, but got \[\]"),
        ("reward.defalt.name=sparse", r"reward\.defalt: unknown option\. Did you mean 'default'\?"),
        ("reward={name: by_domain}", r"reward\.domains: must|reward\.domains: required"),
        ("prompt.domains.code.template=x", r"prompt\.domains\.code\.template: 'x' has no \{question\}"),
        (
            "advantage.name=group",
            r"advantage\.name: 'group' takes one reward a rollout, but reward\.domains\.math gives one a segment\. Set",
        ),
    ],
)
def test_errors_name_the_key(override: str, said: str) -> None:
    layers = [BASE, parse_overrides([override])]
    if override == "reward={name: by_domain}":
        layers = [{"model": {"name": "chain"}}, parse_overrides([override])]
    with pytest.raises(ConfigError, match=f"^(?:{said})"):
        from_layers(Experiment, layers)


@pytest.mark.parametrize("domains", [{}, {" ": SparseReward(verifier=ExactVerifier())}])
def test_a_route_and_its_name_are_needed(domains: dict[str, Reward]) -> None:
    with pytest.raises(ConfigError, match=r"^domains: "):
        ByDomainReward(domains=domains)


def test_the_advantage_goes_with_all_routes() -> None:
    assert layered().advantage.name == "segment_delta"
    assert layered("reward.domains.math.name=outcome").advantage.name == "group"
    assert layered("reward.domains.math=null", "reward.default.name=sparse", "advantage.name=group")


def test_references_are_read_where_any_route_reads_them() -> None:
    assert layered().reads_references
    assert not layered("reward.domains.math.name=sparse", "reward.domains.science.name=sparse").reads_references
    assert not layered(
        "reward.domains.math.judge.name=no_reference", "reward.domains.science.judge.name=no_reference"
    ).reads_references


def test_options_within_a_route_are_asked_and_free_as_elsewhere() -> None:
    with pytest.raises(ModelError, match=r"^reward\.domains\.math\.judge\.model: "):
        check_parts(
            layered("reward.domains.math.judge={name: smaller_model, model: {name: pretrained, path: /no/where}}"),
            "reward",
        )
    free = [key for key in free_keys(layered()) if ".domains." in key]
    backend = "{name: server, url: 'http://x/v1', model: m}"
    server = (
        f"reward.domains.math.judge={{name: smaller_model, model: {{name: pretrained, path: x}}, backend: {backend}}}"
    )
    more = [key for key in free_keys(layered(server)) if ".domains." in key]
    assert set(more) > set(free)
    assert all(key.startswith("reward.domains.math.judge.backend.") for key in set(more) - set(free))


# ------------------------------------------------------------------ problems without a route


def test_a_domain_without_a_route_is_refused_before_anything_is_loaded(tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"question": "a", "reference": "b", "answer": "1", "kind": "math"}\n'
        '{"question": "c", "reference": "d", "answer": "2", "kind": "cod"}\n'
    )
    data = {"data": {"train": {"name": "jsonl", "path": str(path), "columns": {"domain": "kind"}}}}
    build = Build(from_layers(Experiment, [BASE, data]), training=True)
    said = (
        r"^data\.train: problem 'rows-2' has the domain 'cod', for which reward has no route\. Did you mean 'code'\? "
        r"Choose one of: code, math, science\. Or set reward\.default"
    )
    with pytest.raises(DataError, match=said):
        build.train_problems  # noqa: B018
    assert "policy" not in vars(build)
    held_out = {"evaluation": {"source": data["data"]["train"]}}
    narrow = {"verifier": {"name": "by_domain", "domains": {"math": {"name": "math"}}}}
    with pytest.raises(DataError, match=r"^evaluation\.source: problem 'rows-2' .* verifier has no route"):
        Build(from_layers(Experiment, [{"model": {"name": "chain"}}, narrow, held_out])).evaluation_problems  # noqa: B018


def test_components_refuse_it_themselves() -> None:
    routed = ByDomainVerifier(domains={"math": ExactVerifier()})
    with pytest.raises(DataError, match=r"^problem 'q' has the domain 'law', for which verifier has no route"):
        routed.check([of("math"), of("law", "q")])
    with pytest.raises(DataError, match=r"^the domain 'law' has no route\. Choose one of: math"):
        routed.verify(of("law"), "4")


def test_routes_keep_the_order_they_are_declared_in() -> None:
    routes = Routes({"b": 1, "a": 2}, 3, "reward")
    assert routes.places(["z", "a", "y", "b"]) == {"domains.b": [3], "domains.a": [1], "default": [0, 2]}
    assert [key for key, _, _ in routes.split(["z", "b"])] == ["domains.b", "default"]


# ------------------------------------------------------------------ rewards


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


# ------------------------------------------------------------------ advantages


def rewards_of(*values: float) -> tuple[RolloutReward, ...]:
    return tuple(RolloutReward(value=value, length=2) for value in values)


def test_a_batch_is_that_of_a_domain() -> None:
    batch, domains = [rewards_of(1.0, 0.0), rewards_of(0.2, 0.2), rewards_of(0.5, 0.0)], ["math", "code", "math"]
    found = [[own.values[0] for own in group] for group in SegmentBatch().estimate(batch, domains)]
    assert found == [pytest.approx([0.625, -0.375]), pytest.approx([0.0, 0.0]), pytest.approx([0.125, -0.375])]
    together = [[own.values[0] for own in group] for group in SegmentBatch().estimate(batch)]
    assert together[1] == pytest.approx([0.2 - 1.9 / 6] * 2)


@pytest.mark.parametrize("estimator", [SegmentBatch, SegmentEnd, SegmentDelta])
def test_domains_are_scaled_apart(estimator: Any) -> None:
    math, code = [rewards_of(1.0, 0.0), rewards_of(0.5, 0.0)], [rewards_of(0.02, 0.01)]
    apart = [*estimator(scale="rms").estimate(math), *estimator(scale="rms").estimate(code)]
    mixed_up = estimator(scale="rms").estimate([math[0], code[0], math[1]], ["math", "code", "math"])
    assert [mixed_up[0], mixed_up[2], mixed_up[1]] == apart


def test_all_ranks_sum_the_domains_in_one_order() -> None:
    sums: list[list[float]] = []

    def all_reduce(values: Sequence[float]) -> Sequence[float]:
        sums.append(list(values))
        return values

    for domains in (["math", "code"], ["code", "math"]):
        batch = {"math": rewards_of(1.0, 0.0), "code": rewards_of(0.2, 0.4)}
        SegmentBatch().estimate([batch[domain] for domain in domains], domains, all_reduce=all_reduce)
    assert sums[:2] == sums[2:] == [pytest.approx([0.6, 2]), pytest.approx([1.0, 2])]
    SegmentBatch().estimate([], [], all_reduce=all_reduce)
    assert len(sums) == 5


# ------------------------------------------------------------------ verifiers and prompts


def test_each_response_is_read_by_the_verifier_of_its_domain() -> None:
    verifier = ByDomainVerifier(domains={"math": MathVerifier(), "science": ChoiceVerifier()}, default=ExactVerifier())
    problems = [of("math", answer="0.5"), of("law", answer="0.5"), of("science", answer="B"), of("math", answer="2")]
    said = [r"\boxed{\frac12}", r"\boxed{\frac12}", "The answer is (B).", "The answer is 3"]
    assert verifier.verdicts(problems, said) == [True, False, True, False]
    assert [verifier.verify(problem, text) for problem, text in zip(problems, said, strict=True)] == [
        True,
        False,
        True,
        False,
    ]
    assert [verifier.gold(problem) for problem in problems] == ["0.5", "0.5", "B", "2"]


def test_what_cannot_be_read_is_told_by_the_verifier_of_its_domain() -> None:
    verifier = ByDomainVerifier(domains={"science": ChoiceVerifier()}, default=ExactVerifier())
    problems = [of("science", "s", answer="Because."), of("law", "l", answer="N/A"), of("law", "k", answer="4")]
    assert verifier.unreadable(problems) == ["s", "l"]
    assert "verifier 'exact': in 1 of 2 problems (first: 'l')" in verifier.told(["s", "l"], problems)
    assert verifier.told(["l"], problems).startswith("verifier 'exact'")
    with pytest.raises(DataError, match=r"verifier 'exact' needs one"):
        verifier.check([of("law", answer=None)])
    assert (verifier.knows(of("law", answer=None)), verifier.knows(of("law"))) == (False, True)


def test_each_question_has_the_template_of_its_domain() -> None:
    prompt = ByDomainPrompt(
        domains={"code": PromptTemplate(template="Run {question}", max_prompt_tokens=64)},
        default=PromptTemplate(system="Brief."),
    )
    builder = PromptBuilder(character_tokenizer(), prompt)
    question = of("code").question
    code, other = builder.build(question, "code").text, builder.build(question, "law").text
    assert code == PromptBuilder(character_tokenizer(), PromptTemplate(template="Run {question}")).build(question).text
    assert other == PromptBuilder(character_tokenizer(), PromptTemplate(system="Brief.")).build(question).text
    with pytest.raises(DataError, match="the domain of the question must be said"):
        builder.build(question)


def test_built_by_a_run_as_by_hand() -> None:
    built = layered().prompt.build(Resources())
    assert built.template_of("code").template == "Program: {question}"
    assert built.template_of("math").system == "Think."
    own = SparseReward(verifier=ExactVerifier())
    by_hand = ByDomainReward(domains={"code": own, "law": {"name": "outcome", "judge": JUDGE}})  # type: ignore[dict-item]
    assert by_hand.domains["code"] is own
    assert type(by_hand.domains["law"]) is OutcomeReward
    assert to_node(by_hand.config)["domains"]["code"] == {"name": "sparse", "clip_length": True}


def test_a_route_without_problems_is_told(caplog: pytest.LogCaptureFixture) -> None:
    judged: Any = {"name": "outcome", "judge": JUDGE}
    reward = ByDomainReward(domains={"math": judged, "science": judged}, default=judged)
    reward.check([of("math", steps=("1", "2"))])
    assert "no training problem has the domain science, only math" in caplog.text
    assert "columns.domain" in caplog.text


def test_domains_that_would_be_one_in_the_names_of_metrics_are_refused() -> None:
    with pytest.raises(DataError, match=r"'math:x' and the domain 'math/x'.*Rename"):
        check_labels([of("math/x"), of("math"), of("math:x")])


# ------------------------------------------------------------------ what is logged


def scored_in(domain: str, *values: float) -> ScoredGroup:
    rollouts = [rollout_of(*"ab"[: 1 + number % 2]) for number in range(len(values))]
    rewards = [RolloutReward(value=value, length=len(own)) for value, own in zip(values, rollouts, strict=True)]
    [advantages] = GroupAdvantage().estimate([tuple(rewards)], [domain])
    return replace(scored_of(rollouts, problem=of(domain), rewards=rewards), advantages=advantages)


def test_figures_of_each_domain_alone() -> None:
    step = [scored_in("math", 1.0, 0.0), scored_in("a/b", 0.5, 0.5), scored_in("math", 1.0, 1.0)]
    found = domain_metrics(step, [[True, False], [], [True, True]], tolerance=0.0)
    assert found == {
        "reward/mean/a_b": 0.5,
        "reward/mean/math": 0.75,
        "reward/within_group_variance/a_b": 0.0,
        "reward/within_group_variance/math": 0.125,
        "reward/segments/a_b": 1.0,
        "reward/segments/math": 1.0,
        "update/dropped_groups/a_b": 1.0,
        "update/dropped_groups/math": 1.0,
        "outcome/accuracy/math": 0.75,
        "outcome/all_0/math": 0.0,
        "outcome/all_1/math": 0.5,
        "outcome/mixed/math": 0.5,
        "rollout/length_mean/a_b": 1.5,
        "rollout/length_mean/math": 1.5,
        "rollout/cut_off_rate/a_b": 0.0,
        "rollout/cut_off_rate/math": 0.0,
    }
    assert "outcome/accuracy/math" not in domain_metrics(step, [], tolerance=0.0)
    assert all(metric_of(name) is not None for name in found)


def evaluated(domains: str, *correct: int) -> EvaluationResult:
    return EvaluationResult(
        problem_ids=tuple(map(str, range(len(correct)))),
        correct=correct,
        samples=4,
        progress=None,
        guessed=None,
        length=1.0,
        cut_off=0.0,
        ks=(1, 2),
        domains=tuple(domains),
    )


def test_pass_at_k_of_each_domain_beside_the_total() -> None:
    result = evaluated("mcm", 4, 0, 2)
    assert result.measures == ["pass@1", "pass@2", "pass@1/c", "pass@2/c", "pass@1/m", "pass@2/m"]
    figures = result.summary()
    assert [figures[name] for name in ("pass@1", "pass@1/m", "pass@1/c", "pass@2/m")] == [
        0.5,
        0.75,
        0.0,
        (1 + 5 / 6) / 2,
    ]
    assert evaluation_metrics(result)["evaluation/pass@1/m"] == 0.75
    assert EvaluationResult.from_json(result.to_json()) == result
    joined = EvaluationResult.joined([evaluated("mm", 4, 2), evaluated("c", 0)])
    assert replace(joined, problem_ids=result.problem_ids) == result
    of_old = {name: value for name, value in result.to_json().items() if name != "domains"}
    assert EvaluationResult.from_json(of_old).measures == evaluated("mmm", 1, 1, 1).measures == ["pass@1", "pass@2"]
