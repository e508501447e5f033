"""Whether what a program gave is what its tests expect; decided outside of any sandbox, on plain values alone."""

from __future__ import annotations

import math
import re
from typing import Any

TOLERANCE = 1e-6
"""Of floating-point numbers, relative and absolute (EvalPlus)."""

_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=e))(e[+-]?\d+)?", re.IGNORECASE)


def same_output(printed: str, expected: str) -> bool:
    r"""Whether a program printed what is expected: line by line, white space aside.

    Blank lines at either end and the width of white space are ignored. Words must be the same, whole numbers too; where
    a number with a decimal point is expected, one within `TOLERANCE` is as good.

    >>> same_output("1  2\n\n", "1 2")
    True
    >>> same_output("0.3333333\n", "0.33333331"), same_output("7.0", "7")
    (True, False)
    """
    found, wanted = _lines(printed), _lines(expected)
    return len(found) == len(wanted) and all(map(_same_line, found, wanted))


def same_value(value: Any, expected: Any) -> bool:
    """Whether a returned value, as it was read back, equals the expected JSON value.

    A tuple stands for a list, and floats are equal within `TOLERANCE`; nan is nan. All else is Python's own equality of
    plain values. Sets, bytes and complex numbers equal no JSON value.

    >>> same_value((1, 0.1 + 0.2), [1, 0.3]), same_value({"a": 1}, {"a": 1.0}), same_value({1}, [1])
    (True, True, False)
    """
    if isinstance(value, list | tuple) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        named = {_key(key): item for key, item in value.items()}
        return named.keys() == expected.keys() and all(same_value(named[key], expected[key]) for key in expected)
    if isinstance(value, float) or isinstance(expected, float):
        return isinstance(value, int | float) and isinstance(expected, int | float) and _close(value, expected)
    return bool(value == expected)


def _key(key: Any) -> Any:
    """JSON's keys are texts, so a number as a key stands for its text."""
    return str(key) if isinstance(key, int | float) and not isinstance(key, bool) else key


def _close(value: float, expected: float) -> bool:
    try:
        both_nan = math.isnan(value) and math.isnan(expected)
        return both_nan or math.isclose(value, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:  # a whole number beyond what a float holds
        return value == expected


def _lines(text: str) -> list[list[str]]:
    lines = [line.split() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    first = next((number for number, line in enumerate(lines) if line), 0)
    return lines[first:]


def _same_line(found: list[str], wanted: list[str]) -> bool:
    return len(found) == len(wanted) and all(map(_same_word, found, wanted))


def _same_word(found: str, wanted: str) -> bool:
    if found == wanted:
        return True
    if _DECIMAL.fullmatch(wanted) is None:
        return False
    try:
        return _close(float(found), float(wanted))
    except ValueError:
        return False
