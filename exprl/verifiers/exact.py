"""Final answers compared as text."""

from __future__ import annotations

import re
from typing import Any

from exprl.component import option
from exprl.errors import ConfigError
from exprl.registry import VERIFIERS
from exprl.text.thinking import without_thinking
from exprl.types import Problem
from exprl.verifiers.answers import STATEMENT, last_line, last_match, stated_answers, without_marks
from exprl.verifiers.base import Verifier, read_as
from exprl.verifiers.gold import elements, gold_answer, is_placeholder, is_prose
from exprl.verifiers.notation import folded


@VERIFIERS.register("exact")
class ExactVerifier(Verifier):
    """Right if what the response states as its answer is the problem's answer, character for character.

    Only the last statement counts: an answer that merely occurs somewhere in the response, or in its `<think>` block,
    does not. Characters are compared as Unicode's normal forms, so that how an é or a digit is encoded, and what has
    no width, makes no difference.
    """

    pattern: str | None = option(
        default=STATEMENT,
        help='regular expression whose first group (or whole match) is the answer, last match; default: after "answer '
        'is" or "answer:", or a later box; null: the last line that is not blank',
    )
    strip: bool = option(
        default=True,
        help="ignore Markdown or LaTeX marks (* ` $) around, a full stop after, and how wide white space is",
    )
    ignore_case: bool = option(default=False, help="ignore the difference of capital and small letters")

    @classmethod
    def check_options(cls, config: Any) -> None:
        """The pattern must be a regular expression."""
        try:
            re.compile(config.pattern or "")
        except re.error as error:
            raise ConfigError(f"pattern: {config.pattern!r} is not a regular expression: {error}.") from error

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the stated answer equals the problem's; False without one."""
        gold, stated = self.gold(problem), self._stated(response)
        if gold is None or stated is None:
            return False
        stated = self._normal(stated)
        return bool(stated) and stated == self._normal(gold)

    def explain(self, problem: Problem, response: str) -> str:
        """The answer that is compared."""
        del problem
        return read_as(self._stated(response))

    def gold(self, problem: Problem) -> str | None:
        """The answer as the data set has it; with a pattern of exprl's own, what a solution given as answer ends in.

        There a placeholder (`None`, `N/A`, `?`) is none, either; where it may be true, use a pattern of your own.
        """
        answer = super().gold(problem)
        if answer is None or self.pattern not in (STATEMENT, None):
            return answer
        # A list may be what is asked for, character for character, and a last line may be a box.
        if elements(answer) or (self.pattern is None and not is_prose(answer)):
            return None if is_placeholder(answer) else answer
        place = gold_answer(answer)
        return place.text if place is not None else None

    def _stated(self, response: str) -> str | None:
        if self.pattern == STATEMENT:
            return next((place.text for place in stated_answers(response) if place.kind != "line"), None)
        said = without_thinking(response)
        if said is None or self.pattern is None:
            return said and last_line(said)
        match = last_match(re.compile(self.pattern), said)
        if match is None:
            return None
        return match[1] if match.re.groups else match[0]

    def _normal(self, answer: str) -> str:
        answer = folded(answer)
        if self.strip:
            answer = without_marks(" ".join(answer.split()))
        return answer.casefold() if self.ignore_case else answer
