"""Find the score in a judge's reply."""

from __future__ import annotations

import re

LOWEST, HIGHEST = 1.0, 5.0

_OPENING = r"(?:[\s*_`\"'$\[({<]|\\boxed){0,12}"
_CLOSING = r"[\s*_`\"'$\])}>]{0,12}"
_VERDICT = re.compile(
    rf"\bscore{_CLOSING}(?:\([^()\n]{{0,40}}\){_CLOSING})?(?::|=|\bis\b|\bof\b){_OPENING}"
    rf"(?P<number>[-+]?\d+(?:\.\d+)?)(?P<rest>{_CLOSING}(?:(?:/|out\s+of)\s*(?P<scale>\d+)|(?P<range>(?:-|–|—|to|or)\s*\d))?)",
    re.IGNORECASE,
)


def parse_score(reply: str) -> float | None:
    r"""The score of the last verdict ("Score: n") in a reply, or None if that is not one number from 1 to 5.

    Markdown, brackets, "=", "is", "/5" and "out of 5" are understood. None for another scale ("4/10"), for a range
    ("3-4"), for a number out of range ("10"), and for a reply without a verdict. A bad last verdict is not replaced by
    an earlier one: that may be a quotation of the attempt.

    >>> parse_score("The steps hold. **Score:** 4/5")
    4.0
    >>> parse_score("Score: 5? No, the last step is wrong.\nscore = 3.")
    3.0
    >>> [parse_score(reply) for reply in ("Score: 10", "Score: 3-4", "Score: 4/10", "Good work!")]
    [None, None, None, None]
    """
    verdicts = list(_VERDICT.finditer(reply))
    if not verdicts:
        return None
    last = verdicts[-1]
    if last["range"] is not None or last["scale"] not in (None, "5"):
        return None
    score = float(last["number"])
    return score if LOWEST <= score <= HIGHEST else None
