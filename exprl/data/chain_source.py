"""Problems of the miniature world `chain`: unlimited, with step-by-step references, from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exprl.component import option
from exprl.data.base import ProblemSource
from exprl.data.chain import HELDOUT_ONE_IN, MAX_STEPS, ChainProblem, Split, generate
from exprl.registry import SOURCES
from exprl.types import Hidden, Problem, Question, Scaffold

SPLITS: dict[str, Split] = {"train": "train", "test": "heldout"}


@SOURCES.register("chain")
class ChainSource(ProblemSource):
    """Generated problems, all different; no question is in both splits, whatever the seeds."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How many problems, how long, and which."""

        steps: int | tuple[int, int] = option(4, f"turns a problem, or [fewest, most]; 1 to {MAX_STEPS}")
        count: int = option(256, "number of problems")
        seed: int = option(0, "seed of the generator")
        split: Literal["train", "test"] = option("train", "which of two disjoint sets of questions")
        reference_every: int = option(1, "the reference states each so-many-th turn; 1: every turn, as the policy does")

        def __post_init__(self) -> None:
            lengths = self.lengths
            if not lengths or lengths[0] < 1 or lengths[-1] > MAX_STEPS:
                raise ValueError(f"steps must lie in 1..{MAX_STEPS}, as n or [fewest, most], but got {self.steps}")
            if self.reference_every < 1:
                raise ValueError(f"reference_every must be at least 1, but got {self.reference_every}")
            # half of the smaller split, so that the generator never searches long for a question it has not had
            most = sum(1000 * 9**length for length in lengths) // HELDOUT_ONE_IN // 2
            if not 1 <= self.count <= most:
                raise ValueError(f"count must lie in 1..{most} with steps {self.steps}, but got {self.count}")

        @property
        def lengths(self) -> tuple[int, ...]:
            """Every allowed number of turns."""
            fewest, most = (self.steps, self.steps) if isinstance(self.steps, int) else self.steps
            return tuple(range(fewest, most + 1))

    config: Config

    def load(self) -> list[Problem]:
        """`count` problems, the same for the same options."""
        options = self.config
        made = generate(options.seed, options.count, options.lengths, SPLITS[options.split])
        name = f"chain-{options.split}-{options.seed}"
        return [to_problem(problem, f"{name}-{index}", options.reference_every) for index, problem in enumerate(made)]


def to_problem(problem: ChainProblem, problem_id: str, reference_every: int = 1) -> Problem:
    """A chain problem with its scaffold; the reference states each `reference_every`-th turn."""
    return Problem(
        question=Question(problem_id=problem_id, text=problem.question),
        scaffold=Scaffold(
            reference=Hidden(problem.reference(reference_every)),
            answer=Hidden(problem.answer),
            steps=Hidden(problem.steps(reference_every)),
        ),
        domain="chain",
    )
