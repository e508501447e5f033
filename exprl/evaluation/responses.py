"""Responses that somebody else has written, from a file, to be graded as an evaluation grades its own samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exprl.data.jsonl import read_lines
from exprl.data.rows import Row, is_number
from exprl.errors import ConfigError, DataError, such_as
from exprl.evaluation.evaluate import Sample
from exprl.invariants import fault_of
from exprl.types import Problem

ID, RESPONSE = "problem_id", "response"
"""The keys of a line, as `exprl rollouts --json` prints them; it may have others."""


def read_responses(path: Path, problems: Sequence[Problem]) -> list[Sample]:
    """The file's responses, in its order; every problem has as many.

    Args:
        path: one JSON object a line, `{"problem_id": ..., "response": ...}`, in any order; several lines a problem.
        problems: those that are to be answered, all of them.

    Raises:
        DataError: naming the file and the line of what is no response, or is to none of the problems; or a problem
            that has no response, or another number of them.
    """
    places = {problem.id: place for place, problem in enumerate(problems)}
    samples = _read(path, places)
    _check_counts(Counter(sample.problem for sample in samples), problems, path)
    return samples


def answered(path: Path, problems: Sequence[Problem]) -> list[Problem]:
    """Those of the problems to which the file has a response; raises `DataError` as `read_responses` does."""
    places = {problem.id: place for place, problem in enumerate(problems)}
    found = {sample.problem for sample in _read(path, places)}
    return [problem for place, problem in enumerate(problems) if place in found]


def ks_of(ks: Sequence[int], n: int) -> tuple[int, ...]:
    """The k of `evaluation.k` that n responses are enough for; raises `ConfigError` where none is."""
    enough = tuple(k for k in ks if k <= n)
    if not enough:
        raise ConfigError(
            f"evaluation.k: needs one or more numbers up to {n}, the responses a problem, but got {list(ks)}. Set "
            "evaluation.k=null for those that are usual with so many, or name others."
        )
    return enough


def _read(path: Path, places: dict[str, int]) -> list[Sample]:
    try:
        return [_sample(row, places, f"{path}:{line}") for line, row in read_lines(path, source=False)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def _sample(row: Row, places: dict[str, int], where: str) -> Sample:
    name: Any = str(row[ID]) if is_number(row.get(ID)) else row.get(ID)
    for key, value in ((ID, name), (RESPONSE, row.get(RESPONSE))):
        if not isinstance(value, str):
            got = f"{type(value).__name__} there" if key in row else f"the keys {', '.join(map(repr, row))}"
            raise DataError(f'{where}: needs "{ID}" and "{RESPONSE}", both text, but has {got}.')
    if name not in places:
        raise DataError(f"{where}: no problem {name!r} in evaluation.source. {such_as(name, places)}")
    if fault := fault_of(row[RESPONSE]):
        raise DataError(f'{where}: "{RESPONSE}" has {fault}. Repair the line.')
    return Sample(problem=places[name], text=row[RESPONSE], reply=row[RESPONSE])


def _check_counts(counts: Counter[int], problems: Sequence[Problem], path: Path) -> None:
    missing = [problem.id for place, problem in enumerate(problems) if not counts[place]]
    if missing:
        raise DataError(
            f"{path}: no response to {len(missing)} of {len(problems)} problems of evaluation.source (first: "
            f"{missing[0]!r}). Add them, one empty where nothing was answered, or grade the problems that are "
            "answered alone with --answered-only."
        )
    for place, problem in enumerate(problems):
        if counts[place] != counts[0]:
            raise DataError(
                f"{path}: {counts[0]} responses to {problems[0].id!r}, but {counts[place]} to {problem.id!r}. pass@k "
                "takes as many of each problem: add the missing ones, or leave some out."
            )
