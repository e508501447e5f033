"""Does the question give the solution away? Columns that are swapped, and references that were appended."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from exprl.errors import DataError
from exprl.leakage import holds_most

log = logging.getLogger(__name__)

REFUSED_SHARE = 0.5
NAMED = 3
"""Rows that a message names."""


@dataclass(frozen=True)
class Exposure:
    """Rows of a source whose question has what the policy must not see, by name, and how many rows there are.

    Attributes:
        rows: all rows.
        reference: those whose question holds most of the reference.
        answer: those whose question states the final answer as a solution does, while the reference does not have it.
    """

    rows: int
    reference: Sequence[str]
    answer: Sequence[str]

    def report(self, source: str) -> None:
        """Warn of any such row.

        Raises:
            DataError: most rows are such: nothing would be hidden.
        """
        for what, found in (("most of the reference", self.reference), ("the final answer", self.answer)):
            if not found:
                continue
            more = ", …" if len(found) > NAMED else ""
            message = (
                f"{source}: the question holds {what} in {len(found)} of {self.rows} rows "
                f"({100 * len(found) / self.rows:.0f} %: {', '.join(found[:NAMED])}{more})"
            )
            if len(found) > REFUSED_SHARE * self.rows:
                raise DataError(
                    f"{message}, so the policy would be shown it. Are columns.question and columns.reference swapped, "
                    "or solutions appended to the questions? Set columns.question to the bare problems."
                )
            log.warning("%s; the policy is shown it there. Repair these rows or leave them out.", message)


def exposes_reference(question: str, reference: str | None) -> bool:
    """Whether the question holds most of the reference."""
    return reference is not None and holds_most(question, reference)


def exposes_answer(question: str, reference: str | None, answer: str | None) -> bool:
    """Whether the question ends in the answer as solutions do and the reference, which should have it, does not.

    A problem often has its answer in it, as one of its numbers or choices; that is no sign of anything.

    >>> exposes_answer("3 + 4 is 7. #### 7", "What is 3 + 4?", "7")
    True
    >>> exposes_answer("What is 3 + 4? A) 6 B) 7", "It is one more than 3 + 3, so 7", "7")
    False
    """
    if reference is None or not answer or answer in reference or answer not in question:
        return False
    return _STATED.search(question.replace(answer, _MARK)) is not None


_MARK = "\x00"
_STATED = re.compile(rf"(?:####|\\boxed\s*\{{|\banswer\b(?:\s+is)?\s*:?)[\s$*{{(]*{_MARK}[^\w{_MARK}]*$", re.IGNORECASE)
