"""Tests of programs, the program in a response, comparisons, and who runs many at once."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from exprl.errors import DataError, ExecutionError
from exprl.execution import Bubblewrap, NoSandbox, bubblewrap
from exprl.execution.answer import program_of
from exprl.execution.compare import same_output, same_value
from exprl.execution.inside import values
from exprl.execution.inside.serve import of_numpy
from exprl.execution.judging import Bench, Outcome, judge
from exprl.execution.limits import Limits
from exprl.execution.memory import children_of
from exprl.execution.process import StoppedError
from exprl.execution.runner import FILES_EACH, Memory, Runner
from exprl.execution.sandboxes import Command
from exprl.execution.seccomp import filter_program
from exprl.execution.tests import (
    LEAST_MEMORY,
    CallCase,
    CallTests,
    ProgramTests,
    StdioCase,
    StdioTests,
    Tests,
    parse_tests,
    read_tests,
    to_json,
)
from exprl.execution.verifier import ExecutionVerifier
from exprl.rewards.execution import ExecutionReward
from exprl.types import Hidden, Problem, Question, RolloutGroup, Scaffold
from tests.rollouts import rollout_of
from tests.sandboxes import needs_sandbox
from tests.waiting import until

ROOT = Path(__file__).parents[2]
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


# ------------------------------------------------------------------ tests as text


def nested(levels: int) -> Any:
    """Lists and objects within each other, in turn."""
    value: Any = 1
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


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


def fenced(code: str, label: str = "python") -> str:
    return f"```{label}\n{code}```\n"


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


# ------------------------------------------------------------------ comparisons


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3", "3\n", True),
        ("a  b \n\n", "a b", True),
        ("a\nb", "a b", False),
        ("0.30000000000000004", "0.3", True),
        ("0.31", "0.3", False),
        ("1.0", "1", False),
        ("10000000000000001", "10000000000000000", False),
        ("1e-3", "0.001", True),
        ("nan", "0.5", False),
        ("", "", True),
        ("", "0.0", False),
        ("a\u2028b", "a\nb", False),
        ("a\x1cb\x85c\fd\ve", "a\nb\nc\nd\ne", False),
        ("a\r\nb\r\n", "a\nb", True),
        ("a\u00a0b", "a b", True),
        ("1_000.0", "1000.0", False),
        ("\u0661.0", "1.0", False),
        ("+1e3", "1000.0", True),
        ("1000", "1000.0", True),
        ("1000.0", "1e3", True),
        ("infinity", "1e999", False),
        (".5", "0.5", True),
    ],
)
def test_outputs(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        ((1, 2), [1, 2], True),
        ({1: "a"}, {"1": "a"}, True),
        (10**400, 1.0, False),
        (float("nan"), float("nan"), True),
        (float("nan"), 1.0, False),
        ("1", 1, False),
        ([1], [1, 2], False),
        (None, None, True),
        ({1}, [1], False),
        (1.0, 1, True),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        (float(2**53), 2**53 + 1, False),
        (975460423000.0, 975460423723, False),
        (1, 1.0000001, True),
        (1 + 0j, 1, False),
        ({1: 3, "1": 2}, {"1": 2}, False),
        ({True: 2, None: 3, 1.5: 4}, {"true": 2, "null": 3, "1.5": 4}, True),
    ],
)
def test_values(value: object, expected: object, same: bool) -> None:
    assert same_value(value, expected) is same


@pytest.mark.parametrize("value", [1, 2.5, "ä", None, True, [1, (2, {3: {4}})], frozenset({1}), b"\x00", 1j])
def test_plain_values_pass_as_they_are(value: object) -> None:
    passed = values.load(values.dump({"value": value}))["value"]
    assert passed == value
    assert type(passed) is type(value)


@pytest.mark.parametrize("line", [b"", b"[]", b"[" * 10**6, b'{"value": {"type": "object", "items": []}}', b"\xff"])
def test_what_is_no_value_is_refused(line: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        values.load(line)


def test_whole_numbers_pass_at_any_length() -> None:
    sent = {"value": [-(10**5000)]}
    assert values.load(values.dump(sent)) == sent
    assert not same_value({10**5000: 1}, {"1": 1})


def test_objects_do_not_pass() -> None:
    with pytest.raises(TypeError, match="no plain value"):
        values.dump({"value": object()})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.float32(0.5), 0.5),
        (numpy.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (numpy.array(7), 7),
        ([numpy.int8(1), {numpy.int64(2): (numpy.float16(3),)}], [1, {2: (3.0,)}]),
        (numpy.array([numpy.int64(1), None], dtype=object), [1, None]),
        (numpy.array(["a"]), ["a"]),
    ],
)
def test_what_is_numpys_is_returned_as_plain_values(value: object, plain: object) -> None:
    passed = values.load(values.dump({"value": value}, other=of_numpy))["value"]
    assert passed == plain
    assert repr(passed) == repr(plain)
    with pytest.raises(
        TypeError, match="no plain value"
    ):  # a test program does not call with other values than it says
        values.dump({"value": value})


@pytest.mark.parametrize(
    "value", [object(), numpy.longdouble(1), numpy.datetime64("2020-01-01"), numpy.array([object()])]
)
def test_objects_do_not_pass_as_numpys(value: object) -> None:
    with pytest.raises(TypeError, match="no plain value"):
        values.dump({"value": value}, other=of_numpy)


# ------------------------------------------------------------------ judging


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "tests", "verdicts"),
    [
        ("print(sum(map(int, input().split())))", SUMS, ("passed", "passed")),
        ("print(3)", SUMS, ("passed", "wrong")),
        ("print(sum(map(int, input().split())))\nraise ValueError", SUMS, ("crashed", "crashed")),
        ("print(sum(map(int, input().split()))); exit()", SUMS, ("passed", "passed")),
        ("def add(a, b): return a + b", CALLS, ("passed", "passed")),
        ("def add(a, b): return a + b if b else 1 / 0", CALLS, ("passed", "crashed")),
        ("import os\ndef add(a, b): return os._exit(0) if b else a", CALLS, ("crashed", "passed")),
        ("def add(a, b): return a + b", ADD, ("passed",)),
        ("def add(a, b): return 3", ADD, ("wrong",)),
        ("def sub(a, b): return a - b", CALLS, ("undefined", "undefined")),
        ("def sub(a, b): return a - b", ADD, ("undefined",)),
        ("raise KeyError('add')", CALLS, ("crashed", "crashed")),
        ("raise KeyError('add')", ADD, ("wrong",)),
    ],
)
def test_verdicts(program: str, tests: Tests, verdicts: tuple[str, ...]) -> None:
    assert judge(program, tests, bench(Bubblewrap())).verdicts == verdicts


@needs_sandbox
@pytest.mark.parametrize(
    "test",
    [
        "assert add(1, 2) == 3\nassert add([1], [2]) == [1, 2]",  # MBPP: no check function
        "def check(f):\n    try:\n        f(None, 1)\n    except TypeError:\n        return\n    assert False",
        "def check(f):\n    assert f(10**5000, 1) == 10**5000 + 1",
        "def check(f):\n    assert f((1,), (2,)) == (1, 2)\n    assert floor(f(0.5, 1)) == 1",
    ],
)
def test_test_programs_see_what_a_function_gives_and_raises(test: str) -> None:
    tests = ProgramTests(entry_point="add", test=test, prompt=ADD.prompt)
    assert judge("def add(a, b): return a + b", tests, bench(Bubblewrap())).passed


@needs_sandbox
@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("import no_such_package", "ModuleNotFoundError"),
        ("def check(f):\n    pass", "without a call"),
        ("def test(f):\n    assert f(1, 2)", "without a call"),
        ("def check(f):\n    class SECRET42(KeyError): pass\n    raise SECRET42('SECRET42')", "KeyError"),
        ("def check(f):\n    assert f(1, 2) == SECRET42", "NameError"),
        ("def check(f):\n    f(1, 2); import SECRET42", "ModuleNotFoundError"),
        ("def check(f):\n    f(1, 2); from math import SECRET42", "ImportError"),
        ("def check(f):\n    assert f(1, 2) == 3\n    f(lambda: 'SECRET42', 1)", "no plain value"),
        (
            "def check(f):\n    f(1, 2)\n    try:\n        f(open, 1)\n    except BaseException:\n        pass",
            "no plain",
        ),
    ],
)
def test_a_test_program_at_fault_says_nothing_of_a_program(test: str, said: str) -> None:
    own = problem(ProgramTests(entry_point="add", test=test))
    response = "```python\ndef add(a, b): return a + b\n```"
    with pytest.raises(ExecutionError, match=f"problem 'p': the test program for 'add' is at fault.*{said}") as raised:
        ExecutionVerifier().verify(own, response)
    assert "SECRET42" not in str(raised.value)
    with closing(ExecutionReward()) as reward:
        [[found]] = reward.score([RolloutGroup(problem=own, rollouts=(rollout_of(response),))])
    assert found.value is None
    assert "SECRET42" not in found.judgements[0].rationale


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("return None", "assert len(add(1, 2)) == 1"),
        ("return []", "for got in add(1, 2):\n    last = got\nassert last == 3"),  # a NameError of the test's own name
        ("return 'missing'", "assert eval(add(1, 2)) == 3"),
        ("raise NameError('x')", "assert add(1, 2) == 3"),
        ("raise ImportError('x')", "import math; assert add(1, 2) == 3"),
        ("return 0", "import math; assert add(1, 2) == 3"),
        ("return object()", "try:\n    add(1, 2)\nexcept TypeError:\n    pass"),
        ("__import__('os')._exit(0)", "try:\n    add(1, 2)\nexcept BaseException:\n    pass"),
        ("raise StopIteration", "assert all(map(add, [1], [2]))"),
        ("raise StopAsyncIteration", "assert all(map(add, [1], [2]))"),
        ("raise GeneratorExit", "assert all(map(add, [1], [2]))"),
    ],
)
def test_what_a_program_brings_about_in_its_test_is_its_own_fault(program: str, test: str) -> None:
    tests = ProgramTests(entry_point="add", test=test)
    assert judge(f"def add(a, b): {program}", tests, bench(Bubblewrap())).verdicts == ("wrong",)


@needs_sandbox
def test_a_test_program_sees_the_exceptions_that_want_more_than_a_message() -> None:
    test = "try:\n    encode('\\ud800')\nexcept UnicodeEncodeError:\n    pass\nelse:\n    assert False"
    tests = ProgramTests(entry_point="encode", test=test)
    assert judge("def encode(text): return text.encode()", tests, bench(Bubblewrap())).passed


@needs_sandbox
def test_it_is_told_that_the_function_is_missing() -> None:
    own = problem(CALLS)
    with closing(ExecutionReward()) as reward:
        [[found]] = reward.score([RolloutGroup(problem=own, rollouts=(rollout_of(fenced("def sub(a, b): ...\n")),))])
    assert found.value == 0.0
    assert found.judgements[0].rationale == (
        "0 of 2 tests passed; test 1: undefined "
        "(the program that was read in the response does not define the function)"
    )


@needs_sandbox
def test_the_first_failure_ends_it_where_all_are_wanted() -> None:
    assert judge("print(0)", SUMS, bench(Bubblewrap()), every=False).verdicts == ("wrong", "not run")


def test_a_sandbox_that_does_not_stand_is_no_verdict() -> None:
    class Broken(NoSandbox):
        def command(self, *arguments: object) -> Command:
            return Command(arguments=("/bin/sh", "-c", "echo no namespaces >&2"), environment={})

    with pytest.raises(ExecutionError, match="a sandbox does not start: no namespaces"):
        judge("print(3)", SUMS, bench(Broken()))
    reward = ExecutionReward(sandbox=Broken())
    with closing(reward):
        [[own]] = reward.score([RolloutGroup(problem=problem(SUMS), rollouts=(rollout_of("```\nprint(3)\n```"),))])
    assert own.value is None
    assert own.judgements[0].status == "error"
    with pytest.raises(ExecutionError):
        ExecutionVerifier(sandbox=Broken()).verify(problem(SUMS), "```\nprint(3)\n```")


def test_none_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sandbox = NoSandbox()
    assert "unconfined" in caplog.text
    assert judge("print(sum(map(int, input().split())))", SUMS, bench(sandbox)).passed


def test_without_bubblewrap_a_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "_found", lambda name: None)
    with pytest.raises(ExecutionError, match=r"apt-get install bubblewrap.*sandbox.name=none"):
        Bubblewrap.preflight(Bubblewrap.Config())


def test_the_filter_is_made_for_known_processors() -> None:
    for machine in ("x86_64", "aarch64"):
        program = filter_program(machine)
        assert program is not None
        assert len(program) % 8 == 0
    assert filter_program("vax") is None


# ------------------------------------------------------------------ reward, verifier, runner


@needs_sandbox
def test_reward_of_all_and_of_a_share() -> None:
    said = ["```python\nprint(sum(map(int, input().split())))\n```", "```python\nprint(3)\n```", "I do not know."]
    group = RolloutGroup(problem=problem(SUMS), rollouts=(*map(rollout_of, said), rollout_of(said[0], finish="length")))
    for credit, expected in (("all", [1.0, 0.0, 0.0, 0.0]), ("share", [1.0, 0.5, 0.0, 0.0])):
        with closing(ExecutionReward(credit=credit)) as reward:
            for one in group.rollouts:
                reward.start(group.problem, one)
            [rewards] = reward.score([group])
        assert [one.value for one in rewards] == expected
        assert [one.cut_off for one in rewards] == [False, False, False, True]
        assert "1 of 2 tests passed" in rewards[1].judgements[0].rationale
    assert ExecutionVerifier().verdicts([group.problem] * 3, said) == [True, False, False]
    assert [ExecutionVerifier().explain(group.problem, one) for one in said] == [
        "2 of 2 tests passed",
        "1 of 2 tests passed; test 2: wrong",
        "0 of 2 tests passed; test 1: not run (no program in the response)",
    ]


@needs_sandbox
def test_the_same_program_runs_once() -> None:
    with closing(Runner(Bubblewrap(), LIMITS, workers=2)) as runner:
        first = runner.start("print(3)", SUMS)
        assert runner.start("print(3)", SUMS) is first
        assert runner.start("print(4)", SUMS) is not first
        first.result()
        runner.forget()
        assert runner.start("print(3)", SUMS) is not first


def test_what_a_reward_has_run_a_verifier_does_not_run_again() -> None:
    memory, ran = Memory(size=1), []

    class Counting(NoSandbox):
        def command(self, *arguments: object) -> Command:
            ran.append(arguments)
            return super().command(*arguments)  # type: ignore[arg-type]

    for every, program, count in (
        (True, "print(3)", 2),
        (False, "print(3)", 2),
        (False, "print(9)", 3),
        (True, "print(3)", 5),
    ):
        with closing(Runner(Counting(), LIMITS, workers=1, every=every, memory=memory)) as runner:
            assert not runner.start(program, SUMS).result().passed
        assert len(ran) == count


@needs_sandbox
def test_a_trainer_that_is_killed_leaves_nothing_running(tmp_path: Path) -> None:
    script = """
from exprl.execution import Bubblewrap
from exprl.execution.limits import Limits
from exprl.execution.runner import Memory, Runner
from exprl.execution.tests import StdioCase, StdioTests
runner = Runner(Bubblewrap(), Limits(time=1000.0), workers=1)
code = "import os, time\\nprint(flush=True)\\nos.fork() or os.setsid()\\ntime.sleep(1000)"
runner.start(code, StdioTests(cases=(StdioCase(input="", output="never"),)))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as trainer:
        until(lambda: len(processes_below(trainer.pid)) >= 4)
        below = processes_below(trainer.pid)
        trainer.kill()
    assert below
    until(lambda: not any(runs(pid) for pid in below))


def processes_below(pid: int) -> list[int]:
    return [found for child in children_of(pid) for found in (child, *processes_below(child))]


def runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@contextmanager
def open_files(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_more_run_at_once_than_open_files_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exprl.execution.runner._cores", lambda: 192)
    with open_files(1024), closing(Runner(NoSandbox(), LIMITS)) as runner:
        assert runner._pool._max_workers == 25
        ExecutionVerifier.preflight(ExecutionVerifier.Config(workers=25))
        for kind in (ExecutionVerifier, ExecutionReward):
            with pytest.raises(ExecutionError, match=r"workers: 26 programs .* at most 25 .*ulimit -n"):
                kind.preflight(kind.Config(workers=26))


@contextmanager
def free_files(count: int) -> Iterator[None]:
    """No more files than these can be opened."""
    taken = []
    with open_files(64 + len(os.listdir("/proc/self/fd"))):  # noqa: PTH208
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        while taken and count:
            os.close(taken.pop())
            count -= 1
        try:
            yield
        finally:
            for descriptor in taken:
                os.close(descriptor)


@pytest.mark.parametrize("tests", [SUMS, CALLS, ADD])
def test_a_program_that_there_are_no_files_for_is_not_judged(tests: Tests) -> None:
    """It is not wrong, and no other error is met, whichever file is the one too many."""
    sandbox, refused = NoSandbox(), list[str]()
    for count in range(FILES_EACH + 1):
        with free_files(count):
            try:
                passed = judge(
                    "def add(a, b): return a + b\nif __name__ == '__main__': print(9)", tests, bench(sandbox)
                )
                break
            except ExecutionError as error:
                refused.append(str(error))
    assert passed.verdicts[-1] == "passed"
    assert len(refused) > 4
    assert all("ulimit -n" in said for said in refused)


@needs_sandbox
def test_closing_ends_what_runs() -> None:
    runner = Runner(Bubblewrap(), Limits(time=10_000.0), workers=1)
    running, waiting = runner.start("while True: pass", SUMS), runner.start("print(3)", SUMS)
    until(running.running)
    runner.close()
    assert isinstance(running.exception(), StoppedError)
    assert waiting.cancelled()


@needs_sandbox
def test_packages_are_shown_where_asked() -> None:
    code, tests = "import numpy\nprint(numpy.arange(3).sum())", StdioTests(cases=(StdioCase(input="", output="3"),))
    roomy = {"time": 5.0, "memory": 2048}
    assert judge(code, tests, bench(Bubblewrap(), **roomy)).verdicts == ("crashed",)
    assert judge(code, tests, bench(Bubblewrap(packages=True), **roomy)).passed


@needs_sandbox
def test_functions_may_return_what_is_numpys() -> None:
    code = "import numpy\ndef f(n): return [numpy.int64(n), numpy.arange(n) > 0, numpy.float32(n) / 2]"
    tests = CallTests(entry_point="f", cases=(CallCase(args=(2,), expected=[2, [False, True], 1.0]),))
    assert judge(code, tests, bench(Bubblewrap(packages=True), time=5.0, memory=2048)).passed


@needs_sandbox
@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.stdin = open('/dev/stdin')\nprint(sum(map(int, input().split())))",
        "print(sum(map(int, open('/dev/fd/0', 'rb').read().split())), file=open('/dev/stdout', 'w'))",
        "import os\nprint(sum(map(int, os.read(os.open('/dev/stdin', os.O_RDONLY), 99).split())))",
        "import pathlib\nprint(sum(map(int, pathlib.Path('/proc/self/fd/0').read_text().split())))",
        "with open(file=b'/dev/stdin', mode='r') as f: a = f.read()\nopen('x', 'w').write(a)\n"
        "print(sum(map(int, open('x').read().split())))",
    ],
)
def test_programs_may_open_their_streams_by_name(code: str) -> None:
    assert judge(code, SUMS, bench(Bubblewrap())).verdicts == ("passed", "passed")


@needs_sandbox
def test_values_pass_as_deep_as_tests_may_be() -> None:
    deep = nested(199)
    for value in (deep, {"a": deep}):
        tests = parse_tests(
            json.dumps({"form": "call", "entry_point": "f", "cases": [{"args": [deep], "expected": value}]})
        )
        code = f"def f(value): return {'value' if value is deep else '{1: value, 2: value}[1] and dict(a=value)'}"
        assert judge(code, tests, bench(Bubblewrap())).passed
    test = "value = 1\nfor _ in range(5000): value = [value]\ndef check(f): f(value)"
    with pytest.raises(ExecutionError, match="nested too deep"):
        judge("def f(value): return value", ProgramTests(entry_point="f", test=test), bench(Bubblewrap()))


@needs_sandbox
def test_the_least_memory_that_tests_may_state_is_enough_for_python() -> None:
    for tests in (SUMS, CALLS, ADD):
        code = "print(sum(map(int, input().split())))" if tests is SUMS else "def add(a, b): return a + b"
        assert judge(code, replace(tests, memory=LEAST_MEMORY), bench(Bubblewrap())).passed
    with pytest.raises(ExecutionError, match=r"a sandbox does not start: .*1 MiB of memory"):
        judge("print(3)", replace(SUMS, memory=1), bench(Bubblewrap()))


def test_an_outcome_says_where_it_failed() -> None:
    outcome = Outcome(verdicts=("passed", "time", "not run"))
    assert str(outcome) == "1 of 3 tests passed; test 2: time"
    unasked = judge(None, SUMS, bench(NoSandbox()))
    assert str(unasked) == "0 of 2 tests passed; test 1: not run (no program in the response)"
    assert not outcome.passed
    assert Outcome(verdicts=()).share == 0.0
    assert not Outcome(verdicts=()).passed


def test_no_script_within_knows_of_exprl() -> None:
    scripts = Path(values.__file__).parent.glob("*.py")
    assert not any("exprl." in line for path in scripts for line in path.read_text().splitlines() if "import" in line)
