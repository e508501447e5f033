"""Multiple choice: the letter that a response commits to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from exprl.component import option
from exprl.config.ranges import Form
from exprl.errors import DataError
from exprl.registry import VERIFIERS
from exprl.types import Problem
from exprl.verifiers.answers import stated_answers
from exprl.verifiers.base import Verifier
from exprl.verifiers.gold import gold_answer
from exprl.verifiers.notation import folded
from exprl.verifiers.statements import without_hedges

_MARKS = re.compile(r"\\(?:text|math)(?:bf|rm|it|sf)?\b|\\(?:boxed|fbox)\b|\\[\[\]()]|[*_`${}#]")

_FORMULA = re.compile(r"\s*(?:[\^!*×]|\\(?:times|cdot|cup|cap|to|prime)(?![A-Za-z]))|[-‐‑][A-Za-z]{2,}")  # A^2, A-level

_GOES_ON = re.compile(  # "A triangle": the letter is the first word of an answer in words
    r"[ \t]+(?!(?:and|or|is|was|because|since|as|for|with|from|by|which|where|so|due|i\.e|that|the)\b)[A-Za-z]"
)


@VERIFIERS.register("choice")
class ChoiceVerifier(Verifier):
    r"""Right if the response's last stated letter is the problem's.

    The later of `\boxed{C}` and "answer is (C)" or "Answer: C. ..." counts, or else a last line that is the letter
    alone. Naming a second choice beside it ("A or C", "A, B, C, D") is no answer. A small letter counts in brackets
    only, and a capital that a sentence goes on from ("the answer is A triangle") states no choice.
    """

    letters: Annotated[str, Form("[A-Z]+", "capital letters, for example ABCD")] = option(
        default="ABCDEFGHIJ", help="the letters of the choices, in capitals"
    )

    def setup(self) -> None:
        """Compile what finds a letter."""
        letters = self.letters
        bracketed = rf"[(\[]\s*([{letters}{letters.lower()}])\s*[)\]]"
        self._letter = re.compile(rf"(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:{bracketed}|([{letters}])(?![\w'’]))")
        separator = r"[\s,;/&|+().\[\]–—-]"
        joint = r"(?:(?:or|and|to|through|maybe|perhaps|possibly|also|plus|as\s+well\s+as|with)\b\s*)"
        self._second = re.compile(
            rf"{separator}*{joint}*(?:{bracketed}|[{letters}](?=\s*(?:$|[,;/&|+).\]–—-]|or\b|and\b)))"
            rf"|[^.\n]*(?<![\w'])[{letters}]\s+(?:is|are|was|would\s+be|could\s+be|might\s+be|may\s+be|seems|works)\s+"
            r"(?:also\b|equally\b|(?:as\s+well|too)\s*(?:$|[.,;])|right\b|correct\b|true\b|possible\b)"
        )

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `DataError` for a problem whose answer is missing or is not one letter."""
        super().check(problems)
        if unreadable := self.unreadable(problems):
            raise DataError(self.told(unreadable, problems))

    def told(self, unreadable: Sequence[str], problems: Sequence[Problem]) -> str:
        """What to do about problems whose answer is no letter, nor a solution that ends in one."""
        return (
            f"verifier 'choice' needs one letter of {self.letters} as the answer, for example C or (C), or a "
            f"solution that ends in it (`#### C`, \\boxed{{C}}); {len(unreadable)} of {len(problems)} problems have "
            f"another (first: {unreadable[0]!r}). Choose another verifier.name, or change the answers."
        )

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the stated letter is the problem's; False without one."""
        gold = self.gold(problem)
        return gold is not None and self._stated(response) == gold

    def gold(self, problem: Problem) -> str | None:
        """The letter that the problem's answer is or ends in."""
        answer = problem.scaffold.answer
        place = gold_answer(answer.reveal()) if answer is not None else None
        if place is None:
            return None
        return self._chosen(place.text) if place.kind == "statement" else self._alone(place.text)

    def _stated(self, response: str) -> str | None:
        for place in stated_answers(response):
            if place.kind == "line":
                return self._alone(place.text)
            if self._letter.match(without_hedges(_marked_off(place.text))):
                return self._chosen(place.text)
        return None

    def _chosen(self, statement: str) -> str | None:
        """The letter that a statement begins with and chooses; None for another beginning, or a second choice."""
        cleaned = without_hedges(_marked_off(statement))
        match = self._letter.match(cleaned)
        if match is None:
            return None
        rest = cleaned[match.end() :]
        is_choice = not _FORMULA.match(rest) and (match[1] or not _GOES_ON.match(rest))
        return _capital(match) if is_choice and not self._second.match(rest) else None

    def _alone(self, text: str) -> str | None:
        """The letter if `text` is nothing else, brackets, marks and a full stop aside."""
        match = self._letter.fullmatch(_marked_off(text).rstrip(".").strip())
        return _capital(match) if match else None


def _marked_off(text: str) -> str:
    return _MARKS.sub("", folded(text)).strip()


def _capital(match: re.Match[str]) -> str:
    return (match[1] or match[2]).upper()
