"""Programs that pass all their tests."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from exprl.execution.answer import program_of
from exprl.execution.options import Executing
from exprl.execution.runner import outcome_of
from exprl.execution.tests import read_tests
from exprl.registry import VERIFIERS
from exprl.types import Problem
from exprl.verifiers.base import Verifier


@VERIFIERS.register("execution")
class ExecutionVerifier(Executing, Verifier):
    """Right if the program in the response passes all the problem's tests, run in a sandbox.

    A response without a program is wrong. Where a sandbox cannot be made, or a test program is itself
    at fault, nothing is known: `ExecutionError`, which names the problem.
    """

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether all tests pass."""
        return self.verify_batch([problem], [response])[0]

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
        """`verify` of each pair, `workers` at once."""
        with closing(self.runner(every=False)) as runner:
            started = []
            for problem, response in zip(problems, responses, strict=True):
                tests = read_tests(problem)
                started.append(runner.start(program_of(response, tests), tests))
            return [outcome_of(problem, future).passed for problem, future in zip(problems, started, strict=True)]

    def explain(self, problem: Problem, response: str) -> str:
        """How many tests passed, and how the first one failed; what has been run before is not run again."""
        tests = read_tests(problem)
        with closing(self.runner(every=False)) as runner:
            return str(outcome_of(problem, runner.start(program_of(response, tests), tests)))

    def knows(self, problem: Problem) -> bool:
        """Whether it has tests."""
        return problem.scaffold.tests is not None

    def check(self, problems: Sequence[Problem]) -> None:
        """Every problem needs tests that can be read; raises `DataError` naming the first that has none."""
        for problem in problems:
            read_tests(problem)

    def gold(self, problem: Problem) -> str | None:
        """None: what is right is said by tests, not by an answer."""
        del problem
        return None

    def unreadable(self, problems: Sequence[Problem]) -> list[str]:
        """None of them: `check` refuses tests that cannot be read."""
        del problems
        return []
