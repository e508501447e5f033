"""Problems of the choice world and of the code world: unlimited, with references, from a seed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from exprl.chain.drawing import HELDOUT_ONE_IN, generate
from exprl.chain.source import SPLITS
from exprl.component import option
from exprl.config.ranges import Range, Seed
from exprl.data.base import ProblemSource
from exprl.errors import ConfigError
from exprl.execution.tests import to_json
from exprl.registry import SOURCES
from exprl.types import Hidden, Problem, Question, Scaffold
from exprl.worlds import clauses, reactions


class GeneratedSource(ProblemSource):
    """Base of both: all questions differ, and none is in both splits, whatever the seeds."""

    domain: ClassVar[str]

    count: Annotated[int, Range(ge=1, le=10_000)] = option(default=256, help="number of problems")
    seed: Seed = option(default=0, help="seed of the generator")
    split: Literal["train", "test"] = option(default="train", help="which of two disjoint sets of questions")

    @abstractmethod
    def scaffolds(self) -> Iterator[tuple[str, Scaffold]]:
        """Each question with what is hidden."""

    def load(self) -> list[Problem]:
        """`count` problems, the same for the same options."""
        name = f"{self.registered_name}-{self.split}-{self.seed}"
        return [
            Problem(question=Question(problem_id=f"{name}-{index}", text=text), scaffold=scaffold, domain=self.domain)
            for index, (text, scaffold) in enumerate(self.scaffolds())
        ]


@SOURCES.register("reactions")
class ReactionsSource(GeneratedSource):
    """What becomes of a substance, process after process: multiple choice, for the verifier `choice`."""

    domain: ClassVar[str] = "choice"

    steps: Annotated[int, Range(ge=2, le=reactions.LONGEST)] = option(default=6, help="processes a problem")

    @classmethod
    def check_options(cls, config: Any) -> None:
        """There must be as many different problems."""
        _check_count(config, len(reactions.SUBSTANCES) * len(reactions.PROCESSES) ** config.steps)

    def scaffolds(self) -> Iterator[tuple[str, Scaffold]]:
        """The argument, the letter and the argument's lines."""
        for problem in generate(reactions.draw, self.seed, self.count, self.steps, SPLITS[self.split]):
            yield (
                problem.question,
                Scaffold(
                    reference=Hidden(problem.reference()), answer=Hidden(problem.answer), steps=Hidden(problem.steps())
                ),
            )


@SOURCES.register("clauses")
class ClausesSource(GeneratedSource):
    """Functions of a digit, case by case: programs of a few lines, for the verifier and the reward `execution`."""

    domain: ClassVar[str] = "code"

    steps: Annotated[int, Range(ge=clauses.FEWEST, le=clauses.MOST)] = option(default=4, help="cases a problem")

    @classmethod
    def check_options(cls, config: Any) -> None:
        """There must be as many different problems."""
        _check_count(config, clauses.questions(config.steps))

    def scaffolds(self) -> Iterator[tuple[str, Scaffold]]:
        """A right program, its lines case by case, and the tests."""
        for problem in generate(clauses.draw, self.seed, self.count, self.steps, SPLITS[self.split]):
            yield (
                problem.question,
                Scaffold(
                    reference=Hidden(problem.reference()),
                    steps=Hidden(problem.steps()),
                    tests=Hidden(to_json(problem.tests())),
                ),
            )


def _check_count(config: Any, questions: int) -> None:
    most = questions // HELDOUT_ONE_IN // 2  # half of the smaller split, so that none is searched for long
    if config.count > most:
        raise ConfigError(f"count: must be at most {most} with {config.steps} steps, but got {config.count}.")
