"""Procedural problems of the package `reasoning-gym` (Stojanovski et al. 2025, arXiv:2505.24760)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from exprl.component import option
from exprl.config.ranges import NonEmpty, Range, Seed
from exprl.data.base import ProblemSource
from exprl.data.files import check_installed, require
from exprl.data.tables import numbered
from exprl.errors import DataError, did_you_mean
from exprl.registry import SOURCES
from exprl.seeding import derive_seed
from exprl.types import Hidden, Problem, Question, Scaffold

TEST_ONE_IN = 5
SEARCH_FACTOR = 50
"""Problems made for each one wanted before a task is taken to have no more different ones."""


@SOURCES.register("reasoning_gym")
class ReasoningGymSource(ProblemSource):
    """Generated problems of one task, all different; no question is in both splits, whatever the seeds.

    A run verifies by the problem's one answer, so choose tasks that have one. `gsm_symbolic` is grade-school
    mathematics with a worked solution; most other tasks have no solution, so no judge can compare with one.
    """

    task: NonEmpty = option(default="gsm_symbolic", help="name of the task in reasoning-gym")
    options: dict[str, Any] = option(default={}, help="the task's own options, for example {min_terms: 4}", of="task")
    reference: NonEmpty | None = option(
        default="answer_cot", help="entry of the metadata that is the solution; null: there is none", of="task"
    )
    count: Annotated[int, Range(ge=1, le=10_000_000)] = option(default=256, help="number of problems")
    seed: Seed = option(default=0, help="seed of the generator")
    split: Literal["train", "test"] = option(
        default="train", help="which of two disjoint sets of questions, four to one"
    )

    @classmethod
    def preflight(cls, config: Any) -> None:
        """The package that makes the tasks must be there."""
        del config
        check_installed("reasoning_gym", "reasoning_gym", extra="reasoning")

    def load(self) -> list[Problem]:
        """`count` problems, the same for the same options and the same version of reasoning-gym.

        Raises:
            DataError: the package is missing, the task or an option of it is unknown, a problem has no such solution,
                or the task has too few different problems.
        """
        wanted = self.count
        problems = list(islice(self._problems(), wanted))
        if len(problems) < wanted:
            raise DataError(
                f"source 'reasoning_gym': task {self.task!r} has {len(problems)} different problems in split "
                f"{self.split!r}, not {wanted}. Lower count, or widen the task's options."
            )
        return problems

    def _problems(self) -> Iterator[Problem]:
        seen: set[str] = set()
        for number, entry in numbered(self._entries(), f"source 'reasoning_gym': task {self.task!r}"):
            question = str(entry["question"]).strip()
            if question in seen or split_of(question) != self.split:
                continue
            seen.add(question)
            yield self._problem(entry, question, f"{self.task}-{self.seed}-{number - 1}")

    def _problem(self, entry: Mapping[str, Any], question: str, problem_id: str) -> Problem:
        key = self.reference
        reference = entry["metadata"].get(key) if key is not None else None
        if key is not None and not reference:
            known = [name for name, value in entry["metadata"].items() if isinstance(value, str)]
            raise DataError(
                f"source 'reasoning_gym': the metadata of task {self.task!r} has no {key!r}. "
                f"{did_you_mean(key, known)} Set reference: null for a task without solutions."
            )
        return Problem(
            question=Question(problem_id=problem_id, text=question),
            scaffold=Scaffold(
                reference=Hidden(str(reference)) if reference is not None else None,
                answer=Hidden(str(entry["answer"])) if entry["answer"] is not None else None,
            ),
        )

    def _entries(self) -> Iterator[Mapping[str, Any]]:
        """The task's entries, many more than are wanted: some repeat, and some are of the other split."""
        options = self.config
        require("reasoning_gym", "reasoning_gym", extra="reasoning")
        from reasoning_gym.factory import DATASETS, create_dataset

        if options.task not in DATASETS:
            raise DataError(
                f"source 'reasoning_gym': unknown task {options.task!r}. {did_you_mean(options.task, DATASETS)}"
            )
        seed = derive_seed(options.seed, "reasoning_gym") % 2**31  # its item i of seed s is item 0 of seed s + i
        try:
            made = create_dataset(options.task, seed=seed, size=options.count * SEARCH_FACTOR, **options.options)
        except (TypeError, AssertionError, ValueError) as error:
            raise DataError(f"source 'reasoning_gym': task {options.task!r}: options: {error}") from error
        return iter(made)


def split_of(question: str) -> Literal["train", "test"]:
    """A pure function of the question's text: one in five is for testing."""
    return "test" if hashlib.sha256(question.encode()).digest()[0] % TEST_ONE_IN == 0 else "train"
