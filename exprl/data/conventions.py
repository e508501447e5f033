"""What public data sets call their columns, for the proposal that an error makes about a mapping that does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

NAMES: dict[str, tuple[str, ...]] = {
    "question": ("question", "problem", "prompt", "query", "instruction", "input", "task"),
    "reference": (
        *("reference", "solution", "reference_solution", "ground_truth_solution", "generated_solution", "rationale"),
        *("answer_cot", "explanation", "proof", "output", "response"),
    ),
    "answer": (
        *("answer", "final_answer", "ground_truth", "expected_answer", "gold", "gold_answer", "target", "label"),
        *("reward_model.ground_truth", "solution"),
    ),
    "domain": ("domain", "ability", "subject", "type", "problem_type"),
    "steps": ("steps",),
    "variants": ("variants", "solutions", "references", "generations"),
    "rubric": ("rubric", "rubrics", "grading_scheme", "marking_scheme", "grading_guidelines"),
    "tests": ("tests", "test_cases", "input_output", "unit_tests", "public_tests", "private_tests"),
    "choices": ("choices.text", "choices", "options"),
    "id": ("id", "uuid", "problem_id", "unique_id"),
}
"""By role, the likeliest first: GSM8K, MATH, AIME, NuminaMath, DeepScaleR, Big-Math, OpenThoughts, OpenMathReasoning,
verl's Parquet, APPS, DeepCoder, ARC, MMLU. A solution stands in for an answer that has no column: it may end in one
(`verifiers/gold.py`)."""

SHOWN = 40


def proposal(role: str, column: str, row: Mapping[str, Any], taken: Sequence[str | None]) -> str | None:
    r"""A column of `row` that the role may be in, `taken` by no other; None without one.

    >>> proposal("question", "question", {"Problem": "1+1?", "Answer": "2"}, [])
    'Problem'
    >>> proposal("reference", "reference", {"question": "1+1?", "answer": "Add.\n#### 2"}, ["question", "answer"])
    'answer'
    """
    free = [name for name in map(str, row) if name not in taken]
    by_case = {name.casefold(): name for name in free}
    if close := difflib.get_close_matches(column, free, n=1, cutoff=0.8):
        return close[0]
    for name in (column, *NAMES[role]):
        if (known := by_case.get(name.partition(".")[0].casefold())) and _holds(row[known], name):
            return ".".join([known, *name.split(".")[1:]])
    return next(filter(lambda name: role == "reference" and _is_solution(row, name), map(str, row)), None)


def listing(row: Mapping[str, Any]) -> str:
    """The names of a row's columns for a message."""
    names = list(map(str, row))
    return ", ".join([*map(repr, names[:SHOWN]), *(["…"] if len(names) > SHOWN else [])]) or "(none)"


def _holds(cell: Any, name: str) -> bool:
    inner = name.split(".")[1:]
    return not inner or (isinstance(cell, Mapping) and inner[0] in cell)


def _is_solution(row: Mapping[str, Any], name: str) -> bool:
    """Whether the answer itself is a solution of several lines, as in GSM8K, which has no other."""
    cell = row[name]
    return name.casefold() == "answer" and isinstance(cell, str) and "\n" in cell.strip()
