"""CHAMP: 270 competition problems with human step-by-step solutions (Mao et al. 2024, arXiv:2401.06961)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from exprl.component import option
from exprl.config.ranges import NonNegativeInt, PositiveInt
from exprl.data.base import ProblemSource
from exprl.data.files import missing_package
from exprl.data.rows import window
from exprl.errors import DataError, did_you_mean
from exprl.registry import SOURCES
from exprl.types import Hidden, Problem, Question, Scaffold

TEST_ONE_IN = 5


@dataclass(frozen=True, kw_only=True)
class ChampAttempt:
    """What a language model wrote, and the character at which a person found the first wrong step; None: no such."""

    author: str
    text: str
    first_error: int | None


@dataclass(frozen=True, kw_only=True)
class ChampRecord:
    """What is kept of a problem: the package's file is 72 MB, nearly all of it conversations of other models."""

    id: str
    category: str
    text: str
    steps: tuple[str, ...]
    answer: str
    attempts: tuple[ChampAttempt, ...] = ()

    @property
    def split(self) -> Literal["train", "test"]:
        """A pure function of the id: one problem in five is for testing, whatever else is chosen."""
        return "test" if hashlib.sha256(self.id.encode()).digest()[0] % TEST_ONE_IN == 0 else "train"

    def to_problem(self) -> Problem:
        """The problem, its reference one step a line."""
        scaffold = Scaffold(
            reference=Hidden("\n".join(self.steps)), answer=Hidden(self.answer), steps=Hidden(self.steps)
        )
        return Problem(question=Question(problem_id=self.id, text=self.text), scaffold=scaffold)


@SOURCES.register("champ")
class ChampSource(ProblemSource):
    """CHAMP's problems in the package's order, from the installed package `champ-dataset`."""

    categories: list[str] = option(default=[], help="categories to keep, for example [Sequence]; empty: all five")
    split: Literal["all", "train", "test"] = option(default="all", help="train and test are disjoint, four to one")
    offset: NonNegativeInt = option(default=0, help="problems to skip at the start, of those kept")
    limit: PositiveInt | None = option(default=None, help="problems to read after that; null: all")

    @classmethod
    def preflight(cls, config: Any) -> None:
        """The package that holds it must be there."""
        del config
        _package_file()

    def load(self) -> list[Problem]:
        """The chosen problems; raises `DataError` for an unknown category or when none is left."""
        records = installed_records()
        known = sorted({record.category for record in records})
        for category in self.categories:
            if category not in known:
                raise DataError(f"source 'champ': unknown category {category!r}. {did_you_mean(category, known)}")
        kept = [record for record in records if self._keeps(record)]
        problems = [record.to_problem() for record in window(kept, self.offset, self.limit)]
        if not problems:
            raise DataError(f"source 'champ': offset {self.offset} skips all {len(kept)} problems chosen.")
        return problems

    def _keeps(self, record: ChampRecord) -> bool:
        categories, split = self.categories, self.split
        return (not categories or record.category in categories) and split in ("all", record.split)


def installed_records() -> tuple[ChampRecord, ...]:
    """All of the installed package; raises `DataError` where it is not there or has another layout."""
    return read_champ(_package_file())


@cache
def read_champ(path: Path) -> tuple[ChampRecord, ...]:
    """All problems of the package's file, read once a process; raises `DataError` when it has another layout."""
    try:
        problems: dict[str, Any] = json.loads(path.read_bytes())["problems"]
        return tuple(_record(node) for node in problems.values())
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise DataError(
            f"source 'champ': {path} is not CHAMP v0 ({type(error).__name__}: {error}). Install champ-dataset==1.0.0."
        ) from error


def _record(node: dict[str, Any]) -> ChampRecord:
    return ChampRecord(
        id=node["identifier"],
        category=node["category"],
        text=node["_text"],  # `_raw_text` is the same with @@ around the mathematics
        steps=tuple(step["_text"] for step in node["solution"]["steps"]),
        answer=node["_answer"],
        attempts=tuple(
            ChampAttempt(author=one["author"], text=one["text"], first_error=one["start_idx"])
            for one in node["fws_annotations"].values()
        ),
    )


def _package_file() -> Path:
    spec = find_spec("champ_dataset")  # importing the package would read the whole file into its own objects
    if spec is None or spec.origin is None:
        raise missing_package("champ-dataset", "champ")
    return Path(spec.origin).parent / "dataset_files" / "v0.json"
