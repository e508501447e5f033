"""Whether what a program gave is what its tests expect; decided outside of any sandbox, on plain values alone."""

from __future__ import annotations

import json
import math
import re
from typing import Any

TOLERANCE = 1e-6
"""Of floating-point numbers, relative and absolute (EvalPlus)."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
"""As programs print numbers; Python's own `float` also takes underscores, other scripts' digits and `nan`."""


def same_output(printed: str, expected: str) -> bool:
    r"""Whether a program printed what is expected: line by line, white space aside.

    Only `\n` ends a line, a `\r` before it is white space. Blank lines at either end and the width of white space are
    ignored. Words must be the same, whole numbers too; where
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

    A tuple stands for a list; where a float is expected, a number within `TOLERANCE` is as good, and nan is nan. A
    whole number is that number, as int or float; true and false are no numbers. Keys that are no texts stand for the
    texts that JSON makes of them, but no two for the same. Sets, bytes and complex numbers equal no JSON value.

    >>> same_value((1, 0.1 + 0.2), [1, 0.3]), same_value({"a": 1}, {"a": 1.0}), same_value({1}, [1])
    (True, True, False)
    """
    if isinstance(value, list | tuple) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        named = {_key(key): item for key, item in value.items()}
        alike = len(named) == len(value) and named.keys() == expected.keys()
        return alike and all(same_value(named[key], expected[key]) for key in expected)
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(expected, float):
        return isinstance(value, int | float) and _close(value, expected)
    return not isinstance(value, complex) and bool(value == expected)


def _key(key: Any) -> Any:
    """JSON's keys are texts, so any other that JSON knows stands for its text."""
    return json.dumps(key) if key is None or isinstance(key, float | bool) or _short(key) else key


def _short(key: Any) -> bool:
    """Whether it is a whole number that Python writes at all."""
    return isinstance(key, int) and key.bit_length() < 2**13


def _close(value: float, expected: float) -> bool:
    try:
        both_nan = math.isnan(value) and math.isnan(expected)
        return both_nan or math.isclose(value, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:  # a whole number beyond what a float holds
        return value == expected


def _lines(text: str) -> list[list[str]]:
    lines = [line.split() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    first = next((number for number, line in enumerate(lines) if line), 0)
    return lines[first:]


def _same_line(found: list[str], wanted: list[str]) -> bool:
    return len(found) == len(wanted) and all(map(_same_word, found, wanted))


def _same_word(found: str, wanted: str) -> bool:
    if found == wanted:
        return True
    numbers = _NUMBER.fullmatch(wanted) is not None and _NUMBER.fullmatch(found) is not None
    return numbers and not wanted.lstrip("+-").isdecimal() and _close(float(found), float(wanted))
