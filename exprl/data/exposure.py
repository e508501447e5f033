"""Does the question give the solution away? Columns that are swapped, and references that were appended."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from exprl.data.leakage import find_run, gist, holds_most, undressed
from exprl.errors import DataError

log = logging.getLogger(__name__)

REFUSED_SHARE = 0.5
NAMED = 3
"""Rows that a message names."""
SHORT = range(3, 8)
"""Words and signs of a reference, such as `3 + 1 = 4`, that can be part of the task itself: "Show that 3 + 1 = 4"."""


class Sign(Enum):
    """What a question holds that the policy must not see."""

    REFERENCE = "most of the reference"
    SWAPPED = "a solution, and the reference asks,"
    ANSWER = "the final answer"
    SHORT_REFERENCE = "all of a short reference"

    @property
    def may_be_the_task(self) -> bool:
        """Whether good rows can look like that, so that most of them may."""
        return self is Sign.SHORT_REFERENCE


@dataclass(frozen=True)
class Exposure:
    """The rows of a source whose question has what the policy must not see, by name, and how many rows there are."""

    rows: int
    found: Mapping[Sign, Sequence[str]]

    def report(self, source: str) -> None:
        """Warn of any such row.

        Raises:
            DataError: most rows are such: nothing would be hidden.
        """
        found = {sign: rows for sign, rows in self.found.items() if rows}
        sure = [sign for sign in found if not sign.may_be_the_task]
        if sum(len(found[sign]) for sign in sure) > REFUSED_SHARE * self.rows:
            told = ", and ".join(map(self._told, sure))
            raise DataError(
                f"{source}: the question holds {told}, so the policy would be shown it. "
                "Are columns.question and columns.reference swapped, or solutions appended to the questions? "
                "Set columns.question to the bare problems."
            )
        for sign in found:
            hint = " unless it is what the task asks to show" if sign.may_be_the_task else ""
            log.warning(
                "%s: the question holds %s; the policy is shown it there. Repair these rows or leave them out%s.",
                source,
                self._told(sign),
                hint,
            )

    def _told(self, sign: Sign) -> str:
        rows = self.found[sign]
        more = ", …" if len(rows) > NAMED else ""
        share = 100 * len(rows) / self.rows
        return f"{sign.value} in {len(rows)} of {self.rows} rows ({share:.0f} %: {', '.join(rows[:NAMED])}{more})"


def exposed(question: str, reference: str | None, answer: str | None) -> Sign | None:
    """What the question gives away, if anything.

    >>> exposed("Add 3 and 1. Solution: 3+1=4", "3+1=4", "4"), exposed("Show that 3+1=4.", "3+1=4", None)
    (<Sign.REFERENCE: 'most of the reference'>, <Sign.SHORT_REFERENCE: 'all of a short reference'>)
    >>> exposed("3+3 = 6, thus x=6.", "What is 3 plus 3?", None)
    <Sign.SWAPPED: 'a solution, and the reference asks,'>
    """
    if reference is None:
        return None
    if holds_most(question, reference):
        return Sign.REFERENCE
    if exposes_answer(question, answer):
        return Sign.ANSWER
    if _swapped(question, reference, answer):
        return Sign.SWAPPED
    return _holds_all(question, reference)


def _holds_all(question: str, reference: str) -> Sign | None:
    """A short reference counts as appended where the question ends in it and says what it is."""
    asked, solution = gist(question), gist(reference)
    start = find_run(solution, asked)
    if start is None or len(solution) < SHORT.start:
        return None
    appended = start + len(solution) == len(asked) and start > 0 and asked[start - 1] in _NAMES
    return Sign.REFERENCE if appended or len(solution) >= SHORT.stop else Sign.SHORT_REFERENCE


_NAMES = frozenset({"solution", "answer", "proof", "reference", "rationale", "explanation"})


def _swapped(question: str, reference: str, answer: str | None) -> bool:
    """Whether the reference asks for what the question, which asks nothing, concludes."""
    if _ASKS.search(question) or not _CONCLUDES.search(question):
        return False
    if _ENDS_IN_QUESTION.search(reference):
        return True
    begins = _BEGINS_TASK.match(reference) is not None
    return begins and answer is not None and answer in question and answer not in reference


_MARKS = "?\uff1f\u061f"
_TASK = (
    r"(?:find|compute|calculate|evaluate|determine|solve|prove|show|simplify|express|how|what|which|who|when|where)\b"
)
_ASKS = re.compile(rf"[{_MARKS}]|\b{_TASK}", re.IGNORECASE)
_BEGINS_TASK = re.compile(rf"\W*{_TASK}", re.IGNORECASE)
_ENDS_IN_QUESTION = re.compile(rf"[{_MARKS}][\s\"'$)\]}}*]*$")
_CONCLUDES = re.compile(r"=|\b(?:thus|so|hence|therefore|then|is|are|answer)\b", re.IGNORECASE)


def exposes_answer(question: str, answer: str | None) -> bool:
    """Whether the question ends in the answer as solutions do.

    A problem often has its answer in it, as one of its numbers or choices; that is no sign of anything.

    >>> exposes_answer("What is 3 + 4? #### 7", "7"), exposes_answer("What is 3 + 4? A) 6 B) 7", "7")
    (True, False)
    """
    if not answer:
        return False
    answers = filter(None, dict.fromkeys((answer, undressed(answer).strip(_AROUND))))
    questions = (html.unescape(question), undressed(question))  # a box is a sign, and what is in the way elsewhere
    return any(
        stated in asked and _STATED.search(asked.replace(stated, _MARK)) is not None
        for stated in answers
        for asked in questions
    )


_AROUND = " $*{}"
_MARK = "\x00"
_STATED = re.compile(
    rf"(?:####|\\boxed\s*\{{|\banswer\b(?:\s+is)?\s*:?)(?:[\s$*{{(]|\\[(\[])*{_MARK}[^\w{_MARK}]*$", re.IGNORECASE
)
