"""Tests of a function that adds, in each form, and who runs them."""

from __future__ import annotations

import threading
from typing import Any

from exprl.execution import Bubblewrap, NoSandbox
from exprl.execution.judging import Bench
from exprl.execution.limits import Limits
from exprl.execution.tests import (
    CallCase,
    CallTests,
    ProgramTests,
    StdioCase,
    StdioTests,
    Tests,
    to_json,
)
from exprl.types import Hidden, Problem, Question, Scaffold

ADD = ProgramTests(
    entry_point="add",
    prompt='from math import floor\n\n\ndef add(a, b):\n    """The sum."""\n',
    test="def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
)
CALLS = CallTests(
    entry_point="add", cases=(CallCase(args=(1, 2), expected=3), CallCase(kwargs={"a": 5, "b": 0}, expected=5))
)
SUMS = StdioTests(cases=(StdioCase(input="1 2", output="3"), StdioCase(input="4 5", output="9")))
LIMITS = Limits(time=1.0, memory=256)


def problem(tests: Tests | None) -> Problem:
    scaffold = Scaffold(tests=Hidden(to_json(tests)) if tests is not None else None)
    return Problem(question=Question(problem_id="p", text="Add."), scaffold=scaffold)


def bench(sandbox: Bubblewrap | NoSandbox, **limits: float) -> Bench:
    return Bench(sandbox=sandbox, limits=Limits(**{"time": 1.0, "memory": 256} | limits), stopping=threading.Event())


def nested(levels: int) -> Any:
    """Lists and objects within each other, in turn."""
    value: Any = 1
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


def fenced(code: str, label: str = "python") -> str:
    return f"```{label}\n{code}```\n"
