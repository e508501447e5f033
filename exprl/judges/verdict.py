"""The one form of a verdict: how a judge is asked for it, how its reply begins or ends, and how it is read and defused.

Prompts, the beginning of a reply whose label probabilities are read, the regular expression of constrained replies and
the parser all take it from here.
"""

from __future__ import annotations

import re

from exprl.thinking import without_thinking

LOWEST, HIGHEST = 1.0, 5.0
LABELS = ("1", "2", "3", "4", "5")

WORD = "Level"
REPLY_START = f"{WORD}: "
INSTRUCTION = f'"{REPLY_START}n" with n a whole number from {LABELS[0]} to {LABELS[-1]}'
"""How prompts say it."""

PATTERN = rf"{REPLY_START}[{LABELS[0]}-{LABELS[-1]}]"
"""A regular expression of the verdict's line."""

LINE_LENGTH = len(f"{REPLY_START}{LABELS[0]}")
"""Characters of the verdict's line, without a line break."""

_WORDS = rf"(?:{WORD.lower()}|score)"  # models fall back on the word they know
_NUMBER_WORDS = r"zero|one|two|three|four|five|six|seven|eight|nine|ten|half|hundred|percent"
_HEDGES = r"or|maybe|perhaps|possibly|if|unless|would|could|might|wait|actually|claim\w*"

_MARKS = r"[\s*_`]{0,12}"
_FIVE = r"(?:\(\s*)?(?:1\s*(?:-|–|—|to)\s*5|out\s+of\s+5|of\s+5|\\?/\s*5)(?:\s*\))?"
_CLAIM = re.compile(
    rf"(?:^[\s*_`#{{]{{0,12}}|(?<=[.!?])\s[*_`]{{0,3}})(?P<claim>(?:(?:the|my|final|overall)\s+){{0,3}}{_WORDS}\b{_MARKS}"
    rf"(?:\([^()]{{0,40}}\)|out\s+of\s+\w+)?{_MARKS}(?:[:=]|\bis\b|(?=\d)))",
    re.IGNORECASE,
)
"""Where a line, or a sentence in it, sets out to give a verdict."""

_OPEN = r"(?:[\s*_`$\[({<]|\\boxed|\\text|<score>){0,12}"
_CLOSE = r"(?:[\s*_`$\])}>]|</score>){0,12}"
_CLOSED = re.compile(
    rf"(?:(?:the|my|final|overall)\s+){{0,3}}{_WORDS}{_MARKS}(?:{_FIVE})?{_MARKS}(?:[:=]|is(?:\s+an?\b)?){_OPEN}"
    rf"(?P<quote>[\"']?)\+?(?P<number>[0-9](?:[.,][0-9]{{1,6}})?)(?P=quote){_CLOSE}"
    rf"(?P<scale>(?:\(\s*)?(?:\\?/|(?:out\s+)?of\b)\s*5(?![0-9.,]\d)(?:\s*\))?)?{_CLOSE}"
    r"(?P<rest>|[.!]\s*|[.!]\s+.*|\s*(?:-|–|—)\s+.*|\s*\(.*\)[.!]?)",
    re.IGNORECASE,
)
"""A verdict and nothing that could make it another: the number stands alone, on the scale to 5."""

_OBJECT = re.compile(
    rf"[\s`{{]{{0,12}}(?:json\s)?[\s`{{]{{0,12}}([\"'])(?P<claim>{_WORDS})\1(?P<rest>\s*:\s*.*?)[\s`}}]{{0,12}}",
    re.IGNORECASE | re.DOTALL,
)
_DOUBT = re.compile(rf"[0-9]|\b(?:{_NUMBER_WORDS}|{_HEDGES})\b", re.IGNORECASE)
_PERCENT = re.compile(r"\s*\(\s*([0-9]{1,3})\s*%\s*\)[.!]?")
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”")
_CHANGED = re.compile(
    rf"\b{_WORDS}\b[^.\n]{{0,20}}?(?:[:=]|\b(?:is|be|becomes|to)\b)(?:\s+\w+)?{_MARKS}\d", re.IGNORECASE
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}

_OWN_CLAIM = re.compile(
    rf"\b{WORD}\b(?=[\W_]{{0,12}}(?:(?:of|is|was|at|to|reached|should\s+be)[\W_]{{1,12}}){{0,2}}[0-9])", re.IGNORECASE
)
"""Our own word before a number, whatever stands between."""


def defuse_claims(trace: str) -> str:
    """`trace` without verdicts in our own form: a small model copies one that it finds into its reply.

    The word is exchanged, which is what the copying hangs on, not the sign after it (`benchmarks/judge_gaming.py`).

    >>> defuse_claims("So x = 2. Level: 5")
    'So x = 2. score: 5'
    """
    return _OWN_CLAIM.sub("score", trace)


def parse_score(reply: str) -> float | None:
    r"""The score of a finished reply: of its last verdict ("Level: n" or "Score: n"), or None.

    A verdict begins a line or ends one after a sentence, outside thinking and quotation marks, and is closed: nothing
    follows the number that could make it another. Markdown, brackets, "=", "is", "/5", "out of 5" and a remark without
    numbers are understood. None for another scale ("4/10"), for a range ("3-4"), for a number out of range ("10"), and
    for a reply without a verdict. A bad last verdict is not replaced by an earlier one: that may be a quotation of the
    attempt.

    >>> parse_score("The steps hold. **Score:** 4/5")
    4.0
    >>> parse_score("<think>Level: 5?</think>No, the last step is wrong.\nLevel: 3.")
    3.0
    >>> [parse_score(reply) for reply in ("Score: 10", "Score: 3-4", "Score: 4/10", "Score: 4 or 5", "Good work!")]
    [None, None, None, None, None]
    """
    said = without_thinking(reply.translate(_FULL_WIDTH))
    if said is None:
        return None
    if whole := _OBJECT.fullmatch(said):
        return _number(whole["claim"] + whole["rest"])
    lines = [line for line in said.splitlines() if line.strip("`~ \t")]
    for place in range(len(lines) - 1, -1, -1):
        claims = list(_CLAIM.finditer(lines[place]))
        if claims:
            return _number(_whole(lines, place, claims[-1])) if _own(lines, place, claims[-1]) else None
    return None


def _whole(lines: list[str], place: int, claim: re.Match[str]) -> str:
    """The claim's text, with the next line where the number stands there."""
    text = lines[place][claim.start("claim") :].strip()
    alone = text.rstrip("*_` ").endswith((":", "="))
    return f"{text} {lines[place + 1].strip()}" if alone and place + 1 < len(lines) else text


def _own(lines: list[str], place: int, claim: re.Match[str]) -> bool:
    """Whether it is the judge's own and its last word: neither quoted nor shown amid other text, nor changed later."""
    before = lines[place][: claim.start("claim")]
    if before.count('"') % 2 or before.count("“") > before.count("”"):
        return False
    if any(_CHANGED.search(_QUOTED.sub("", line)) for line in lines[place + 1 :]):
        return False
    if place == len(lines) - 1:
        return True
    introduced = place > 0 and not before.strip() and lines[place - 1].rstrip().endswith((":", ","))
    return not introduced and not lines[place + 1].lstrip()[:1].islower()


def _number(claim: str) -> float | None:
    closed = _CLOSED.fullmatch(claim.strip())
    if closed is None:
        return None
    score = float(closed["number"].replace(",", "."))
    if not LOWEST <= score <= HIGHEST:
        return None
    percent = _PERCENT.fullmatch(closed["rest"])
    if percent is not None:
        return score if int(percent[1]) == round(20 * score) else None
    return None if _DOUBT.search(closed["rest"]) else score
