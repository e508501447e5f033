"""The verifier contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from exprl.checks.contracts import check_verdicts
from exprl.component import Component, title_of
from exprl.errors import ColumnError, DataError
from exprl.types import Problem

REFUSED_SHARE = 0.5
"""Of the problems; where more have an answer that cannot be read, the wrong column was named."""


def read_as(stated: str | None) -> str:
    """In words what was read in a response.

    >>> read_as("B"), read_as(None)
    ("the answer 'B'", 'no answer')
    """
    return f"the answer {stated!r}" if stated else "no answer"


class Verifier(Component):
    """Decides whether a response's final answer is right."""

    registered_family: ClassVar[str] = "verifier"

    @abstractmethod
    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the final answer in `response` is the problem's; a response without an answer is wrong."""

    def explain(self, problem: Problem, response: str) -> str:
        """What a verdict rests on, in words: the answer that was read, or how the tests went; "" where it does not say.

        Nothing of the problem's own answer or tests is in it.
        """
        del problem, response
        return ""

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
        """`verify` of each problem with the response at its place; a verifier may do several at once."""
        return [self.verify(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def verdicts(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
        """`verify_batch`, seen to give True or False for each response; raises `ContractError` naming the verifier."""
        return check_verdicts(len(responses), self.verify_batch(problems, responses), f"verifier {title_of(self)}")

    def knows(self, problem: Problem) -> bool:
        """Whether the problem has what responses are compared with: a final answer, unless a verifier needs another."""
        return problem.scaffold.answer is not None

    def check(self, problems: Sequence[Problem]) -> None:
        """Before a run starts.

        Raises:
            DataError: a problem has no final answer, or most have a text in which none can be read, or a placeholder.
        """
        for problem in problems:
            if not self.knows(problem):
                raise ColumnError(
                    f"problem {problem.id!r} has no final answer, but verifier {title_of(self)} needs one.",
                    ["columns.answer=COLUMN"],
                    " for the column that holds it, or leave the row out.",
                )
        unreadable = self.unreadable(problems)
        if len(unreadable) > REFUSED_SHARE * len(problems):
            raise self.refusal(unreadable, problems)

    def gold(self, problem: Problem) -> str | None:
        """The final answer as it is compared; None where the problem has none, or a text in which none can be read."""
        answer = problem.scaffold.answer
        return answer.reveal() if answer is not None else None

    def unreadable(self, problems: Sequence[Problem]) -> list[str]:
        """Ids of the problems whose answer is a placeholder or cannot be read: no response to them is ever right."""
        return [p.id for p in problems if p.scaffold.answer is not None and self.gold(p) is None]

    def refusal(self, unreadable: Sequence[str], problems: Sequence[Problem]) -> DataError:
        """The error about them, which is a warning where they are few; nothing of the answers is shown."""
        return ColumnError(
            f"verifier {title_of(self)}: in {len(unreadable)} of {len(problems)} problems (first: "
            f"{unreadable[0]!r}) the answer is a placeholder or a text in which no final answer can be read: no "
            "response to them is ever right.",
            ["columns.answer=COLUMN"],
            r" for the column with the bare answer, end these texts in `#### answer` or \boxed{answer}, or choose "
            "another verifier.name.",
        )
