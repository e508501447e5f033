"""Finding the final answer that a response commits to."""

from __future__ import annotations

import re

STATEMENT = r"(?im)^.*\banswer[*_]*(?:\s+is\b|\s*[:=])[\s*_:]*(.*)$"
"""The rest of the line after the last "answer is" or "answer:" in it, Markdown marks skipped."""

_STATEMENT = re.compile(STATEMENT)
_CLOSING = re.compile(r"(?:[\s*`$]|[)\]]\\)+")  # of the reversed text: a search for the end is quadratic
_OPENING = re.compile(r"(?:[\s*`$]|\\[(\[])+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOXED = re.compile(r"\\boxed\s*(?=\{)")


def last_boxed(text: str) -> tuple[int, str] | None:
    r"""Where the last complete `\boxed{...}` of `text` starts, and what stands in it, braces balanced.

    >>> last_boxed(r"First \boxed{1}, so \boxed{\frac{1}{2}}.")
    (20, '\\frac{1}{2}')
    """
    closing = _matching_braces(text)
    for box in reversed(list(_BOXED.finditer(text))):
        if box.end() in closing:
            return box.start(), text[box.end() + 1 : closing[box.end()]].strip()
    return None


def last_statement(text: str) -> tuple[int, str] | None:
    """Where the answer of the last "answer is ..." or "answer: ..." starts, and the rest of its line.

    >>> last_statement("The answer is 3. No: the final answer is 4.")
    (41, '4.')
    """
    found = last_match(_STATEMENT, text)
    return (found.start(1), found[1].strip()) if found else None


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last of the non-overlapping matches."""
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def last_line(text: str) -> str:
    """The last line that is not blank, or an empty string."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def without_marks(answer: str) -> str:
    r"""`answer` without white space, Markdown and LaTeX math marks around it, and without a full stop after.

    >>> without_marks(r"**\( 42 \).**")
    '42'
    """
    opening = _OPENING.match(answer)
    inner = answer[opening.end() :] if opening else answer
    return _without_closing(_without_closing(inner).removesuffix("."))


def _without_closing(text: str) -> str:
    closing = _CLOSING.match(text[::-1])
    return text[: len(text) - closing.end()] if closing else text


def _matching_braces(text: str) -> dict[int, int]:
    """Position of each opening brace that is closed -> position of its closing one; escaped braces are text."""
    pairs: dict[int, int] = {}
    unclosed: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            unclosed.append(match.start())
        elif match[0] == "}" and unclosed:
            pairs[unclosed.pop()] = match.start()
    return pairs
