"""Problems of the miniature world `chain`: unlimited, with step-by-step references, from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from exprl.chain.problems import HELDOUT_ONE_IN, ChainLength, ChainProblem, Split, generate
from exprl.component import option
from exprl.config.ranges import PositiveInt, Range, Seed
from exprl.data.base import ProblemSource
from exprl.errors import ConfigError
from exprl.registry import SOURCES
from exprl.types import Hidden, Problem, Question, Scaffold

SPLITS: dict[str, Split] = {"train": "train", "test": "heldout"}


@SOURCES.register("chain")
class ChainSource(ProblemSource):
    """Generated problems, all different; no question is in both splits, whatever the seeds."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How many problems, how long, and which."""

        steps: ChainLength | tuple[ChainLength, ChainLength] = option(4, "turns a problem, or [fewest, most]")
        count: Annotated[int, Range(ge=1, le=10_000_000)] = option(256, "number of problems")
        seed: Seed = option(0, "seed of the generator")
        split: Literal["train", "test"] = option("train", "which of two disjoint sets of questions")
        reference_every: PositiveInt = option(
            1, "the reference states each so-many-th turn; 1: every turn, as the policy does"
        )

        def __post_init__(self) -> None:
            if not self.lengths:
                raise ConfigError(f"steps: write [fewest, most], but got {self.steps}.")
            # half of the smaller split, so that the generator never searches long for a question it has not had
            most = sum(1000 * 9**length for length in self.lengths) // HELDOUT_ONE_IN // 2
            if self.count > most:
                raise ConfigError(f"count: must be at most {most} with steps {self.steps}, but got {self.count}.")

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
