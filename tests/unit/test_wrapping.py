"""Wrappers of a family: naming one puts it around the component that stood there, in files, overrides and code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest

from exprl.component import Choice, Component, choose, choose_by, option, wrapped
from exprl.config import from_layers, load, parse_overrides, to_node, to_yaml, validate, validate_choice
from exprl.config.reading import parse
from exprl.errors import ConfigError, JudgeError
from exprl.experiment import load_experiment
from exprl.judges import Judge, NoReferenceJudge, ReferenceStepsJudge, WrappingJudge, WrongReferenceJudge
from exprl.registry import JUDGES, Registry
from exprl.resources import Resources
from exprl.rewards import OutcomeReward
from exprl.types import Hidden, Judgement, JudgeRequest, Problem, Question, Scaffold
from exprl.verifiers import ExactVerifier
from exprl.verifiers.base import Verifier

ROOT = Path(__file__).parents[2]

# ------------------------------------------------------------------ a family of somebody else

TEAS: Registry[Any] = Registry("tea")


@TEAS.register("green")
class Green(Component):
    minutes: int = option(default=2)
    sugar: int = option(default=0)


@TEAS.register("black")
class Black(Component):
    minutes: int = option(default=4)
    milk: bool = option(default=False)


@TEAS.register("iced")
class Iced(Component):
    tea: Annotated[Choice, TEAS] = wrapped(TEAS, help="what is cooled")
    cubes: int = option(default=3)


@TEAS.register("canned")
class Canned(Component):
    filled_with: Annotated[Choice, TEAS] = wrapped(TEAS, help="what is in it")


@dataclass(frozen=True, kw_only=True)
class Table:
    cup: Annotated[Choice, TEAS] = choose(TEAS, default="green", sugar=1)
    pot: Annotated[Choice, TEAS] = choose_by(lambda chosen: "black" if chosen["cup"] else "green", TEAS)


def cup(*layers: dict[str, Any]) -> Any:
    return to_node(from_layers(Table, [{"cup": layer} for layer in layers]).cup)


GREEN = {"name": "green", "minutes": 9, "sugar": 1}
BLACK = {"name": "black", "minutes": 9, "milk": True}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([BLACK, {"name": "iced"}], {"name": "iced", "tea": BLACK, "cubes": 3}, id="around what stood"),
        pytest.param(
            [BLACK, {"name": "iced", "cubes": 1, "tea": {"milk": False}}],
            {"name": "iced", "tea": {**BLACK, "milk": False}, "cubes": 1},
            id="with options of both",
        ),
        pytest.param(
            [BLACK, {"name": "iced", "tea": {"name": "green"}}], {"name": "iced", "tea": GREEN, "cubes": 3} | {
                "tea": {"name": "green", "minutes": 9, "sugar": 1}}, id="another within keeps what it has too",
        ),
        pytest.param(
            [BLACK, {"name": "iced"}, {"name": "iced", "cubes": 2}], {"name": "iced", "tea": BLACK, "cubes": 2},
            id="named again",
        ),
        pytest.param(
            [BLACK, {"name": "iced"}, {"tea": {"minutes": 1}}],
            {"name": "iced", "tea": {**BLACK, "minutes": 1}, "cubes": 3}, id="options within by a later layer",
        ),
        pytest.param([BLACK, {"name": "iced"}, {"name": "black"}], BLACK, id="taken off"),
        pytest.param([BLACK, {"name": "iced"}, {"name": "green"}], GREEN, id="taken off and swapped"),
        pytest.param(
            [BLACK, {"name": "iced"}, {"name": "canned"}],
            {"name": "canned", "filled_with": {"name": "iced", "tea": BLACK, "cubes": 3}}, id="one around the other",
        ),
        pytest.param(
            [BLACK, {"name": "iced"}, {"name": "canned"}, {"name": "iced"}], {"name": "iced", "tea": BLACK, "cubes": 3},
            id="the outer one taken off",
        ),
        pytest.param([BLACK, {"name": "iced"}, {"name": "canned"}, {"name": "black"}], BLACK, id="both taken off"),
        pytest.param(
            [{"name": "iced"}], {"name": "iced", "tea": {"name": "green", "minutes": 2, "sugar": 1}, "cubes": 3},
            id="around the default",
        ),
        pytest.param(
            [{"minutes": 7}, {"name": "iced"}],
            {"name": "iced", "tea": {"name": "green", "minutes": 7, "sugar": 1}, "cubes": 3}, id="around a part of it",
        ),
        pytest.param(
            [{"name": "iced"}, {"name": "canned"}, {"filled_with": {"tea": {"sugar": 5}}}],
            {"name": "canned", "filled_with": {
                "name": "iced", "tea": {"name": "green", "minutes": 2, "sugar": 5}, "cubes": 3}},
            id="two around the default",
        ),
    ],
)  # fmt: skip
def test_a_name_goes_around_what_stood_there(layers: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert cup(*layers) == expected
    assert cup(expected) == expected, "what is saved is whole"
    assert cup(parse(to_yaml(validate(Table, {"cup": expected}).cup))) == expected


def test_around_the_default_that_follows_another_option() -> None:
    made = from_layers(Table, [{"pot": {"minutes": 6}}, {"pot": {"name": "canned"}}])
    assert to_node(made.pot) == {"name": "canned", "filled_with": {"name": "black", "minutes": 6, "milk": False}}


def test_in_code() -> None:
    inner = Choice.of(TEAS, "black", milk=True)
    assert to_node(Choice.of(TEAS, "iced", tea=inner)) == {
        "name": "iced", "tea": {"name": "black", "minutes": 4, "milk": True}, "cubes": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            [BLACK, {"name": "iced", "milk": False}],
            r"cup\.milk: unknown option\. 'black', .* has one: cup\.tea\.milk\.",
        ),
        ([BLACK, {"name": "iced", "milc": False}], r"cup\.milc: unknown option\. Choose one of: cubes, tea"),
        ([BLACK, {"name": "iced", "tea": {"name": "gren"}}], r"cup\.tea\.name: Unknown tea 'gren'\. Did you mean"),
        ([BLACK, {"name": "iced", "tea": 3}], r"cup\.tea: expected a tea .* got 3"),
        ([BLACK, {"name": "iced", "tea": None}], r"cup\.tea: expected a tea .* got None"),
        ([{"name": ["iced"]}, {"name": "iced"}], r"cup\.tea\.name: expected str"),
    ],
)
def test_what_is_wrong_is_named_where_it_stands(layers: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cup(*layers)


# ------------------------------------------------------------------ judges: the two of exprl


def judge_of(base: dict[str, Any], *overrides: str) -> Choice:
    layers = [{"judge": base}, *(parse_overrides([override]) for override in overrides)]
    choice: Choice = from_layers(OutcomeReward.Config, layers).judge
    return choice


@pytest.mark.parametrize("wrapper", ["no_reference", "wrong_reference"])
@pytest.mark.parametrize(
    "base",
    [
        {"name": "reference_steps", "strict": False},
        {"name": "same_model", "weights": "live", "scoring": "rationale", "max_new_tokens": 99},
        {"name": "smaller_model", "model": {"name": "pretrained", "path": "p"}, "backend": {"name": "transformers"}},
    ],
    ids=lambda base: base["name"],
)
def test_every_option_of_the_judge_is_kept(base: dict[str, Any], wrapper: str) -> None:
    before = to_node(validate_choice(JUDGES, base, "judge"))
    assert to_node(judge_of(base, f"judge.name={wrapper}")) == {"name": wrapper, "around": before}
    assert to_node(judge_of(base, f"judge.name={wrapper}", f"judge.name={base['name']}")) == before


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "no_reference"}, r"^judge\.around: required, but missing"),
        (
            {"name": "wrong_reference", "around": {"name": "no_reference", "around": {"name": "reference_steps"}}},
            r"^judge\.around: 'no_reference' reads no reference.* does: .*reference_steps, rubric, same_model, smaller",
        ),
        (
            {"name": "no_reference", "around": {"name": "wrong_reference", "around": {"name": "reference_steps"}}},
            r"^judge\.around: 'wrong_reference' does not say.* does: .*reference_steps, rubric, same_model, smaller",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_choice(JUDGES, node, "judge")


def test_a_file_an_override_and_the_saved_config_are_the_same(tmp_path: Path) -> None:
    named = load_experiment(ROOT / "configs/quickstart.yaml", ["reward.judge.name=wrong_reference"])
    layered = tmp_path / "wrong.yaml"
    layered.write_text(f"extends: {ROOT}/configs/quickstart.yaml\nreward: {{judge: {{name: wrong_reference}}}}\n")
    assert load(type(named), layered) == named
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(named))
    assert load(type(named), saved) == named
    assert load(type(named), saved, ["reward.judge.name=wrong_reference"]) == named
    assert to_node(named.reward)["judge"] == {
        "name": "wrong_reference", "around": {"name": "reference_steps", "strict": True},
    }  # fmt: skip


# ------------------------------------------------------------------ what they then do


def problem(number: int) -> Problem:
    reference = f"a+1 {number}\nAnswer: {number}"
    return Problem(
        question=Question(problem_id=f"p{number}", text=f"question {number}"),
        scaffold=Scaffold(reference=Hidden(reference), answer=Hidden(str(number)), steps=None),
    )


PROBLEMS = [problem(number) for number in range(5)]


def requests(trace: str, *, problems: Sequence[Problem] = PROBLEMS) -> list[JudgeRequest]:
    return [JudgeRequest(problem=p, trace=trace, view="prefix") for p in problems]


def built(node: dict[str, Any], **resources: Any) -> Judge:
    judge: Judge = validate_choice(JUDGES, node, "judge").build(Resources(problems=PROBLEMS, **resources))
    return judge


STEPS = {"name": "reference_steps"}


def test_steps_without_a_reference_are_the_verifiers_word() -> None:
    judge = built({"name": "no_reference", "around": STEPS}, verifier=ExactVerifier())
    judge.check([p.without_reference() for p in PROBLEMS])
    for trace, right in [("a+1 2", None), ("a+1 2\nAnswer: 2", 2), ("Answer: 3", 3), ("a+1 2\nAnswer: 9", None)]:
        asked = requests(trace)
        given = judge.judge(asked)
        assert [judgement.score for judgement in given] == [5.0 if n == right else 1.0 for n in range(5)]
        assert judge.judge([replace(r, problem=r.problem.without_reference()) for r in asked]) == given
    with pytest.raises(Exception, match="no final answer"):
        judge.check([replace(PROBLEMS[0], scaffold=Scaffold())])
    with pytest.raises(ConfigError, match="verifier"):
        built({"name": "no_reference", "around": STEPS})


class Nosy(Verifier):
    """Sees what a judge hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Problem] = []

    def verify(self, problem: Problem, response: str) -> bool:
        self.seen.append(problem)
        return False


def test_the_verifier_is_handed_no_reference() -> None:
    verifier = Nosy()
    built({"name": "no_reference", "around": STEPS}, verifier=verifier).judge(requests("x"))
    assert [(p.scaffold.reference, p.scaffold.steps) for p in verifier.seen] == [(None, None)] * 5
    assert [p.scaffold.answer for p in verifier.seen] == [p.scaffold.answer for p in PROBLEMS]


class Noise(WrappingJudge):
    """Somebody's wrapper: half of the score."""

    share: float = option(default=0.5)

    def judge(self, requests: Sequence[JudgeRequest], *args: Any) -> list[Judgement]:
        """Nearer to 1."""
        given = super().judge(requests, *args)
        return [replace(j, score=1 + self.share * (j.score - 1)) for j in given if j.score is not None]


class Plain(Judge):
    """Somebody's judge, which says nothing of references."""

    def judge(self, requests: Sequence[JudgeRequest], *args: Any) -> list[Judgement]:
        """Nothing is progress."""
        return [Judgement(score=1.0)] * len(requests)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """While a test of this file runs: others go through all that is registered."""
    names = {"test_noise": Noise, "test_plain": Plain}
    for name, judge in names.items():
        JUDGES.register(name)(judge)
    yield
    for name in names:
        del JUDGES._classes[name]


def test_somebodys_wrapper_by_its_name_alone() -> None:
    choice = judge_of({"name": "reference_steps", "strict": False}, "judge.name=test_noise")
    assert choice.config.around.config.strict is False
    judge = choice.build(Resources(problems=PROBLEMS))
    assert [j.score for j in judge.judge(requests("a+1 2\nAnswer: 2"))] == [1.0, 1.0, 3.0, 1.0, 1.0]
    both = judge_of(STEPS, "judge.name=wrong_reference", "judge.name=test_noise")
    assert [both.name, both.config.around.name, both.config.around.config.around.name] == [
        "test_noise", "wrong_reference", "reference_steps",
    ]  # fmt: skip


@pytest.mark.parametrize("inner", ["reference_steps", "no_reference", "wrong_reference"])
def test_a_wrapper_reads_references_if_what_it_stands_around_does(inner: str) -> None:
    choice = judge_of(STEPS, f"judge.name={inner}", "judge.name=test_noise")
    assert choice.cls.reads_references(choice.config) is (inner != "no_reference")
    bare = [p.without_reference() for p in PROBLEMS]
    judge = choice.build(Resources(problems=PROBLEMS, verifier=ExactVerifier()))
    if inner == "reference_steps":
        with pytest.raises(JudgeError, match="'p0' has no reference solution"):
            judge.check(bare)
    else:
        judge.check(bare)


def test_somebodys_judge_under_the_wrong_reference_and_none() -> None:
    assert built({"name": "wrong_reference", "around": {"name": "test_plain"}}).judge(requests("x"))
    with pytest.raises(ConfigError, match=r"'test_plain' does not say how .* without_reference\(resources\)"):
        judge_of({"name": "test_plain"}, "judge.name=no_reference")


def test_in_code_they_stand_around_a_judge_that_is_built() -> None:
    wrong = WrongReferenceJudge(around=ReferenceStepsJudge(), problems=PROBLEMS)
    assert {j.score for j in wrong.judge(requests("a+1 2\nAnswer: 2"))} == {1.0, 5.0}
    none = NoReferenceJudge(around=ReferenceStepsJudge().without_reference(
        Resources(verifier=ExactVerifier())))  # fmt: skip
    assert [j.score for j in none.judge(requests("Answer: 4"))] == [1.0, 1.0, 1.0, 1.0, 5.0]
