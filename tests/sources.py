"""Sources of problems as a run loads them."""

from typing import Any

import pytest

from exprl.config import validate_choice
from exprl.errors import DataError
from exprl.registry import SOURCES
from exprl.resources import Resources
from exprl.types import Problem

ROWS = [{"question": f"{n}+{n}?", "reference": f"Add.\n{2 * n}", "answer": 2 * n} for n in range(1, 6)]


def load(**node: Any) -> list[Problem]:
    problems: list[Problem] = validate_choice(SOURCES, node, "data.train").build(Resources()).load()
    return problems


def plain(problem: Problem) -> tuple[Any, ...]:
    scaffold = problem.scaffold
    hidden = (scaffold.reference, scaffold.answer, scaffold.steps)
    return (problem.id, problem.question.text, *(h.reveal() if h else None for h in hidden), problem.domain)


def error_of(**node: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(**node)
    return str(caught.value)
