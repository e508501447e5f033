"""The choice world and the code world: problems that are their own solutions, and one tokenizer for all."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from exprl.chain import problems as chain
from exprl.chain.drawing import generate
from exprl.chain.tokenizer import build_tokenizer
from exprl.config import validate_choice
from exprl.errors import ConfigError
from exprl.execution.answer import program_of
from exprl.execution.judging import Bench, judge
from exprl.execution.limits import Limits
from exprl.execution.sandboxes import NoSandbox
from exprl.execution.tests import read_tests
from exprl.judges.reference_steps import steps_reached
from exprl.registry import SOURCES
from exprl.resources import Resources
from exprl.types import Problem
from exprl.verifiers import ChoiceVerifier
from exprl.verifiers.options import options_of
from exprl.worlds import clauses, reactions
from exprl.worlds.world import tokens, worlds

ALL = worlds(turns=4, processes=3, cases=4)


def load(**node: Any) -> list[Problem]:
    problems: list[Problem] = validate_choice(SOURCES, node, "data.train").build(Resources()).load()
    return problems


def revealed(problem: Problem, name: str) -> Any:
    return getattr(problem.scaffold, name).reveal()


class TestReactions:
    def test_worked_by_hand(self) -> None:
        first = reactions.PRODUCTS["moss", "burn"]
        second = reactions.PRODUCTS[first, "soak"]
        problem = reactions.Reactions("moss", ("burn", "soak"))
        assert problem.question.startswith("moss burn soak?\nA. ash\nB. brine\nC. chalk\n")
        letter = "ABCDEFGH"[sorted(reactions.SUBSTANCES).index(second)]
        assert problem.reference() == f"moss burn {first}\n{first} soak {second}\nAnswer: {letter}"

    def test_a_process_turns_no_two_substances_into_one_and_none_into_itself(self) -> None:
        assert len(reactions.PRODUCTS) == 48
        for process in reactions.PROCESSES:
            products = {one: reactions.PRODUCTS[one, process] for one in reactions.SUBSTANCES}
            assert sorted(products.values()) == sorted(reactions.SUBSTANCES)
            assert all(one != other for one, other in products.items())

    def test_the_reference_is_right_and_every_other_letter_wrong(self) -> None:
        verifier = ChoiceVerifier()
        for problem in load(name="reactions", steps=3, count=20):
            answer = revealed(problem, "answer")
            listed = options_of(problem.question.text)
            assert sorted(listed.values()) == sorted(reactions.SUBSTANCES)
            right = [letter for letter in listed if verifier.verify(problem, f"Answer: {letter}")]
            assert right == [verifier.gold(problem)] == [answer]
            assert verifier.verify(problem, revealed(problem, "reference"))
            assert problem.domain == "choice"


class TestClauses:
    def test_worked_by_hand(self) -> None:
        cases = (clauses.Clause(3, 2, 5, clauses.PLUS), clauses.Clause(10, 8, 4, clauses.MINUS))
        problem = clauses.Clauses(cases)
        assert problem.question == "below 3 as 2>7, else as 8>2"
        assert problem.reference() == "def f(x):\n if x < 3: x += 5\n else: x -= 6\n return x % 10"
        assert [case.expected for case in problem.tests().cases] == [5, 6, 7, 7, 8, 9, 0, 1, 2, 3]

    def test_both_signs_are_right_of_which_the_reference_has_one(self) -> None:
        problem = clauses.draw(random.Random(3), 4)
        plus, minus = (problem.written([sign] * 4) for sign in (clauses.PLUS, clauses.MINUS))
        assert plus.tests() == minus.tests() == problem.tests()
        assert (plus.question, minus.question) == (problem.question, problem.question)
        for line, other in zip(plus.steps(), minus.steps(), strict=True):
            shifts = int(line.rpartition(" ")[2]), int(other.rpartition(" ")[2])
            assert sum(shifts) == 10
            assert steps_reached(line, [other], strict=True) == 0

    def test_references_pass_their_tests_and_one_wrong_case_costs_its_share(self) -> None:
        bench = Bench(sandbox=NoSandbox(), limits=Limits(), stopping=threading.Event())
        (problem,) = load(name="clauses", steps=3, count=1, seed=4)
        assert problem.domain == "code"
        tests, reference = read_tests(problem), revealed(problem, "reference")
        assert program_of(reference, tests) == reference
        assert judge(reference, tests, bench).passed
        first = reference.split("\n")[1]
        wrong = reference.replace(first, f"{first[:-1]}{(int(first[-1]) + 1) % 10}")
        bound = int(first.split("< ")[1][0])
        assert judge(wrong, tests, bench).share == 1 - bound / 10

    def test_steps_are_lines_of_the_program(self) -> None:
        for problem in load(name="clauses", count=5):
            steps = revealed(problem, "steps")
            assert steps == tuple(revealed(problem, "reference").split("\n")[1:-1])
            assert steps_reached(revealed(problem, "reference"), steps, strict=True) == len(steps) == 4


@pytest.mark.parametrize("name", ["reactions", "clauses"])
class TestBoth:
    def test_same_at_every_load_and_other_with_another_seed(self, name: str) -> None:
        assert load(name=name, count=30) == load(name=name, count=30)
        assert load(name=name, count=30) != load(name=name, count=30, seed=1)
        assert load(name=name, count=30)[:10] == load(name=name, count=10)

    def test_questions_differ_and_splits_share_none(self, name: str) -> None:
        train = [p.question.text for seed in range(2) for p in load(name=name, steps=2, count=28, seed=seed)]
        test = [p.question.text for p in load(name=name, steps=2, count=28, split="test")]
        assert len(set(test)) == len(set(train[:28])) == 28
        assert not set(train) & set(test)

    def test_more_than_there_are(self, name: str) -> None:
        with pytest.raises(ConfigError, match="count: "):
            load(name=name, steps=2, count=10_000)


@pytest.mark.parametrize("world", ALL, ids=lambda world: world.name)
def test_one_tokenizer_writes_all_worlds_exactly(world: Any) -> None:
    tokenizer = build_tokenizer(tokens())
    for problem in generate(world.draw, 1, 20, world.lengths):
        for text in (problem.question, *world.writings(problem)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids


def test_chain_texts_have_as_many_tokens_as_with_the_tokenizer_of_chain_alone() -> None:
    problem = chain.draw(random.Random(0), 8)
    for text in (problem.question, problem.reference()):
        lengths = [len(made(text, add_special_tokens=False)["input_ids"]) for made in (build_tokenizer(), _all())]
        assert lengths[0] == lengths[1]


def _all() -> Any:
    return build_tokenizer(tokens())
