"""Numbers with units, compared as measurements are: in whatever unit, within a tolerance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from exprl.component import option
from exprl.config.ranges import Share
from exprl.registry import VERIFIERS
from exprl.types import Problem
from exprl.verifiers.answers import stated_answers, without_marks
from exprl.verifiers.base import Verifier, read_as
from exprl.verifiers.gold import gold_answer
from exprl.verifiers.notation import plain_latex
from exprl.verifiers.number_words import is_a_number
from exprl.verifiers.quantities import NO_UNIT, read_number
from exprl.verifiers.statements import begins_like_a_value, stated_value
from exprl.verifiers.units import Unit, read_unit, same_kind

Units = Literal["required", "optional", "ignored"]

LONGEST = 200
"""Characters of a quantity."""

_TEN = r"10\^\{[-+]?\d+\}"
_PART = r"\s*(?:\{\s*\d+\s*\}|\d)"
_NUMBER = re.compile(
    rf"[-+]?\s*(?:(?:\d+\s*)?\\frac{_PART}{_PART}|\d+\s*/\s*\d+(?!\.)"
    rf"|{_TEN}|(?:\d+\.?\d*|\.\d+)(?:\s*(?:\\times|\\cdot|\*)\s*{_TEN})?)(?![\d.])"
)
_WRITINGS = [
    (re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)"), r"\\times "),
    (re.compile(r"(?<![\d.])10\s*\^\s*(?:\{\s*([-+]?\d+)\s*\}|([-+]?\d+))"), r"10^{\1\2}"),  # 10^23 is not 10^{2}3
    (re.compile(r"^([-+]?\d+)\s+(\d{1,2})\s*/\s*(\d{1,3})(?![\d./^])"), r"\1\\frac{\2}{\3}"),
]
_MICRO = re.compile(r"\\mu(?![A-Za-z])\s*")
"""Replaced first: without styles, \\mu\\mathrm{F} is a command of another name."""
_NAME = (
    r"(?:\\(?!(?:frac|sqrt|ln|log|exp|sin|cos|tan|approx)(?![A-Za-z]))[A-Za-z]+|[^\W\d_]+|_\s*\{[^{}=]*\}|_\s*\w|[{}()|'\s]"
    r"|\^\s*\{?\s*\\circ\s*\}?)"
)
_EQUALS = re.compile(rf"^(?=[^\W\d_]|[\\|]){_NAME}{{1,30}}+(?:=|≈|\\approx)\s*(?=[-+\d.\\])")
"""The name of a quantity and its sign of equality: a number before it is another value, and x^2 is not x."""
_TEXT = re.compile(r"\\text\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_OF = re.compile(r"\s+of\s+([A-Za-z][A-Za-z ,'-]*)$")
_WORDS = re.compile(r"\s+[A-Za-z]{3,}(?:[\s/-]+[A-Za-z]{2,})*\s*")
"""A unit that is none of measurement: "apples", "apples per day"; a short or joined one is a factor, as in 2x."""


@dataclass(frozen=True)
class Measured:
    """A number and the unit behind it, as text and as what it is; `unit` None: it is none that is known."""

    value: Fraction
    text: str
    unit: Unit | None


@VERIFIERS.register("quantity")
class QuantityVerifier(Verifier):
    """Right if the stated quantity is the problem's, within a tolerance and in whatever unit: 4.8 kN is 4800 N.

    It is looked for where the verifier `math` looks. Units are those of the SI with their prefixes, and common others;
    temperatures in °C and °F are converted to no other scale. Where the problem's answer has no unit, or one that is
    not known ("5 apples"), none is asked for, or the same word.
    """

    relative_tolerance: Share = option(
        default=0.01, help="largest difference, relative to the problem's number; 0: exact"
    )
    units: Units = option(
        default="required",
        help="required: a unit must be stated where the problem's answer has one; optional: it may be left out; "
        "ignored: numbers alone are compared",
    )

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the stated quantity is the problem's; False without one."""
        gold, stated = self.gold(problem), _stated(response)
        if gold is None or stated is None:
            return False
        wanted, given = read_quantity(gold), read_quantity(stated)
        return wanted is not None and given is not None and self._agree(wanted, given)

    def explain(self, problem: Problem, response: str) -> str:
        """The answer that is compared."""
        del problem
        return read_as(_stated(response))

    def gold(self, problem: Problem) -> str | None:
        """The problem's answer, or what a solution given as answer ends in; None where that is no quantity."""
        answer = problem.scaffold.answer
        place = gold_answer(answer.reveal()) if answer is not None else None
        if place is None:
            return None
        value = stated_value(place.text) if place.kind == "statement" else without_marks(place.text)
        return value if read_quantity(value) is not None else None

    def _agree(self, wanted: Measured, given: Measured) -> bool:
        if self.units == "ignored":
            return self._close(wanted.value, given.value)
        if not given.text and self.units == "optional":
            return self._close(wanted.value, given.value)
        if wanted.unit is None:
            return _word(wanted.text) == _word(given.text) and self._close(wanted.value, given.value)
        if given.unit is None:
            return not wanted.text and self._close(wanted.value, given.value)  # "32000 bacteria" where 32000 is asked
        return same_kind(wanted.unit, given.unit) and self._close(
            wanted.value * wanted.unit.factor, given.value * given.unit.factor
        )

    def _close(self, wanted: Fraction, given: Fraction) -> bool:
        return abs(given - wanted) <= Fraction(self.relative_tolerance) * abs(wanted)


def read_quantity(text: str) -> Measured | None:
    r"""The number that `text` begins with and the unit that the rest is, if in words; None for anything else.

    >>> read_quantity(r"F = 4.8\times 10^3\ \mathrm{N}").value
    Fraction(4800, 1)
    >>> read_quantity("204 or 408 m") is None, read_quantity(r"2\pi rad") is None, read_quantity("12 million") is None
    (True, True, True)
    """
    if len(text) > LONGEST:
        return None
    plain = _EQUALS.sub("", plain_latex(_MICRO.sub("µ", text)))
    for pattern, new in _WRITINGS:
        plain = pattern.sub(new, plain)
    match = _NUMBER.match(plain)
    number = read_number(re.sub(r"^([-+])\s+", r"\1", match[0])) if match else None
    if match is None or number is None:
        return None
    rest = _OF.sub(lambda of: of[0] if is_a_number(of[1]) else "", _TEXT.sub(r" \1 ", plain[match.end() :]))
    unit = read_unit(rest)
    if unit is None and (not _WORDS.fullmatch(rest) or NO_UNIT.search(rest) or is_a_number(rest)):
        return None
    return Measured(number.value, rest.strip(), unit)


def _stated(response: str) -> str | None:
    """What the response states, where `math` looks for it."""
    places = stated_answers(response)
    boxes = [place for place in places if place.kind == "box"]
    for place in places:
        if place.kind != "statement":
            return without_marks(place.text)
        if not boxes or begins_like_a_value(place.text):
            return stated_value(place.text)
    return None


def _word(text: str) -> str:
    return " ".join(text.split()).casefold().removesuffix("s")
