"""What public data sets call their columns, for the proposal that an error makes about a mapping that does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
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
DEEPEST = 4
"""Keys of a dotted name that a message proposes."""


def proposal(role: str, column: str, row: Mapping[str, Any], taken: Sequence[str | None]) -> str | None:
    r"""A column of `row` that the role may be in, `taken` by no other; None without one.

    >>> proposal("question", "question", {"Problem": "1+1?", "Answer": "2"}, [])
    'Problem'
    >>> proposal("reference", "reference", {"question": "1+1?", "answer": "Add.\n#### 2"}, ["question", "answer"])
    'answer'
    >>> proposal("reference", "reference", {"question": "1+1?", "meta": {"gold": {"solution": "Add."}}}, ["question"])
    'meta.gold.solution'
    """
    free = [name for name in map(str, row) if name not in taken]
    by_case = {name.casefold(): name for name in free}
    if close := difflib.get_close_matches(column, free, n=1, cutoff=0.8):
        return close[0]
    for name in (column, *NAMES[role]):
        if (known := by_case.get(name.partition(".")[0].casefold())) and _holds(row[known], name):
            return ".".join([known, *name.split(".")[1:]])
    within = {name.rpartition(".")[2].casefold(): name for name in reversed(inside(row)) if name not in taken}
    for name in (column.rpartition(".")[2], *NAMES[role]):
        if name.casefold() in within:
            return within[name.casefold()]
    return next(filter(lambda name: role == "reference" and _is_solution(row, name), map(str, row)), None)


def columns_of(row: Mapping[str, Any]) -> str:
    """The names of a row's columns for a message, and what a dot reaches within nested ones.

    >>> columns_of({"q": "1+1?", "meta": {"gold": {"solution": "Add."}}})
    "'q', 'meta'; within them 'meta.gold.solution'"
    """
    inner = f"; within them {listing(found)}" if (found := inside(row)) else ""
    return (listing(list(map(str, row))) or "(none)") + inner


def inside(row: Mapping[str, Any]) -> list[str]:
    """The dotted names of what lies in nested columns.

    A list counts as one thing, as its items may be many.
    """
    return [name for name in _leaves(row) if "." in name and name not in row]


def _leaves(node: Mapping[str, Any], depth: int = DEEPEST) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value and depth > 1:
            yield from (f"{key}.{name}" for name in _leaves(value, depth - 1))
        else:
            yield str(key)


def listing(names: Sequence[str]) -> str:
    """Names for a message, the first of very many."""
    return ", ".join([*map(repr, names[:SHOWN]), *(["…"] if len(names) > SHOWN else [])])


def _holds(cell: Any, name: str) -> bool:
    inner = name.split(".")[1:]
    return not inner or (isinstance(cell, Mapping) and inner[0] in cell)


def _is_solution(row: Mapping[str, Any], name: str) -> bool:
    """Whether the answer itself is a solution of several lines, as in GSM8K, which has no other."""
    cell = row[name]
    return name.casefold() == "answer" and isinstance(cell, str) and "\n" in cell.strip()
