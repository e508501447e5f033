"""Numbers as sentences have them."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """So many of what a regular noun says.

    >>> counted(1, "step"), counted(0, "step"), counted(12, "held-out problem")
    ('1 step', '0 steps', '12 held-out problems')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
