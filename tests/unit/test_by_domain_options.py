"""Routing by domain: options and their layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from exprl.component import choose, required_choice
from exprl.config import free_keys, from_layers, parse_overrides, to_node, to_yaml
from exprl.config.fields import choices_in
from exprl.config.reading import parse
from exprl.domains import Routes
from exprl.errors import ConfigError, ModelError
from exprl.experiment import Experiment
from exprl.judges import Judge
from exprl.registry import JUDGES, REWARDS
from exprl.rewards import ByDomainReward, Reward, SparseReward
from exprl.rewards.grading import graders
from exprl.runs.preflight import check_parts
from exprl.verifiers import ExactVerifier
from tests.by_domain import BASE, JUDGE, layered


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
