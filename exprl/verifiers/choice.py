"""Multiple choice: the letter that a response commits to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from exprl.component import Component, option
from exprl.config.ranges import Form
from exprl.errors import DataError
from exprl.registry import VERIFIERS
from exprl.types import Problem
from exprl.verifiers.answers import last_boxed, last_line, last_statement
from exprl.verifiers.base import Verifier

_MARKS = re.compile(r"\\(?:text|math)(?:bf|rm|it|sf)?\b|\\boxed\b|[*_`${}]")


@VERIFIERS.register("choice")
class ChoiceVerifier(Verifier):
    r"""Right if the response's last stated letter is the problem's.

    The later of `\boxed{C}` and "answer is (C)" or "Answer: C. ..." counts, or else a last line that is the letter
    alone. Naming a second choice beside it ("A or C", "A, B, C, D") is no answer. A small letter counts in brackets
    only: "the answer is a triangle" states no choice.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        """Which letters there are."""

        letters: Annotated[str, Form("[A-Z]+", "capital letters, for example ABCD")] = option(
            "ABCDEFGHIJ", "the letters of the choices, in capitals"
        )

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        letters = self.config.letters
        bracketed = rf"[(\[]\s*([{letters}{letters.lower()}])\s*[)\]]"
        self._letter = re.compile(rf"(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:{bracketed}|([{letters}])(?![\w'’]))")
        separator = r"[\s,;/&|+).\]]"
        self._second = re.compile(
            rf"{separator}*(?:(?:or|and|to)\b\s*)?(?:{bracketed}|[{letters}](?=\s*(?:$|[,;/&|+).\]]|or\b|and\b)))"
        )

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `DataError` for a problem whose answer is missing or is not one letter."""
        super().check(problems)
        for problem in problems:
            if self._gold(problem) is None:
                raise DataError(
                    f"problem {problem.id!r}: verifier 'choice' needs one letter of {self.config.letters} as the "
                    "answer, for example C or (C). Choose another verifier or change the answer."
                )

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the stated letter is the problem's; False without one."""
        gold = self._gold(problem)
        return gold is not None and self._stated(response) == gold

    def _gold(self, problem: Problem) -> str | None:
        answer = problem.scaffold.answer
        return self._alone(answer.reveal()) if answer is not None else None

    def _stated(self, response: str) -> str | None:
        places = [place for place in (last_statement(response), last_boxed(response)) if place is not None]
        for _, stated in sorted(places, reverse=True):
            cleaned = _MARKS.sub("", stated).strip()
            if match := self._letter.match(cleaned):
                several = self._second.match(cleaned[match.end() :])
                return None if several else _capital(match)
        return self._alone(last_line(response))

    def _alone(self, text: str) -> str | None:
        """The letter if `text` is nothing else, brackets, marks and a full stop aside."""
        match = self._letter.fullmatch(_MARKS.sub("", text).strip().rstrip(".").strip())
        return _capital(match) if match else None


def _capital(match: re.Match[str]) -> str:
    return (match[1] or match[2]).upper()
