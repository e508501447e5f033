"""The miniature world `chain`: multi-step arithmetic with a step-by-step reference, generated from a seed.

A problem is a chain of assignments, each one adding to or subtracting from the value before it:

    question     x=147 a=x+38 b=a-61
    reference    a=185\\n b=124\\n Answer: 124        (one step a line, the answer last)

The number of assignments is the difficulty. Questions are split by a hash of their own text, so that no
question is both in the training and in the held-out split, whatever the seeds.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "heldout"]

START = "x"
LABELS = "abcdefghijklmnop"
MAX_STEPS = len(LABELS)
DELIMITER = "\n"
ANSWER_PREFIX = "Answer: "
HELDOUT_SHARE = 5  # one question in five is held out

_ANSWER = re.compile(rf"^{re.escape(ANSWER_PREFIX)}(-?\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class ChainRange:
    """The bounds (both included) of the values in a chain and of the numbers added or subtracted."""

    low: int = 100
    high: int = 999
    operand_low: int = 10
    operand_high: int = 99


@dataclass(frozen=True)
class ChainProblem:
    """One problem: the start value and the signed numbers added to it one after the other."""

    start: int
    operands: tuple[int, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The value after every step."""
        values, total = [], self.start
        for operand in self.operands:
            total += operand
            values.append(total)
        return tuple(values)

    @property
    def question(self) -> str:
        """The text the policy is given."""
        parts, previous = [f"{START}={self.start}"], START
        for label, operand in zip(LABELS, self.operands, strict=False):
            parts.append(f"{label}={previous}{operand:+d}")
            previous = label
        return " ".join(parts)

    @property
    def steps(self) -> tuple[str, ...]:
        """The reference's intermediate results in order, as a trace contains them."""
        return write_steps(self.values)

    @property
    def reference(self) -> str:
        """The worked solution: one step a line, then the answer."""
        return write_trace(self.values)

    @property
    def answer(self) -> str:
        """The final answer."""
        return str(self.values[-1])


def write_steps(values: Iterable[int]) -> tuple[str, ...]:
    """The step texts that state `values`, right or wrong."""
    return tuple(f"{label}={value}" for label, value in zip(LABELS, values, strict=False))


def write_trace(values: Iterable[int]) -> str:
    """A whole trace in the reference's format that states `values`, right or wrong."""
    values = tuple(values)
    return DELIMITER.join([*write_steps(values), f"{ANSWER_PREFIX}{values[-1]}"])


def split_of(question: str) -> Split:
    """The split a question belongs to: a pure function of its text."""
    digest = hashlib.sha256(question.encode()).digest()
    return "heldout" if digest[0] % HELDOUT_SHARE == 0 else "train"


def draw(rng: random.Random, steps: int, bounds: ChainRange = ChainRange()) -> ChainProblem:
    """One problem with `steps` steps whose values all stay within the bounds."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps must be between 1 and {MAX_STEPS}, not {steps}")
    start = total = rng.randint(bounds.low, bounds.high)
    operands = []
    for _ in range(steps):
        while True:
            operand = rng.randint(bounds.operand_low, bounds.operand_high) * rng.choice((1, -1))
            if bounds.low <= total + operand <= bounds.high:
                break
        total += operand
        operands.append(operand)
    return ChainProblem(start, tuple(operands))


def stream(
    seed: int,
    steps: int | tuple[int, ...],
    split: Split = "train",
    bounds: ChainRange = ChainRange(),
) -> Iterator[ChainProblem]:
    """Problems of one split without end or repetition, their lengths drawn evenly from `steps`."""
    lengths = (steps,) if isinstance(steps, int) else tuple(steps)
    rng = random.Random(seed)
    seen: set[ChainProblem] = set()
    while True:
        problem = draw(rng, rng.choice(lengths), bounds)
        if split_of(problem.question) == split and problem not in seen:
            seen.add(problem)
            yield problem


def generate(
    seed: int,
    count: int,
    steps: int | tuple[int, ...],
    split: Split = "train",
    bounds: ChainRange = ChainRange(),
) -> list[ChainProblem]:
    """The first `count` problems of `stream`."""
    problems = stream(seed, steps, split, bounds)
    return [next(problems) for _ in range(count)]


def corrupt(
    problem: ChainProblem, rng: random.Random, slip: float, bounds: ChainRange = ChainRange()
) -> tuple[int, ...]:
    """The values a careless writer states: each result is a random number with probability `slip`,
    and the writer goes on from what they wrote."""
    values, total = [], problem.start
    for operand in problem.operands:
        total += operand
        if rng.random() < slip or not bounds.low <= total <= bounds.high:
            total = rng.randint(bounds.low, bounds.high)
        values.append(total)
    return tuple(values)


def steps_reached(trace: str, problem: ChainProblem) -> int:
    """How many of the reference's steps a trace states, in order, one a line: the first missing one stops the count."""
    reached, steps = 0, problem.steps
    for line in trace.split(DELIMITER):
        if reached < len(steps) and line.strip() == steps[reached]:
            reached += 1
    return reached


def final_answer(trace: str) -> str | None:
    """The answer a trace gives on its last answer line, if there is one."""
    found = _ANSWER.findall(trace)
    return found[-1] if found else None
