"""Routing by domain: which component sees which problem, and the figures of each domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from exprl.advantages import GroupAdvantage, SegmentBatch, SegmentDelta, SegmentEnd
from exprl.build import Build
from exprl.config import from_layers, to_node
from exprl.domains import Routes, check_labels
from exprl.errors import DataError
from exprl.evaluation.evaluate import EvaluationResult
from exprl.experiment import Experiment
from exprl.resources import Resources
from exprl.rewards import ByDomainReward, OutcomeReward, SparseReward
from exprl.text.prompts import ByDomainPrompt, PromptBuilder, PromptTemplate
from exprl.training.evaluation_log import evaluation_metrics
from exprl.training.glossary import metric_of
from exprl.training.metrics import domain_metrics
from exprl.types import RolloutReward, ScoredGroup
from exprl.verifiers import ByDomainVerifier, ChoiceVerifier, ExactVerifier, MathVerifier
from tests.by_domain import BASE, JUDGE, layered, of
from tests.conftest import character_tokenizer
from tests.rollouts import rollout_of, scored_of

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
    assert "verifier 'exact': in 1 of 2 problems (first: 'l')" in str(verifier.refusal(["s", "l"], problems))
    assert str(verifier.refusal(["l"], problems)).startswith("verifier 'exact'")
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
