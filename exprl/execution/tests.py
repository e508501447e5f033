"""The tests of a program: what they are, read from and written as the JSON text in `Scaffold.tests`.

Three forms, each with optional limits `time` (seconds of one run) and `memory` (MiB) of its own:

- `{"form": "stdio", "cases": [{"input": "1 2", "output": "3"}]}`: a whole program, by what it prints.
- `{"form": "call", "entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}]}`: a function, by what it returns;
  `kwargs` beside `args`.
- `{"form": "program", "entry_point": "add", "test": "def check(candidate): ...", "prompt": "def add(a, b): ..."}`: a
  function, by a test program (HumanEval's form; MBPP's plain asserts, too). An answer may complete the `prompt`.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar, TypeGuard

from exprl.errors import ColumnError, DataError
from exprl.types import Problem

LONGEST_TIME = 3600
"""Seconds for one run."""
LEAST_MEMORY, MOST_MEMORY = 64, 2**20
"""MiB for one run; with less Python does not start."""
DEEPEST = 200
"""Lists and objects within each other: what writes and reads values on both sides of a sandbox still recurs so far."""


@dataclass(frozen=True, kw_only=True)
class StdioCase:
    """What a program reads from its standard input, and what it then is to print."""

    input: str
    output: str


@dataclass(frozen=True, kw_only=True)
class CallCase:
    """A call of the entry point, and the value it is to return; all are plain JSON values."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    expected: Any = None


@dataclass(frozen=True, kw_only=True)
class Tests:
    """Base of the three forms.

    Attributes:
        time: limit of one run in seconds; None: that of who runs it.
        memory: limit of one run in MiB; None: that of who runs it.
    """

    __test__: ClassVar[bool] = False  # no test class of pytest's
    form: ClassVar[str]

    time: float | None = None
    memory: int | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    @cached_property
    def digest(self) -> str:
        """By which equal tests are known."""
        return hashlib.sha256(to_json(self).encode("utf-8", "backslashreplace")).hexdigest()


@dataclass(frozen=True, kw_only=True)
class StdioTests(Tests):
    """A run of the whole program for each pair of input and output."""

    form: ClassVar[str] = "stdio"
    cases: tuple[StdioCase, ...]

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True, kw_only=True)
class CallTests(Tests):
    """Calls of one function."""

    form: ClassVar[str] = "call"
    entry_point: str
    cases: tuple[CallCase, ...]

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True, kw_only=True)
class ProgramTests(Tests):
    """A test program for one function: one verdict, whatever number of assertions is in it."""

    form: ClassVar[str] = "program"
    entry_point: str
    test: str
    prompt: str = ""

    def __len__(self) -> int:
        return 1


def read_tests(problem: Problem) -> Tests:
    """The tests of a problem; raises `DataError` naming it where it has none, or such as cannot be read."""
    hidden = problem.scaffold.tests
    if hidden is None:
        raise ColumnError(
            f"problem {problem.id!r} has no tests, but its program is to be judged by running it.",
            ["columns.tests=COLUMN"],
            " for the column that holds them, or leave the row out.",
        )
    text: object = hidden.reveal()
    if not isinstance(text, str):
        raise DataError(
            f"problem {problem.id!r}, tests: expected JSON text, but got {type(text).__name__}. Write "
            "Hidden(json.dumps(tests))."
        )
    try:
        return parse_tests(text)
    except DataError as error:
        raise DataError(f"problem {problem.id!r}, tests: {error}") from None


@lru_cache(maxsize=1024)
def parse_tests(text: str) -> Tests:
    """Tests from their JSON text; a text is read once, however many programs are judged by it.

    Raises:
        DataError: it is not of one of the three forms; nothing of the tests themselves is shown.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError("not JSON. Write an object like " + _EXAMPLE) from None
    form = found.get("form") if isinstance(found, dict) else None
    if not isinstance(form, str) or form not in _READERS:
        raise DataError(f"`form` is one of {', '.join(map(repr, _READERS))}, in an object like {_EXAMPLE}")
    reader, allowed = _READERS[form]
    if unknown := found.keys() - allowed - {"form", "time", "memory"}:
        raise DataError(f"unknown key {sorted(unknown)[0]!r}; of form {form!r} are {', '.join(sorted(allowed))}")
    return reader(found, {"time": _time(found.get("time")), "memory": _memory(found.get("memory"))})


def to_json(tests: Tests) -> str:
    """The text that `parse_tests` reads, the same for equal tests."""
    node: dict[str, Any] = {"form": tests.form}
    if isinstance(tests, StdioTests):
        node["cases"] = [{"input": case.input, "output": case.output} for case in tests.cases]
    elif isinstance(tests, CallTests):
        node["entry_point"] = tests.entry_point
        node["cases"] = [
            {"args": list(case.args), "kwargs": dict(case.kwargs), "expected": case.expected} for case in tests.cases
        ]
    elif isinstance(tests, ProgramTests):
        node |= {"entry_point": tests.entry_point, "test": tests.test, "prompt": tests.prompt}
    limits = {"time": tests.time, "memory": tests.memory}
    return json.dumps(node | {name: value for name, value in limits.items() if value is not None})


_EXAMPLE = '{"form": "stdio", "cases": [{"input": "1 2", "output": "3"}]}.'


def _stdio(found: dict[str, Any], limits: dict[str, Any]) -> Tests:
    cases = tuple(
        StdioCase(input=_text(case, "input", number), output=_text(case, "output", number))
        for number, case in enumerate(_cases(found, {"input", "output"}))
    )
    return StdioTests(cases=cases, **limits)


def _call(found: dict[str, Any], limits: dict[str, Any]) -> Tests:
    cases = []
    for number, case in enumerate(_cases(found, {"args", "kwargs", "expected"})):
        args, kwargs = case.get("args", []), case.get("kwargs", {})
        if "expected" not in case or not isinstance(args, list) or not isinstance(kwargs, dict):
            raise DataError(f"cases[{number}]: needs `args` (a list), `expected`, and maybe `kwargs` (an object).")
        for key, value in (("args", args), ("kwargs", kwargs), ("expected", case["expected"])):
            if _depth(value) > DEEPEST:
                raise DataError(f"cases[{number}].{key}: nested more than {DEEPEST} levels deep. Leave the case out.")
        cases.append(CallCase(args=tuple(args), kwargs=kwargs, expected=case["expected"]))
    return CallTests(entry_point=_name(found), cases=tuple(cases), **limits)


def _depth(value: Any) -> int:
    """The lists and objects within each other, at most one more than are allowed."""
    depth, level = 0, [value]
    while depth <= DEEPEST and (containers := [item for item in level if isinstance(item, list | dict)]):
        level = [item for one in containers for item in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth


def _program(found: dict[str, Any], limits: dict[str, Any]) -> Tests:
    test, prompt = found.get("test"), found.get("prompt", "")
    if not isinstance(test, str) or not test.strip() or not isinstance(prompt, str):
        raise DataError("form 'program' needs `test`, the text of a test program, and maybe `prompt`, a text.")
    try:
        ast.parse(test)
    except (SyntaxError, ValueError, RecursionError):
        raise DataError("`test` is no Python program.") from None
    return ProgramTests(entry_point=_name(found), test=test, prompt=prompt, **limits)


_READERS: Mapping[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Tests], set[str]]] = {
    "stdio": (_stdio, {"cases"}),
    "call": (_call, {"entry_point", "cases"}),
    "program": (_program, {"entry_point", "test", "prompt"}),
}


def _cases(found: dict[str, Any], allowed: set[str]) -> list[dict[str, Any]]:
    cases = found.get("cases")
    if not isinstance(cases, list) or not cases:
        raise DataError("`cases` must be a list with at least one test.")
    for number, case in enumerate(cases):
        if not isinstance(case, dict) or case.keys() - allowed:
            raise DataError(f"cases[{number}]: expected an object of {', '.join(sorted(allowed))}.")
    return cases


def _text(case: dict[str, Any], key: str, number: int) -> str:
    if not isinstance(case.get(key), str):
        raise DataError(f"cases[{number}].{key}: expected a text, but got {type(case.get(key)).__name__}.")
    return str(case[key])


def _name(found: dict[str, Any]) -> str:
    name = found.get("entry_point")
    if not isinstance(name, str) or not name.isidentifier():
        raise DataError("`entry_point` must be the name of the function that is tested.")
    return name


def _time(value: Any) -> float | None:
    if value is None or (_is_number(value) and 0 < value <= LONGEST_TIME):
        return value
    raise DataError(f"`time` is a number of seconds above 0, up to {LONGEST_TIME}; it may be left out.")


def _memory(value: Any) -> int | None:
    if value is None or (_is_number(value) and isinstance(value, int) and LEAST_MEMORY <= value <= MOST_MEMORY):
        return value
    raise DataError(f"`memory` is a whole number of MiB from {LEAST_MEMORY} to {MOST_MEMORY}; it may be left out.")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
