"""Multiple choice: the option that a response commits to, by its letter or its text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated

from exprl.component import option
from exprl.config.ranges import Form
from exprl.errors import DataError
from exprl.registry import VERIFIERS
from exprl.text.thinking import without_thinking
from exprl.types import Problem
from exprl.verifiers.answers import Stated, stated_answers
from exprl.verifiers.base import Verifier, read_as
from exprl.verifiers.gold import gold_answer
from exprl.verifiers.notation import folded
from exprl.verifiers.options import named, options_of
from exprl.verifiers.statements import without_hedges

_MARKS = re.compile(r"\\(?:text|math)(?:bf|rm|it|sf)?\b|\\(?:boxed|fbox)\b|\\[\[\]()]|[*_`${}#]")

_QUOTED = re.compile(r"[\"“'‘]([A-Z])[\"”'’]")
_FORMULA = re.compile(
    r"\s*(?:[\^*×]|!(?!\s*(?:$|[A-Z]))|\\(?:times|cdot|cup|cap|to|prime)(?![A-Za-z]))|[-‐‑][A-Za-z]{2,}"
)  # A^2, A-level

_CONCLUDES = re.compile(r"(?i)^(?:(?:so|therefore|thus|hence|then|finally|clearly)\b,?\s+)*")
_CALLED_RIGHT = r"(?:(?:the\s+)?(?:correct|right|best)(?:\s+(?:answer|option|choice|one))?|the\s+(?:answer|one))"

_GOES_ON = re.compile(  # "A triangle": the letter is the first word of an answer in words
    r"[ \t]+(?!(?:and|or|is|was|because|since|as|for|with|from|by|which|where|so|due|i\.e|that|the|rather\s+than"
    r"|instead\s+of)\b)[A-Za-z]"
)


@VERIFIERS.register("choice")
class ChoiceVerifier(Verifier):
    r"""Right if the option that the response states last, by its letter or its text, is the problem's.

    The options are read from the question, where they stand as `A. ...`, `(A) ...` or `A) ...`; where it lists none,
    letters count alone. The later of `\boxed{C}` and "answer is (C)" or "Answer: C. ..." counts, or else a last line
    that is the option alone. Naming a second choice beside it ("A or C", "A, B, C, D") is no answer. A small letter
    counts in brackets only, and a capital that a sentence goes on from ("the answer is A triangle") states no choice.
    Neither does a letter with the text of another option.
    """

    letters: Annotated[str, Form("[A-Z]+", "capital letters, for example ABCD")] = option(
        default="ABCDEFGHIJ", help="the letters of the choices, in capitals"
    )

    def setup(self) -> None:
        """Compile what finds a letter."""
        letters = self.letters
        bracketed = rf"[(\[]\s*([{letters}{letters.lower()}])\s*[)\]]"
        self._letter = re.compile(rf"(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:{bracketed}|([{letters}])(?![\w'’]))")
        self._says = re.compile(
            rf"(?<!\w)(?:(?:[Ii]t|[Tt]h(?:is|at))\s+(?:is|must\s+be)\s+{self._letter.pattern}"
            rf"|{self._letter.pattern}\s+is\s+{_CALLED_RIGHT})\s*[.!]?"
        )
        separator = r"[\s,;/&|+().\[\]–—-]"
        joint = r"(?:(?:or|and|to|through|maybe|perhaps|possibly|also|plus|as\s+well\s+as|with)\b\s*)"
        self._second = re.compile(
            rf"{separator}*{joint}*(?:{bracketed}|[{letters}](?=\s*(?:$|[,;/&|+).\]–—-]|or\b|and\b)))"
            rf"|[^.\n]*(?<![\w'])[{letters}]\s+(?:is|are|was|would\s+be|could\s+be|might\s+be|may\s+be|seems|works)\s+"
            r"(?:also\b|equally\b|(?:as\s+well|too)\s*(?:$|[.,;])|right\b|correct\b|true\b|possible\b)"
        )

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `DataError` for a problem whose answer is missing or is no option."""
        super().check(problems)
        if unreadable := self.unreadable(problems):
            raise self.refusal(unreadable, problems)

    def refusal(self, unreadable: Sequence[str], problems: Sequence[Problem]) -> DataError:
        """The error about problems whose answer is no option, nor a solution that ends in one."""
        return DataError(
            f"verifier 'choice' needs one letter of {self.letters} as the answer, or the text of an option that the "
            "question lists (a letter must be among those listed), for example C or (C), or a solution that ends in "
            f"it (`#### C`, \\boxed{{C}}); {len(unreadable)} of {len(problems)} problems have another (first: "
            f"{unreadable[0]!r}). Choose another verifier.name, or change the answers."
        )

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the stated option is the problem's; False without one."""
        gold = self.gold(problem)
        return gold is not None and self._stated(response, self._options(problem)) == gold

    def explain(self, problem: Problem, response: str) -> str:
        """The answer that is compared."""
        return read_as(self._stated(response, self._options(problem)))

    def gold(self, problem: Problem) -> str | None:
        """The letter of the option that the problem's answer is or ends in; one that the question lists, if it does."""
        answer = problem.scaffold.answer
        place = gold_answer(answer.reveal()) if answer is not None else None
        if place is None:
            return None
        options = self._options(problem)
        letter = self._gold_letter(place, options)
        return letter if not options or letter in options else None

    def _gold_letter(self, place: Stated, options: Mapping[str, str]) -> str | None:
        if place.kind == "statement":
            return self._chosen(place.text, options)
        return self._alone(place.text) or self._with_text(place.text, options) or named(place.text, options, whole=True)

    def _options(self, problem: Problem) -> dict[str, str]:
        return {letter: text for letter, text in _options_of(problem.question.text).items() if letter in self.letters}

    def _stated(self, response: str, options: Mapping[str, str]) -> str | None:
        for place in stated_answers(response):
            if place.kind == "line":
                alone = self._alone(place.text) or self._with_text(place.text, options)
                return alone or self._said(place.text, response) or named(place.text, options, whole=True)
            statement = without_hedges(_marked_off(place.text))
            if self._letter.match(statement) or named(statement, options):
                return self._chosen(place.text, options)
        return None

    def _chosen(self, statement: str, options: Mapping[str, str]) -> str | None:
        """The option that a statement begins with and chooses; None for another beginning, or a second choice."""
        cleaned = without_hedges(_marked_off(statement))
        match = self._letter.match(cleaned)
        if match is None:
            return named(cleaned, options)
        rest = cleaned[match.end() :]
        is_choice = not _FORMULA.match(rest) and (match[1] or not _GOES_ON.match(rest))
        letter = _capital(match)
        return letter if is_choice and not self._second.match(rest) and _fits(letter, rest, options) else None

    def _with_text(self, line: str, options: Mapping[str, str]) -> str | None:
        """The letter of a line that is an option as the question has it, letter and text."""
        cleaned = _marked_off(line)
        match = self._letter.match(cleaned)
        text = _AFTER_LETTER.sub("", cleaned[match.end() :]) if match else ""
        return _capital(match) if match and text and named(text, options, whole=True) == _capital(match) else None

    def _said(self, line: str, response: str) -> str | None:
        """The letter of a line that only says which it is ("It is C.", "Option C is right."), if no other is said."""
        if not self._says.fullmatch(_CONCLUDES.sub("", _marked_off(line))):
            return None
        said = _marked_off(without_thinking(response) or "")
        letters = {next(filter(None, match.groups())).upper() for match in self._says.finditer(said)}
        return letters.pop() if len(letters) == 1 else None

    def _alone(self, text: str) -> str | None:
        """The letter if `text` is nothing else, brackets, marks and a full stop aside."""
        bare = _marked_off(text).rstrip(".").strip()
        opened = f"({bare}" if bare.endswith(")") and "(" not in bare else bare  # b)
        match = self._letter.fullmatch(opened)
        return _capital(match) if match else None


_AFTER_LETTER = re.compile(r"^[\s.):,–-]+")
_options_of = lru_cache(maxsize=1024)(options_of)
"""A problem's rollouts follow each other."""


def _fits(letter: str, rest: str, options: Mapping[str, str]) -> bool:
    """Whether what follows a letter does not begin with the text of another option: "B. Venus" chooses two."""
    said = named(_AFTER_LETTER.sub("", rest), options)
    return said is None or said == letter


def _marked_off(text: str) -> str:
    return _QUOTED.sub(r"\1", _MARKS.sub("", folded(text))).strip()


def _capital(match: re.Match[str]) -> str:
    return (match[1] or match[2]).upper()
