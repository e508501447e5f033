"""Tests of programs as text, and the program in a response."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exprl.errors import DataError
from exprl.execution import NoSandbox
from exprl.execution.answer import program_of
from exprl.execution.tests import (
    ProgramTests,
    StdioTests,
    Tests,
    parse_tests,
    read_tests,
    to_json,
)
from exprl.execution.verifier import ExecutionVerifier
from exprl.types import Hidden, Problem, Question, Scaffold
from tests.programs import ADD, CALLS, SUMS, fenced, nested, problem

# ------------------------------------------------------------------ tests as text


def call_of(**case: Any) -> str:
    return json.dumps({"form": "call", "entry_point": "f", "cases": [case]})


@pytest.mark.parametrize("tests", [ADD, CALLS, SUMS, StdioTests(cases=SUMS.cases, time=0.5, memory=64)])
def test_tests_are_read_as_they_are_written(tests: Tests) -> None:
    assert parse_tests(to_json(tests)) == tests


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "`form` is one of"),
        ('{"form": ["stdio"]}', "`form` is one of"),
        ('{"form": "stdio"}', "at least one test"),
        ('{"form": "stdio", "cases": []}', "at least one test"),
        (
            '{"form": "stdio", "cases": [{"input": "1", "output": 2}]}',
            r"cases\[0\].output: expected a text, but got int",
        ),
        ('{"form": "stdio", "cases": [{"in": "1"}]}', r"cases\[0\]: expected an object of input, output"),
        ('{"form": "stdio", "cases": [{"input": "", "output": ""}], "tests": 1}', "unknown key 'tests'"),
        (
            '{"form": "stdio", "cases": [{"input": "", "output": ""}], "time": 0}',
            "`time` is a number of seconds above 0",
        ),
        ('{"form": "stdio", "cases": [{"input": "", "output": ""}], "time": 1e9}', "up to 3600"),
        ('{"form": "stdio", "cases": [{"input": "", "output": ""}], "time": NaN}', "`time` is a number"),
        ('{"form": "stdio", "cases": [{"input": "", "output": ""}], "memory": 1}', "MiB from 64 to 1048576"),
        ('{"form": "stdio", "cases": [{"input": "", "output": ""}], "memory": true}', "`memory` is a whole number"),
        ('{"form": "stdio", "cases": [{"input": "", "output": ""}], "memory": 1.5}', "`memory` is a whole number"),
        ('{"form": "call", "cases": [{"args": [], "expected": 1}]}', "`entry_point` must be the name"),
        ('{"form": "call", "entry_point": "f", "cases": [{"args": [1]}]}', r"cases\[0\]: needs `args`"),
        (call_of(args=[nested(200)], expected=1), r"cases\[0\].args: nested more than 200 levels"),
        (call_of(args=[], kwargs={"a": nested(700)}, expected=1), r"cases\[0\].kwargs: nested more than 200"),
        (call_of(args=[], expected=nested(201)), r"cases\[0\].expected: nested more than 200"),
        ('{"form": "program", "entry_point": "f", "test": ""}', "needs `test`"),
        ('{"form": "program", "entry_point": "f", "test": "def"}', "`test` is no Python program"),
    ],
)
def test_malformed_tests_are_told_without_showing_them(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_tests(text)


def test_a_problem_without_tests_is_named() -> None:
    with pytest.raises(DataError, match=r"problem 'p' has no tests.*columns.tests"):
        ExecutionVerifier(sandbox=NoSandbox()).check([problem(ADD), problem(None)])
    with pytest.raises(DataError, match="problem 'p', tests: not JSON"):
        read_tests(Problem(question=Question(problem_id="p", text=""), scaffold=Scaffold(tests=Hidden("x"))))
    unwritten = Scaffold(tests=Hidden({"form": "stdio"}))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"problem 'p', tests: expected JSON text, but got dict.*json\.dumps"):
        read_tests(Problem(question=Question(problem_id="p", text=""), scaffold=unwritten))


# ------------------------------------------------------------------ the program in a response


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\nprint(1)\n```\nbetter:\n```python\nprint(2)\n```", "print(2)\n"),
        ("```py\nprint(1)\n```\nIt prints\n```\n1\n```", "print(1)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("~~~python\nprint(1)\n~~~", "print(1)\n"),
        ("<think>```python\nprint(1)\n```</think>I do not know.", None),
        ("<think>```python\nprint(1)\n```", None),
        ("```python\nprint(1)", "print(1)"),
        ("```text\nprint(1)\n```", None),
        ("print(input())", "print(input())"),
        ("The answer is 3", None),
        ("42", None),
        ("```python\r\nprint(1)\r\n```\r\nIt prints 1.", "print(1)\n"),
        ("1. Here:\n   ```python\n   if 1:\n       print(1)\n   ```\n2. Done.", "if 1:\n    print(1)\n"),
        ("- ```python\n  print(1)\n  ```", "print(1)\n"),
        ("   ```python\nif 1:\n  print(1)\n   ```", "if 1:\n  print(1)\n"),  # the fence alone is indented
        ("```{.python .numberLines}\nprint(1)\n```\n```{.sh}\nls\n```", "print(1)\n"),
        ("``` Python3.11\nprint(1)\n```", "print(1)\n"),
        ("```pycon\n>>> 1\n```", None),
        ("```python\nprint(1)```\nBetter:\n```python\nprint(2)\n```", "print(2)\n"),
        ("```python\nprint(1)```\nIt prints 1.", "print(1)"),
        ("```python\nprint('```')  # or ```x```\nprint(2)\n```", "print('```')  # or ```x```\nprint(2)\n"),
        ("```python\nprint(2)  # ```x", "print(2)  # ```x"),
    ],
)
def test_the_program_is_the_last_fenced_block(response: str, program: str | None) -> None:
    assert program_of(response, SUMS) == program


def test_a_call_needs_the_function_in_unfenced_code() -> None:
    assert program_of("def add(a, b):\n    return a + b", CALLS) is not None
    assert program_of("def sub(a, b):\n    return a - b", CALLS) is None


RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n"


@pytest.mark.parametrize("tests", [CALLS, ProgramTests(entry_point="add", test=ADD.test)])
@pytest.mark.parametrize(
    ("response", "program"),
    [
        (fenced(RIGHT) + fenced("print(add(1, 2))\n"), RIGHT),
        (fenced(RIGHT) + "Used so:\n```python\nprint(add(1,", RIGHT),  # cut off
        (fenced(RIGHT) + "Or:\n```python\ndef add(a, b):\n    return (a +", RIGHT),  # cut off
        (fenced(WRONG) + "No:\n" + fenced(RIGHT) + fenced("assert add(1, 2) == 3\n"), RIGHT),
        (fenced(RIGHT) + "No:\n" + fenced(WRONG), WRONG),
        (fenced(RIGHT) + "No:\n" + fenced("def add(a, b) return a\n"), "def add(a, b) return a\n"),
        (fenced(RIGHT) + fenced("from solution import add\nprint(add(1, 2))\n"), RIGHT),
        (fenced("from operator import add\n") + fenced("print(add(1, 2))\n"), "from operator import add\n"),
        (fenced(RIGHT, "") + fenced("print(add(1, 2))\n"), RIGHT),
        (fenced(RIGHT) + fenced(WRONG, ""), RIGHT),  # a labelled one, where both write it out
        (
            fenced('def add(a, b):\n    """The sum."""\n') + fenced("add = lambda a, b: a + b\n"),
            "add = lambda a, b: a + b\n",
        ),
        (fenced(RIGHT) + "You asked for:\n" + fenced('def add(a, b):\n    """The sum."""\n'), RIGHT),
        (fenced("print(1)\n") + fenced("print(2)\n"), "print(2)\n"),  # neither: the last
    ],
)
def test_of_several_blocks_the_last_that_writes_the_function_out_is_read(
    response: str, program: str, tests: Tests
) -> None:
    assert program_of(response, tests) == program


def test_a_quoted_prompt_is_not_taken_for_its_completion() -> None:
    response = fenced(ADD.prompt) + "goes on with\n" + fenced("    return a + b\n")
    assert program_of(response, ADD) == ADD.prompt + "    return a + b\n"


@pytest.mark.parametrize(
    "response",
    [
        "    return a + b",
        "    return a + b\n\nprint(add(1, 2)\n",  # goes on with what is no program
        "```python\n    return a + b\n```",
        "```python\ndef add(a, b):\n    return a + b\n```",
        "def add(a, b):\n    return a + b",
        "```python\ndef add(a, b):\n    return floor(a + b)\n```",  # leans on the prompt's imports
        "```python\nfrom __future__ import annotations\ndef add(a: no, b):\n    return floor(a + b)\n```",
    ],
)
def test_a_completion_of_the_prompt_is_made_whole(response: str) -> None:
    program = program_of(response, ADD)
    assert program is not None
    names: dict[str, object] = {}
    exec(program, names)
    assert names["add"](2, 3) == 5  # type: ignore[operator]
