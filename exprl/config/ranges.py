"""What a value of the right type must also be: numbers their range, texts their form.

    temperature: Annotated[float, Range(gt=0, le=100)] = option(default=1.0, help="sampling temperature")

A rule stands at the very type that it is about, so `list[NonEmpty]` and `PositiveInt | None` read as they are meant.
Ranges also hold for what is made in code, and `exprl list` shows them.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any


class Rule(ABC):
    """What else a value must be; `str` completes "must be ...", and `hint` says what to do instead."""

    hint: str

    @abstractmethod
    def allows(self, value: Any) -> bool:
        """Whether a value, already of the annotated type, is allowed."""

    def described(self, kind: str) -> str:
        """The values of type `kind` that it allows."""
        return f"{kind} {self}"


@dataclass(frozen=True, kw_only=True)
class Range(Rule):
    """Numbers from a bound (`ge`, `le`) or beyond it (`gt`, `lt`).

    >>> str(Range(gt=0, le=1)), str(Range(ge=1)), str(Range(lt=3))
    ('in (0, 1]', 'at least 1', 'below 3')
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    hint: str = ""

    def allows(self, value: Any) -> bool:
        """Comparisons are written so that NaN fails each."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        low = self.ge if self.ge is not None else self.gt
        high = self.le if self.le is not None else self.lt
        if low is not None and high is not None:
            return f"in {'[' if self.ge is not None else '('}{low}, {high}{']' if self.le is not None else ')'}"
        if low is not None:
            return f"at least {low}" if self.ge is not None else f"above {low}"
        return f"at most {high}" if self.le is not None else f"below {high}"


@dataclass(frozen=True)
class Form(Rule):
    """Texts that match a regular expression as a whole; `says` names them in messages."""

    pattern: str
    says: str
    hint: str = ""

    def allows(self, value: Any) -> bool:
        """Whether all of the text matches."""
        return re.fullmatch(self.pattern, value, re.DOTALL) is not None

    def described(self, kind: str) -> str:
        """The form alone says what it is."""
        return self.says

    def __str__(self) -> str:
        return self.says


SMALLEST = 1e-18
"""Least of the numbers that scale tensors: float32 still holds its square, which AdamW takes of gradients."""
PositiveInt = Annotated[int, Range(ge=1, le=10**9)]
"""A whole number from 1 on; the limit only catches what is no count."""
NonNegativeInt = Annotated[int, Range(ge=0, le=10**9)]
"""A whole number from 0 on."""
Share = Annotated[float, Range(ge=0, le=1)]
"""A part of all, a probability."""
Seconds = Annotated[float, Range(gt=0, le=10_000_000)]
"""A wait; the limit, some 115 days, is below what timers overflow at."""
Samples = Annotated[int, Range(ge=1, le=2**16)]
"""Rollouts of one prompt."""
LONGEST_TEXT = 2**24
"""Tokens; no model reads more."""
Tokens = Annotated[int, Range(ge=1, le=LONGEST_TEXT)]


def temperature(hottest: float) -> Range:
    """Sampling temperatures; below 0.01 the log-probs of a tempered distribution are rounding noise (vLLM's limit)."""
    return Range(ge=0.01, le=hottest, hint="To decode greedily set top_k: 1")


Temperature = Annotated[float, temperature(100)]
TopP = Annotated[float, Range(gt=0, le=1)]
Seed = Annotated[int, Range(ge=0, le=2**32 - 1)]
"""What NumPy and Lightning take as a seed."""
NonEmpty = Annotated[str, Form(".+", "text that is not empty")]
"""A text with something in it."""
