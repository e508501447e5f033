"""Warm-up of one policy for several worlds, each to the same step accuracy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from exprl.chain.drawing import generate, stream
from exprl.chain.options import WarmUpOptions
from exprl.chain.warmup import MEASURED_PROBLEMS, example, step_accuracy, train_until
from exprl.models.base import LanguageModel
from exprl.seeding import derive_seed
from exprl.text.prompts import PromptBuilder
from exprl.training.batching import TokenSequence
from exprl.worlds.world import World

TIMES_BEHIND = 8
"""Examples of the world that is learnt for each of one that has reached the target."""

log = logging.getLogger(__name__)


def warm_up(policy: LanguageModel, worlds: Sequence[World], options: WarmUpOptions) -> dict[str, Any]:
    """Train `policy` in place; returns what was measured. Its problems are of the `train` split.

    Worlds are learnt at different speeds, so they are learnt one after the other, in their order, which should begin
    with the slowest. One at the target is shown a little, so that it neither gets far beyond nor is unlearnt.

    Raises:
        ModelError: the least step accuracy of a world stays below the target for `max_updates` updates.
    """
    log.info("warming up the policy of the worlds (some minutes; cached afterwards)")
    lessons = [Lesson(world, policy, options.seed) for world in worlds]

    def least() -> float:
        return min([lesson.measure() for lesson in lessons])

    examples = lessons_in_order(lessons, options.target_accuracy)
    record = train_until(policy, examples, least, options.target_accuracy, options)
    return record | {"accuracies": {lesson.world.name: lesson.accuracy for lesson in lessons}}


class Lesson:
    """The examples of one world, and how well its steps were done when they were measured last."""

    def __init__(self, world: World, policy: LanguageModel, seed: int) -> None:
        self.world, self._policy = world, policy
        self._prompts = PromptBuilder(policy.tokenizer)
        self._problems = stream(world.draw, derive_seed(seed, f"warm-up {world.name}"), world.lengths)
        measured = derive_seed(seed, f"warm-up measure {world.name}")
        hard = generate(world.draw, measured, MEASURED_PROBLEMS, world.lengths[-1])
        self._writings = len(world.writings(hard[0]))
        self._hard = [self._example(problem, text) for problem in hard for text in world.writings(problem)]
        self.accuracy = 0.0

    def __next__(self) -> TokenSequence:
        problem = next(self._problems)
        return self._example(problem, problem.reference())

    def measure(self) -> float:
        """The probability that a step is done right, in whichever of its right writings, or the last line if less."""
        steps = self._writings * step_accuracy(self._policy, self._hard)
        self.accuracy = min(steps, step_accuracy(self._policy, self._hard, last=True))
        return self.accuracy

    def _example(self, problem: Any, response: str) -> TokenSequence:
        return example(problem.question, response, self._policy, self._prompts)


def lessons_in_order(lessons: Sequence[Lesson], target: float) -> Iterator[TokenSequence]:
    """Examples of the first world below the target, and of those before it a few; of all alike while none is below."""
    while True:
        for lesson in lessons:
            behind = lesson.accuracy < target
            for _ in range(TIMES_BEHIND if behind else 1):
                yield next(lesson)
            if behind:
                break
