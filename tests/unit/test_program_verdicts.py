"""What running a program says of it, and what it does not."""

from __future__ import annotations

import logging
from contextlib import closing

import pytest

from exprl.errors import ExecutionError
from exprl.execution import Bubblewrap, NoSandbox, bubblewrap
from exprl.execution.judging import judge
from exprl.execution.sandboxes import Command
from exprl.execution.seccomp import filter_program
from exprl.execution.tests import (
    ProgramTests,
    Tests,
)
from exprl.execution.verifier import ExecutionVerifier
from exprl.rewards.execution import ExecutionReward
from exprl.types import RolloutGroup
from tests.programs import ADD, CALLS, SUMS, bench, fenced, problem
from tests.rollouts import rollout_of
from tests.sandboxes import needs_sandbox


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
