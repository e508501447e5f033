"""The choice world `reactions`: what becomes of a substance, process after process; the answer is one of the options.

    question     moss burn soak press?
                 A. ash
                 B. brine
                 ...
                 H. salt
    reference    moss burn dew
                 dew soak ash
                 ash press brine
                 Answer: B

Every process turns the eight substances into one another, none into itself or two into the same. What becomes of what
is nowhere written: it has to be known, as facts are. The options are all the substances, in the order of the alphabet,
so that a wrong one is always among them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from exprl.chain.problems import ANSWER_PREFIX, DELIMITER

SUBSTANCES = ("ash", "brine", "chalk", "dew", "flint", "glass", "moss", "salt")
PROCESSES = ("burn", "freeze", "grind", "press", "soak", "stir")
LETTERS = "ABCDEFGH"
SEPARATOR, QUESTION_MARK, OPTION_MARK = " ", "?", ". "
TOKENS = (*SUBSTANCES, *PROCESSES, *LETTERS, SEPARATOR, QUESTION_MARK, OPTION_MARK, DELIMITER, ANSWER_PREFIX)
"""All that questions and references are made of."""
LONGEST = 12
"""Processes of one problem."""


def facts(seed: int = 0) -> dict[tuple[str, str], str]:
    """The product of each substance and process: for each process one cycle through all substances."""
    rng = random.Random(seed)
    found: dict[tuple[str, str], str] = {}
    for process in PROCESSES:
        cycle = rng.sample(SUBSTANCES, len(SUBSTANCES))
        found |= {(one, process): other for one, other in zip(cycle, cycle[1:] + cycle[:1], strict=True)}
    return found


PRODUCTS: Mapping[tuple[str, str], str] = facts()


@dataclass(frozen=True)
class Reactions:
    """One problem: a substance, and the processes it goes through."""

    start: str
    processes: tuple[str, ...]

    @property
    def states(self) -> tuple[str, ...]:
        """What it is at first and after every process."""
        states = [self.start]
        for process in self.processes:
            states.append(PRODUCTS[states[-1], process])
        return tuple(states)

    @property
    def question(self) -> str:
        """The text the policy is given."""
        asked = SEPARATOR.join((self.start, *self.processes)) + QUESTION_MARK
        options = (f"{letter}{OPTION_MARK}{text}" for letter, text in zip(LETTERS, SUBSTANCES, strict=True))
        return DELIMITER.join((asked, *options))

    @property
    def answer(self) -> str:
        """The letter of what it is in the end."""
        return LETTERS[SUBSTANCES.index(self.states[-1])]

    def steps(self) -> tuple[str, ...]:
        """Each process with its product, then the answer."""
        states = self.states
        hops = zip(states, self.processes, states[1:], strict=False)
        return (*map(SEPARATOR.join, hops), f"{ANSWER_PREFIX}{self.answer}")

    def reference(self) -> str:
        """The argument for the answer, a process on a line."""
        return DELIMITER.join(self.steps())


def draw(rng: random.Random, steps: int) -> Reactions:
    """One problem of `steps` processes."""
    return Reactions(rng.choice(SUBSTANCES), tuple(rng.choices(PROCESSES, k=steps)))
