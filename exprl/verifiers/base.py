"""The verifier contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from exprl.component import Component
from exprl.errors import DataError
from exprl.types import Problem


class Verifier(Component):
    """Decides whether a response's final answer is right."""

    @abstractmethod
    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the final answer in `response` is the problem's; a response without an answer is wrong."""

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
        """`verify` of each problem with the response at its place; a verifier may do several at once."""
        return [self.verify(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `DataError`, naming the first problem without a final answer, before a run starts."""
        for problem in problems:
            if problem.scaffold.answer is None:
                raise DataError(
                    f"problem {problem.id!r} has no final answer, but verifier {self.registered_name!r} needs one."
                )
