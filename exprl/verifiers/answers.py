"""Finding the final answer that a response commits to: one place for every verifier."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from exprl.text.thinking import without_thinking
from exprl.verifiers.commitment import stands_by_box, stands_by_statement

_KEYWORD = r"(?:answer|(?:correct|right|best)\s+(?:option|choice))[*_]*"
_ASSIGNS = r"(?:(?:\s+to\b[^.\n]{0,80}?)?\s+(?:is|would\s+be|should\s+be|must\s+be|equals|becomes)\b|\s*[:=])"
STATEMENT = rf"(?im)^.*(?<![a-z]){_KEYWORD}{_ASSIGNS}[\s*_:]*(.*)$"
"""The rest of the line after the last "answer is" or "answer:" in it, Markdown marks skipped."""

_STATEMENT = re.compile(STATEMENT)
_HEADING = re.compile(r"(?im)^[#*_ \t]*(?:(?:the|my)\s+)?(?:final\s+)?answer[#*_.: \t]*\n[\s*_]*(.*)$")
NUMBER_LINE = re.compile(r"(?m)^####[ \t]*((?:\\?\$)?[-+]?\d.*)$")  # a number: `####` is a Markdown heading too
_TAG = re.compile(r"(?i)<(/?)answer>")
_DISPLAY = re.compile(r"(\$\$|\\\[|\\begin\{(?:equation|align|aligned|gather|displaymath|math)\*?\})")
_CLOSING = re.compile(r"(?:[\s*`$]|[)\]]\\)+")  # of the reversed text: a search for the end is quadratic
_OPENING = re.compile(r"(?:[\s*`$]|\\[(\[]|####)+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)")
_SPACED_BOX = re.compile(rf"\s*{_BOXED.pattern}")
_ONLY_SPACE = re.compile(r"\s*+")
_UNBRACED = re.compile(
    r"\\boxed(?![a-zA-Z{])\s*(?=[^\s{])([^\s{}$]+(?:\{[^{}\n]*\})*)|\\boxed(\\[a-zA-Z]+(?:\{[^{}\n]*\})*)"
)
_UNCLOSED = re.compile(r"\\boxed\s*\{([^\n]*)")


class Stated(NamedTuple):
    """One place where a response states an answer: where that starts, the answer as it stands there, and what it is."""

    start: int
    text: str
    kind: Literal["box", "statement", "line"]


def stated_answers(response: str) -> tuple[Stated, ...]:
    r"""What `response` states as its answer, latest first: its last box, and its last statement in words.

    At the end comes the last line, or the display mathematics that ends the response: it stands in for an answer where
    nothing else does. Nothing is stated by a response that never comes out of its thinking, and nothing before the
    latest place where it takes back, denies or leaves open what it states: an earlier answer is not what it ends with.

    >>> [stated.text for stated in stated_answers(r"<think>Answer: 1</think>The answer is 2, \boxed{3}")]
    ['3', '2, \\boxed{3}', 'The answer is 2, \\boxed{3}']
    >>> stated_answers("<think>The answer is 2")
    ()
    >>> stated_answers(r"The answer is 5, or maybe 6.")
    ()
    """
    text = without_thinking(response)
    if text is None:
        return ()
    places = [
        *(Stated(start, answer, "box") for start, answer in _found(last_box(text))),
        *(Stated(start, answer, "statement") for start, answer in _found(last_statement(text))),
    ]
    kept: list[Stated] = []
    for place in sorted(places, reverse=True):
        if not _stands_by(text, place):
            return tuple(kept)
        kept.append(place)
    return *kept, Stated(0, last_block(text), "line")


def last_box(text: str) -> tuple[int, str] | None:
    r"""Like `last_boxed`, and `\boxed5` too: TeX takes one token where no brace follows.

    A box that is never closed counts, to the end of its line, where no other box does.
    """
    boxes = _found(last_boxed(text))
    if match := last_match(_UNBRACED, text):
        boxes.append((match.start(), (match[1] or match[2]).rstrip(".,;")))
    if not boxes and (match := last_match(_UNCLOSED, text)):
        boxes.append((match.start(), match[1].strip()))
    return max(boxes, default=None)


def last_boxed(text: str) -> tuple[int, str] | None:
    r"""Where the last complete `\boxed{...}` of `text` starts, and what stands in it, braces balanced.

    A box within a box is no answer of its own; where it is all that there is, what stands in it is.

    >>> last_boxed(r"First \boxed{1}, so \boxed{\frac{1}{2}}.")
    (20, '\\frac{1}{2}')
    """
    closing = _matching_braces(text)
    outer: list[re.Match[str]] = []
    for box in _BOXED.finditer(text):
        if box.end() in closing and (not outer or box.start() > closing[outer[-1].end()]):
            outer.append(box)
    if not outer:
        return None
    start, end = outer[-1].end() + 1, closing[outer[-1].end()]
    while (inner := _SPACED_BOX.match(text, start)) and inner.end() in closing:
        if not _ONLY_SPACE.fullmatch(text, closing[inner.end()] + 1, end):
            break
        start, end = inner.end() + 1, closing[inner.end()]
    return outer[-1].start(), text[start:end].strip()


def last_statement(text: str) -> tuple[int, str] | None:
    """Where the answer of the last "answer is ..." or "answer: ..." starts, and the rest of its line.

    So does what follows a heading "Answer" or `####`, and what stands in `<answer>` tags. Display mathematics that
    begins on the line is taken to its end.

    >>> last_statement("The answer is 3. No: the final answer is 4.")
    (41, '4.')
    """
    found = [last_match(pattern, text) for pattern in (_STATEMENT, _HEADING, NUMBER_LINE)]
    statements = [(match.start(1), match[1].strip()) for match in found if match]
    statements += _found(_last_tagged(text))
    if not statements:
        return None
    start, line = max(statements)
    return start, _display_at(text, start) or line


def _last_tagged(text: str) -> tuple[int, str] | None:
    """What the last `</answer>` closes; tag by tag, for a search for each end is quadratic in tags without one."""
    start, found = None, None
    for tag in _TAG.finditer(text):
        if tag[1] and start is not None:
            found, start = (start, text[start : tag.start()].strip()), None
        elif not tag[1] and start is None:
            start = tag.end()
    return found


def last_block(text: str) -> str:
    """The display mathematics that `text` ends with, or else its last line that is not blank."""
    line = last_line(text)
    ends = re.fullmatch(r"\$\$|\\\]|\\end\{[a-z]+\*?\}", line)
    opening = last_match(_DISPLAY, text.rstrip()[: -len(line)]) if ends else None
    return text[opening.start() :].strip() if opening else line


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


def _stands_by(text: str, place: Stated) -> bool:
    before = text[: place.start]
    if place.kind == "statement":
        return stands_by_statement(before, text[place.start :])
    command = re.compile(r"\\[a-z]*box(?:ed)?").match(text, place.start)  # in which an x may stand
    end = text.find(place.text, command.end() if command else place.start) + len(place.text)
    return stands_by_box(before, place.text, re.sub(r"^(?:\s*\})+", "", text[end:]))


def _found(place: tuple[int, str] | None) -> list[tuple[int, str]]:
    return [place] if place is not None else []


def _without_closing(text: str) -> str:
    closing = _CLOSING.match(text[::-1])
    return text[: len(text) - closing.end()] if closing else text


def _display_at(text: str, start: int) -> str | None:
    """The display mathematics that begins at `start`, marks included; None without one, or without its end."""
    opening = _DISPLAY.match(text, start)
    if opening is None:
        return None
    closer = {"$$": "$$", r"\[": r"\]"}.get(opening[0]) or opening[0].replace("begin", "end")
    end = text.find(closer, opening.end())
    return text[start : end + len(closer)] if end >= 0 else None


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
