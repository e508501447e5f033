"""The example data set that comes with exprl: what it holds is right, by our own verifiers and by running it."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product
from math import comb, factorial, log2, sqrt

import pytest

from exprl.build import Build
from exprl.config import validate_choice
from exprl.execution.verifier import ExecutionVerifier
from exprl.experiment import load_experiment
from exprl.registry import SOURCES
from exprl.resources import Resources
from exprl.types import Problem
from exprl.verifiers import ChoiceVerifier, MathVerifier
from tests.sandboxes import needs_sandbox

PATH = "package:exprl/configs/data/mixed.jsonl"
COLUMNS = {"id": "id", "domain": "domain", "tests": "tests", "partial": True}


def load() -> list[Problem]:
    node = {"name": "jsonl", "path": PATH, "columns": COLUMNS}
    return validate_choice(SOURCES, node, "data.train").build(Resources()).load()


PROBLEMS = load()


def of(domain: str) -> list[Problem]:
    return [problem for problem in PROBLEMS if problem.domain == domain]


def answer(problem: Problem) -> str:
    assert problem.scaffold.answer is not None
    return problem.scaffold.answer.reveal()


def reference(problem: Problem) -> str:
    assert problem.scaffold.reference is not None
    return problem.scaffold.reference.reveal()


def test_what_is_in_it() -> None:
    assert Counter(problem.domain for problem in PROBLEMS) == {"math": 24, "choice": 10, "science": 10, "code": 20}
    assert all((problem.scaffold.tests is not None) == (problem.domain == "code") for problem in PROBLEMS)
    assert all((problem.scaffold.answer is None) == (problem.domain == "code") for problem in PROBLEMS)
    assert len({problem.question.text for problem in PROBLEMS}) == 64
    assert {answer(problem) for problem in of("choice")} == set("ABCD")


def test_each_reference_ends_in_the_answer_and_in_no_other_problems() -> None:
    verifier = MathVerifier()
    for domain in ("math", "science"):
        verifier.check(of(domain))
        for problem in of(domain):
            right = [other.id for other in of(domain) if verifier.verify(other, reference(problem))]
            assert right == [other.id for other in of(domain) if answer(other) == answer(problem)], problem.id
    choice = ChoiceVerifier(letters="ABCD")
    choice.check(of("choice"))
    assert all(choice.verify(problem, reference(problem)) for problem in of("choice"))


@needs_sandbox
def test_each_program_passes_its_tests_and_no_other_problems() -> None:
    problems, verifier = of("code"), ExecutionVerifier()
    verifier.check(problems)
    assert all(verifier.verify_batch(problems, [reference(problem) for problem in problems]))
    others = [reference(problem) for problem in [*problems[1:], problems[0]]]
    assert not any(verifier.verify_batch(problems, others))


def test_the_config_that_reads_it_takes_every_row() -> None:
    build = Build(load_experiment("mixed"))
    held_out = build.evaluation_problems
    assert [*build.train_problems, *held_out] == PROBLEMS
    assert {problem.domain for problem in held_out} == {problem.domain for problem in PROBLEMS}
    build.verifier.check(PROBLEMS)
    assert build.verifier.unreadable(PROBLEMS) == []


def paths(x: int, y: int) -> int:
    """From (0, 0), around (2, 1)."""
    if (x, y) in ((0, 0), (2, 1)):
        return int(x == 0)
    return (paths(x - 1, y) if x else 0) + (paths(x, y - 1) if y else 0)


DICE = list(product(range(1, 7), repeat=2))
FOUND: dict[str, float | Fraction] = {
    "math-01": (5 * 6 + 7 * 4) / 2,
    "math-02": 240 / ((13 * 60 + 5) - (9 * 60 + 40) - 25) * 60,
    "math-03": sum(n for n in range(1, 85) if 84 % n == 0),
    "math-04": 7**100 % 13,
    "math-05": sum(sum(map(int, str(n))) == 5 for n in range(100, 1000)),
    "math-06": next(c for c in range(50) if 81 - 4 * c == 25),
    "math-07": next(a * b / 2 for a in range(1, 25) for b in range(1, 25) if a * a + b * b == 625 and a + b == 31),
    "math-08": sum(sum(shares) == 8 for shares in product(range(1, 9), repeat=3)),
    "math-09": Fraction(sum(a * b % 6 == 0 for a, b in DICE), 36),
    "math-10": next(x for x in range(7, 99) if abs(log2(x) + log2(x - 6) - 4) < 1e-9),
    "math-11": sum(3 + 4 * place for place in range(20)),  # 11 = 3 + 4 * 2 and 31 = 3 + 4 * 7
    "math-12": 1 / (Fraction(1, 6) + Fraction(1, 9) - Fraction(1, 12)),
    "math-13": sum(comb(3, k) * 2**k * comb(4, 4 - k) * (-1) ** (4 - k) for k in range(4)),
    "math-14": sum(n % 2 != 0 and n % 5 != 0 for n in range(1, 1001)),
    "math-15": sqrt(21 * 8 * 7 * 6) / 21,
    "math-16": sum(((7 + sign * sqrt(29)) / 2) ** 3 for sign in (1, -1)),
    "math-17": next(n for n in range(1, 30) if factorial(n) % 1000 == 0),
    "math-18": Fraction(comb(5, 2) * comb(4, 1), comb(9, 3)),
    "math-19": max(x**3 - 6 * x**2 + 9 * x + 2 for x in (n / 1000 for n in range(2001))),
    "math-20": sum(3 * x * x * 2.718281828459045 ** (x**3) for x in ((n + 0.5) / 10000 for n in range(10000))) / 10000,
    "math-21": 3**2024 % 100,
    "math-22": paths(4, 3),
    "math-23": next(x for x in range(99) if 3 * x - (2 * x + 1) == (5 * x - 6) - 3 * x),
    "math-24": sqrt(6.5**2 - 2.5**2) - sqrt(6.5**2 - 3.9**2),
    "science-01": 1200 * 20**2 / 2 / 50,
    "science-02": 250 * 4.18 * (80 - 20) / 1000,
    "science-03": round(0.5 * 8.314 * 300 / 100_000 * 1000, 1),
    "science-04": 80 / 2 ** (24 / 8),
    "science-05": float(f"{6.63e-34 * 3e8 / 500e-9:.2e}"),
    "science-06": 24 / 12 * (12 + 2 * 16),
    "science-07": 1 / (1 / 10 - 1 / 15),
    "science-08": 5.85 / 58.5 / 0.25,
    "science-09": 500 * 2 ** (120 // 20),
    "science-10": 340 * 1.2 / 2,
}
UNITS = {"4800 N", "62.7 kJ", "12.5 L", "10 mg", "3.98 * 10^-19 J", "88 g", "30 cm", "0.4 mol/L", "32000", "204 m"}


@pytest.mark.parametrize("problem", [*of("math"), *of("science")], ids=lambda problem: problem.id)
def test_each_answer_is_what_a_computation_finds(problem: Problem) -> None:
    value = answer(problem).replace("e - 1", "1.718281828459045").replace(" * 10^", "e")
    if problem.domain == "science":
        assert answer(problem) in UNITS
        value = value.split()[0]
    assert float(Fraction(value)) == pytest.approx(float(FOUND[problem.id]), rel=1e-6)
