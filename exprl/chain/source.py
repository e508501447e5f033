"""Problems of the miniature world `chain`: unlimited, with step-by-step references, from a seed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from exprl.chain.drawing import HELDOUT_ONE_IN, Split
from exprl.chain.problems import ChainLength, ChainProblem, generate
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

    steps: ChainLength | tuple[ChainLength, ChainLength] = option(default=4, help="turns a problem, or [fewest, most]")
    count: Annotated[int, Range(ge=1, le=10_000_000)] = option(default=256, help="number of problems")
    seed: Seed = option(default=0, help="seed of the generator")
    split: Literal["train", "test"] = option(default="train", help="which of two disjoint sets of questions")
    reference_every: PositiveInt = option(
        default=1, help="the reference states each so-many-th turn; 1: every turn, as the policy does"
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """There must be as many different problems."""
        lengths = lengths_of(config.steps)
        if not lengths:
            raise ConfigError(f"steps: write [fewest, most], but got {config.steps}.")
        # half of the smaller split, so that the generator never searches long for a question it has not had
        most = sum(1000 * 9**length for length in lengths) // HELDOUT_ONE_IN // 2
        if config.count > most:
            raise ConfigError(f"count: must be at most {most} with steps {config.steps}, but got {config.count}.")

    def load(self) -> list[Problem]:
        """`count` problems, the same for the same options."""
        made = generate(self.seed, self.count, lengths_of(self.steps), SPLITS[self.split])
        name = f"chain-{self.split}-{self.seed}"
        return [to_problem(problem, f"{name}-{index}", self.reference_every) for index, problem in enumerate(made)]


def lengths_of(steps: int | tuple[int, int]) -> tuple[int, ...]:
    """Every allowed number of turns."""
    fewest, most = (steps, steps) if isinstance(steps, int) else steps
    return tuple(range(fewest, most + 1))


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
