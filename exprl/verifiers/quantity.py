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
from exprl.verifiers.base import Verifier
from exprl.verifiers.gold import gold_answer
from exprl.verifiers.notation import plain_latex
from exprl.verifiers.quantities import read_number
from exprl.verifiers.statements import begins_like_a_value, stated_value
from exprl.verifiers.units import Unit, read_unit

Units = Literal["required", "optional", "ignored"]

LONGEST = 200
"""Characters of a quantity."""

_TEN = r"10\s*\^\s*(?:\{\s*[-+]?\d+\s*\}|\d)"
_NUMBER = re.compile(
    r"[-+]?\s*(?:\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d+\s*/\s*\d+(?!\.)"
    rf"|(?:\d+\.?\d*|\.\d+)(?:\s*(?:\\times|\\cdot|\*)\s*{_TEN})?|{_TEN})(?![\d.])"
)
_EQUALS = re.compile(r"^[^=≈<>]{1,40}?(?:=|≈|\\approx)\s*(?=[-+\d.\\])")
_OF = re.compile(r"\s+of\b.*$")


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
        same = dict(wanted.unit.dimensions) == dict(given.unit.dimensions)
        return same and self._close(wanted.value * wanted.unit.factor, given.value * given.unit.factor)

    def _close(self, wanted: Fraction, given: Fraction) -> bool:
        return abs(given - wanted) <= Fraction(self.relative_tolerance) * abs(wanted)


def read_quantity(text: str) -> Measured | None:
    r"""The number that `text` begins with and the unit that the rest is; None for anything else.

    >>> read_quantity(r"F = 4.8\times 10^3\ \mathrm{N}").value
    Fraction(4800, 1)
    >>> read_quantity("204 or 408 m") is None
    True
    """
    if len(text) > LONGEST:
        return None
    plain = _EQUALS.sub("", plain_latex(text))
    match = _NUMBER.match(plain)
    number = read_number(re.sub(r"^([-+])\s+", r"\1", match[0])) if match else None
    if match is None or number is None:
        return None
    unit = _OF.sub("", plain[match.end() :]).strip()
    if re.search(r"\d(?!\}?$)(?<!\^\d)(?<!\^\{\d)(?<!-\d)|(?i:\b(?:or|and|not)\b)|[=<>+]", unit):
        return None
    return Measured(number.value, unit, read_unit(unit))


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
    return re.sub(r"\\text\{([^{}]*)\}", r"\1", text).strip().casefold().removesuffix("s")
