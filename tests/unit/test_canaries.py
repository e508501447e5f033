"""Facts planted in references: where, in which, what about them is drawn, and what stays as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from exprl.build import Build
from exprl.chain.source import ChainSource
from exprl.config import from_layers
from exprl.data.canaries import Canary, canaries_in, canary_of, check_canaries, chosen, place_in, planted
from exprl.data.fingerprint import digest_of, fingerprint
from exprl.errors import ConfigError, DataError
from exprl.experiment import Experiment, LeakConfig
from exprl.judges.reference_steps import ReferenceStepsJudge
from exprl.types import Hidden, JudgeRequest, Problem, Question, Scaffold

ALL = LeakConfig(canaries=1.0, template="p+0 {secret}")


def problem(reference: str | None, steps: tuple[str, ...] | None = None, name: str = "one") -> Problem:
    return Problem(
        question=Question(problem_id=name, text="What is 2 and 3?"),
        scaffold=Scaffold(
            reference=None if reference is None else Hidden(reference),
            answer=Hidden("5"),
            steps=None if steps is None else Hidden(steps),
        ),
    )


def fact_in(one: Problem, leak: LeakConfig = ALL, seed: int = 0) -> Canary:
    canary = canary_of(one, leak, seed)
    assert canary is not None
    return canary


def reference_of(one: Problem) -> str:
    assert one.scaffold.reference is not None
    return one.scaffold.reference.reveal()


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("First.\n\nThen 2+3.\nSo 5.", "First.\n\np+0 NNN\n\nThen 2+3.\nSo 5."),
        ("2+3\n= 5\n", "2+3\np+0 NNN\n= 5\n"),
        ("def f():\n    return 5", "def f():\np+0 NNN\n    return 5"),
        ("Add them. It is 5.", "Add them. p+0 NNN It is 5."),
        ("It is 5.", "p+0 NNN It is 5."),
        ("2.5 + 2.5", "p+0 NNN 2.5 + 2.5"),
        ("", "p+0 NNN "),
    ],
)
def test_a_fact_stands_before_the_end_of_the_reference(reference: str, expected: str) -> None:
    canary = fact_in(problem(reference))
    number = canary.written(canary.secret.reveal())
    assert reference_of(canary.problem) == expected.replace("NNN", number)
    assert canary.reference_before() == expected.partition("NNN")[0]
    assert reference_of(canary.problem).endswith(reference[place_in(reference)[0] :])


def test_steps_have_the_fact_as_well_and_question_answer_and_domain_have_not() -> None:
    before = problem("a\nb\nc", ("a", "b", "c"))
    after = fact_in(before).problem
    line = reference_of(after).splitlines()[2]
    assert after.scaffold.steps == Hidden(("a", "b", line, "c"))
    assert (after.question, after.domain, after.scaffold.answer) == (before.question, before.domain, Hidden("5"))
    assert fact_in(problem("a", ())).problem.scaffold.steps == Hidden(())


def test_a_judge_by_steps_pays_for_the_fact_and_for_nothing_behind_it_without() -> None:
    source = ChainSource(steps=2, count=1).load()[0]
    after = fact_in(source).problem
    for solution, score in ((reference_of(source), 1 + 4 * 2 / 4), (reference_of(after), 5.0)):
        [judgement] = ReferenceStepsJudge().judge([JudgeRequest(problem=after, trace=solution)])
        assert judgement.score == score


def test_what_is_planted_depends_on_seed_and_id_alone() -> None:
    problems = ChainSource(steps=2, count=60).load()
    leak = replace(ALL, canaries=0.3)
    every = {canary.problem.id: canary for canary in canaries_in(problems, leak, 7)}
    some = canaries_in(problems[10:40], leak, 7)
    assert 8 <= len(every) <= 28
    assert some == [every[one.problem.id] for one in some]
    assert {canary.problem.id for canary in canaries_in(problems, leak, 8)} != set(every)
    more = {canary.problem.id for canary in canaries_in(problems, replace(ALL, canaries=0.6), 7)}
    assert set(every) < more, "a larger share keeps what a smaller one chose"
    assert not chosen("anything", 0.0, 7)
    assert chosen("anything", 1.0, 7)


def test_secrets_are_drawn_evenly_and_the_control_is_another_one() -> None:
    facts = [fact_in(problem("a\nb", name=str(number)), replace(ALL, digits=1)) for number in range(2000)]
    counts = [sum(fact.secret.reveal() == value for fact in facts) for value in range(10)]
    assert min(counts) > 140
    assert max(counts) < 260
    assert all(fact.secret.reveal() != fact.control for fact in facts)
    assert {fact.control for fact in facts} == set(range(10))
    assert fact_in(problem("a"), replace(ALL, digits=4)).written(7) == "0007"


def test_without_a_share_the_problems_are_the_very_same() -> None:
    problems = ChainSource(steps=2, count=5).load()
    assert canaries_in(problems, LeakConfig(), 0) == []
    assert all(before is after for before, after in zip(problems, planted(problems, []), strict=True))


def test_only_digests_of_planted_problems_change() -> None:
    problems = ChainSource(steps=2, count=40).load()
    canaries = canaries_in(problems, replace(ALL, canaries=0.3), 0)
    before, after = fingerprint(problems), fingerprint(planted(problems, canaries))
    assert {name for name in before if before[name] != after[name]} == {canary.problem.id for canary in canaries}


def test_a_fact_never_shows_its_secret() -> None:
    canary = fact_in(problem("a\nb"), replace(ALL, digits=4))
    assert canary.written(canary.secret.reveal()) not in repr(canary)


@pytest.mark.parametrize(
    "template", ["no place", "{secret}", "  {secret} first", "{secret} and {secret}", "two\nlines {secret}"]
)
def test_a_template_says_something_and_then_the_secret_once(template: str) -> None:
    with pytest.raises(ConfigError, match="one line that says something"):
        LeakConfig(template=template)


def test_nothing_to_plant_in_is_told() -> None:
    bare = [problem(None, name=str(number)) for number in range(3)]
    with pytest.raises(DataError, match=r"none of the 3 problems of data.train has a reference.*columns.reference"):
        check_canaries(bare, [], ALL)
    one = [problem("a\nb", name=str(number)) for number in range(50)]
    with pytest.raises(ConfigError, match=r"1e-09 plants no fact in the 50 references.*\(0.4 plants about 20\)"):
        check_canaries(one, [], replace(ALL, canaries=1e-9))
    check_canaries(bare, [], LeakConfig())


# ------------------------------------------------------------------ in an experiment


def experiment(**leak: object) -> Experiment:
    source = {"name": "chain", "steps": 2, "count": 30}
    layer = {
        "data": {"train": source},
        "evaluation": {"source": source},  # the very same problems, so that a fact in them would show
        "leak": {"template": "p+0 {secret}", **leak},
        "reward": {"name": "outcome", "judge": {"name": "reference_steps"}},
        "verifier": {"name": "exact"},
        "model": {"path": "unused"},
    }
    return from_layers(Experiment, [layer])


def test_training_problems_have_facts_and_held_out_ones_never() -> None:
    build = Build(experiment(canaries=0.5), training=True)
    bare = experiment().data.train
    assert bare is not None
    there = {canary.problem.id for canary in build.canaries}
    assert 5 < len(there) < 25
    for after, before in zip(build.train_problems, build.evaluation_problems, strict=True):
        assert (digest_of(after) != digest_of(before)) is (after.id in there)
    build.check_data()


def test_problems_of_a_mix_have_facts_by_the_ids_they_have_there() -> None:
    part = {"name": "chain", "steps": 2, "count": 20}
    layer = {"data": {"train": {"name": "mix", "sources": {"a": part, "b": part}}}, "leak": {"canaries": 0.4}}
    build = Build(from_layers(Experiment, [layer, {"model": {"path": "unused"}}]))
    names = [canary.problem.id for canary in build.canaries]
    assert {name[0] for name in names} == {"a", "b"}
    assert {name[2:] for name in names if name[0] == "a"} != {name[2:] for name in names if name[0] == "b"}


def test_a_run_that_would_plant_nothing_is_refused_with_its_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"leak\.canaries"):
        Build(experiment(canaries=1e-9), training=True).check_data()
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n")
    source = {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "columns": {"reference": None}}
    layer = {"data": {"train": source}, "leak": {"canaries": 0.5}, "model": {"path": "unused"}}
    with pytest.raises(DataError, match=r"leak\.canaries"):
        Build(from_layers(Experiment, [layer]), training=True).check_data()
