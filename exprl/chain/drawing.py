"""Problems drawn from a seed, in two splits: no question is in both, whatever the seeds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

Split = Literal["train", "heldout"]
HELDOUT_ONE_IN = 5


class Exercise(Hashable, Protocol):
    """A problem of a miniature world."""

    @property
    def question(self) -> str:
        """The text the policy is given."""

    def reference(self) -> str:
        """The worked solution."""


E = TypeVar("E", bound=Exercise)
Draw = Callable[[random.Random, int], E]
"""Makes one problem, of either split, with so many steps."""


def split_of(question: str) -> Split:
    """The split a question belongs to: a pure function of its text."""
    digest = hashlib.sha256(question.encode()).digest()
    return "heldout" if digest[0] % HELDOUT_ONE_IN == 0 else "train"


def stream(draw: Draw[E], seed: int, steps: int | Sequence[int], split: Split = "train") -> Iterator[E]:
    """Problems of one split without end, their lengths drawn evenly from `steps`."""
    lengths = (steps,) if isinstance(steps, int) else tuple(steps)
    rng = random.Random(seed)
    while True:
        problem = draw(rng, rng.choice(lengths))
        if split_of(problem.question) == split:
            yield problem


def generate(draw: Draw[E], seed: int, count: int, steps: int | Sequence[int], split: Split = "train") -> list[E]:
    """`count` problems of one split, no two of which ask the same."""
    problems: dict[str, E] = {}
    for problem in stream(draw, seed, steps, split):
        if len(problems) == count:
            break
        problems.setdefault(problem.question, problem)
    return list(problems.values())
