"""The code world `clauses`: a function of one digit, case by case, of which each case shows one example.

    question     below 3 as 2>7, below 7 as 5>3, else as 8>9
    reference    def f(x):
                  if x < 3: x += 5
                  elif x < 7: x -= 2
                  else: x += 1
                  return x % 10
    tests        f(0) = 5, f(1) = 6, ... f(9) = 0

In each case the same number is added to `x`, and of the sum the last digit counts. So `x += 5` and `x -= 5` are both
right for 2>7: the reference is one right program of many, and only running a program says whether it is right. The
share of tests that it passes says of how many digits it is right.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from exprl.chain.problems import DELIMITER
from exprl.execution.tests import CallCase, CallTests

ENTRY_POINT = "f"
DIGITS = range(10)
HEAD, FIRST, NEXT, ELSE, THEN, TAIL = "def f(x):\n", " if x < ", " elif x < ", " else: x", ": x", " return x % 10"
PLUS, MINUS = " += ", " -= "
BELOW, OTHERWISE, AS, BECOMES, COMMA = "below ", "else", " as ", ">", ", "
TOKENS = (*map(str, DIGITS), HEAD, FIRST, NEXT, ELSE, THEN, TAIL, PLUS, MINUS, DELIMITER)
TOKENS += (BELOW, OTHERWISE, AS, BECOMES, COMMA)
"""All that questions and references are made of."""
FEWEST, MOST = 2, 8
"""Cases of one problem."""


@dataclass(frozen=True)
class Clause:
    """One case: the digits below `bound` that no case before it has."""

    bound: int
    example: int
    shift: int
    sign: str

    @property
    def line(self) -> str:
        """What the program does then: adds the shift, or takes away what lacks to ten."""
        return f"{self.sign}{self.shift if self.sign == PLUS else len(DIGITS) - self.shift}"

    @property
    def shown(self) -> str:
        """The example."""
        return f"{AS}{self.example}{BECOMES}{(self.example + self.shift) % len(DIGITS)}"


@dataclass(frozen=True)
class Clauses:
    """One problem: its cases by rising bound, the last of which has what is left."""

    cases: tuple[Clause, ...]

    @property
    def question(self) -> str:
        """The text the policy is given."""
        *bounded, last = self.cases
        return COMMA.join([*(f"{BELOW}{case.bound}{case.shown}" for case in bounded), f"{OTHERWISE}{last.shown}"])

    def steps(self) -> tuple[str, ...]:
        """The program's line of each case."""
        *bounded, last = self.cases
        heads = [FIRST, *[NEXT] * (len(bounded) - 1)]
        lines = (f"{head}{case.bound}{THEN}{case.line}" for head, case in zip(heads, bounded, strict=True))
        return (*lines, f"{ELSE}{last.line}")

    def reference(self) -> str:
        """The program."""
        return HEAD + DELIMITER.join((*self.steps(), TAIL))

    def written(self, signs: Sequence[str]) -> Clauses:
        """The same with these signs: a program that does the same."""
        return Clauses(tuple(Clause(c.bound, c.example, c.shift, s) for c, s in zip(self.cases, signs, strict=True)))

    def value(self, digit: int) -> int:
        """What the function is to give."""
        case = next(case for case in self.cases if digit < case.bound)
        return (digit + case.shift) % len(DIGITS)

    def tests(self) -> CallTests:
        """A call for every digit."""
        cases = tuple(CallCase(args=(digit,), expected=self.value(digit)) for digit in DIGITS)
        return CallTests(entry_point=ENTRY_POINT, cases=cases)


def questions(steps: int) -> int:
    """How many there are with `steps` cases.

    >>> questions(2) == 9 * 9 * sum(bound * (10 - bound) for bound in range(1, 10))
    True
    """
    examples = math.comb(len(DIGITS) + steps - 1, 2 * steps - 1)  # sum over compositions of ten of the parts' product
    return examples * math.prod([len(DIGITS) - 1] * steps)


def draw(rng: random.Random, steps: int) -> Clauses:
    """One problem of `steps` cases."""
    bounds = [*sorted(rng.sample(DIGITS[1:], steps - 1)), len(DIGITS)]
    return Clauses(tuple(_drawn(rng, bounds)))


def _drawn(rng: random.Random, bounds: Sequence[int]) -> Iterator[Clause]:
    for low, bound in zip([0, *bounds], bounds, strict=False):
        yield Clause(bound, rng.randrange(low, bound), rng.choice(DIGITS[1:]), rng.choice((PLUS, MINUS)))
