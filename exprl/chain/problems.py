"""The miniature world `chain`: multi-step arithmetic with a step-by-step reference, generated from a seed.

Three dials show a digit each. A turn by n moves the first dial on by n, the second by what the first then
shows, and the third by what the second then shows; after 9 comes 0. What do the dials show after all turns?

    question     a+3 b+9 from 417
    reference    a+3 785
                 b+9 649
                 Answer: 649

A terse reference states only every second turn, or every third: a reader has to do more than one turn at a time,
as with solutions that people write for people.

The number of turns is the difficulty. Every turn needs the dials as the one before left them, and a mistake
spreads to all three dials, so that wrong steps lead to the right answer about once in a thousand times.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from exprl.chain import drawing
from exprl.chain.drawing import Split
from exprl.config.ranges import Range

Dials = tuple[int, int, int]

LABELS = "abcdefghijklmnop"
MAX_STEPS = len(LABELS)
ChainLength = Annotated[int, Range(ge=1, le=MAX_STEPS)]
"""Turns of one problem, as an option."""
DELIMITER = "\n"
START_PREFIX = "from "
ANSWER_PREFIX = "Answer: "
TEACHER_TEMPLATE = "{reference}\n{task}"
"""The user message with a worked solution, for who has learnt to read one; a reader of a question alone sees {task}."""


def turn(dials: Dials, by: int) -> Dials:
    """What the dials show after a turn of the first one by `by`."""
    first = (dials[0] + by) % 10
    second = (dials[1] + first) % 10
    return first, second, (dials[2] + second) % 10


def show(dials: Dials) -> str:
    """The three digits side by side."""
    return "".join(map(str, dials))


@dataclass(frozen=True)
class ChainProblem:
    """One problem: what the dials show at first, and the turns of the first dial one after the other."""

    start: Dials
    turns: tuple[int, ...]

    @property
    def states(self) -> tuple[Dials, ...]:
        """What the dials show after every turn."""
        states, dials = [], self.start
        for by in self.turns:
            dials = turn(dials, by)
            states.append(dials)
        return tuple(states)

    @property
    def question(self) -> str:
        """The text the policy is given."""
        turns = (f"{label}+{by} " for label, by in zip(LABELS, self.turns, strict=False))
        return "".join([*turns, START_PREFIX, show(self.start)])

    def steps(self, every: int = 1) -> tuple[str, ...]:
        """The reference's results in order, as a trace states them: each `every`-th turn, then the answer."""
        rows = list(zip(LABELS, self.turns, self.states, strict=False))
        turns = (f"{label}+{by} {show(dials)}" for label, by, dials in rows[every - 1 :: every])
        return (*turns, f"{ANSWER_PREFIX}{self.answer}")

    def reference(self, every: int = 1) -> str:
        """The worked solution: each `every`-th turn on a line, then the answer."""
        return DELIMITER.join(self.steps(every))

    @property
    def answer(self) -> str:
        """The final answer."""
        return show(self.states[-1])


def draw(rng: random.Random, steps: int) -> ChainProblem:
    """One problem of either split."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps must be between 1 and {MAX_STEPS}, not {steps}")
    start = (rng.randrange(10), rng.randrange(10), rng.randrange(10))
    return ChainProblem(start, tuple(rng.randint(1, 9) for _ in range(steps)))


def stream(seed: int, steps: int | Sequence[int], split: Split = "train") -> Iterator[ChainProblem]:
    """Problems of one split without end, their lengths drawn evenly from `steps`."""
    return drawing.stream(draw, seed, steps, split)


def generate(seed: int, count: int, steps: int | Sequence[int], split: Split = "train") -> list[ChainProblem]:
    """`count` different problems of one split."""
    return drawing.generate(draw, seed, count, steps, split)
