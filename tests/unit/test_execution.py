"""Programs are run: for rewards and verifiers, many at once, within the machine's limits."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from exprl.errors import ExecutionError
from exprl.execution import Bubblewrap, NoSandbox
from exprl.execution.inside import values
from exprl.execution.judging import Outcome, judge
from exprl.execution.limits import Limits
from exprl.execution.memory import children_of
from exprl.execution.process import StoppedError
from exprl.execution.runner import FILES_EACH, Memory, Runner
from exprl.execution.sandboxes import Command
from exprl.execution.tests import (
    LEAST_MEMORY,
    CallCase,
    CallTests,
    ProgramTests,
    StdioCase,
    StdioTests,
    Tests,
    parse_tests,
)
from exprl.execution.verifier import ExecutionVerifier
from exprl.rewards.execution import ExecutionReward
from exprl.types import RolloutGroup
from tests.programs import ADD, CALLS, LIMITS, SUMS, bench, nested, problem
from tests.rollouts import rollout_of
from tests.sandboxes import needs_sandbox
from tests.waiting import until

ROOT = Path(__file__).parents[2]


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
