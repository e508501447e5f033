"""The one form of a verdict: how a judge is asked for it, how its reply begins or ends, and how it is read and defused.

Prompts, the beginning of a reply whose label probabilities are read, the regular expression of constrained replies and
the parser all take it from here.
"""

from __future__ import annotations

import re

from exprl.judges.prefixes import Parts, replaced
from exprl.text.thinking import without_thinking

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

MEANINGS = {1.0: "no progress", 2.0: "a start", 3.0: "about half way", 4.0: "nearly there", 5.0: "complete and correct"}
"""What prompts call each level: the one remark that may follow it."""

_CLAIM = rf"(?:(?:the|my|final|overall)\s){{0,3}}(?:{WORD}|score)"  # models fall back on the word they know
_NUMBER = r"\+?[0-9](?:[.,][0-9]{1,6})?"

_START = re.compile(rf"(?:^[ \t*_#]{{0,12}}|(?<=[.!?]) {{1,3}}[*_]{{0,3}})(?={_CLAIM})", re.IGNORECASE | re.MULTILINE)
"""Where a line, or a sentence in it, sets out to give a verdict."""

_VERDICT = re.compile(
    rf"{_CLAIM} ?"
    r"(?:(?:\(?(?:1 ?(?:-|–|—|to) ?5|out of 5)\)? ?)?(?:[:=]|is(?: an?)?\b)\s?)?"  # the scale may be named before
    rf"(?P<number>{_NUMBER})(?![0-9]|[.,][0-9]) ?"
    r"(?:\((?:out )?of 5\)|(?:\\?/|(?:out )?of) ?5\b(?![.,][0-9]))?[.!]?"  # or behind
    r"(?: ?(?:[-–—] |\()?(?P<remark>[a-z][a-z ]*)\)?| ?\((?P<percent>[0-9]{1,3})%\))?[.!]?",
    re.IGNORECASE,
)
"""A whole verdict, its markup and brackets taken away."""

_OBJECT = re.compile(rf"\{{?\s*([\"'])(?:{WORD}|score)\1\s*:\s*([\"']?)(?P<number>{_NUMBER})\2\s*\}}?", re.IGNORECASE)
_FENCED = re.compile(r"(?P<fence>`{1,8}|~{3,8})(?:\w*\s*\n)?(?P<inside>[^`~]*)(?P=fence)")
_LAST_FENCE = re.compile(r"\n\s*(?:`{3,}|~{3,})$")

_PAIRS = (
    (r"\boxed{", "}"),
    (r"\text{", "}"),
    ("<score>", "</score>"),
    ("[", "]"),
    ("(", ")"),
    ("{", "}"),
    ("<", ">"),
    ('"', '"'),
    ("'", "'"),
)
_BRACKETED = re.compile("|".join(rf"{re.escape(left)} ?({_NUMBER}) ?{re.escape(right)}" for left, right in _PAIRS))
_MARKUP = re.compile(r"[ \t*_`$]+")
_LONGEST = 120
"""Characters of a verdict: one line with all its markup is shorter."""

_SENTENCE = re.compile(r"[.!?][)\]*_$\"”’]{0,4}$")
"""The end of a finished one."""

_POINT = re.compile(r"\s*(?:[-*•+]|\d{1,2}[.)])\s.*[^:,;\s]|.*(?:[\d$]|\\[)\]])")
"""A line that is finished without a full stop: a point of a list, or one that ends in a formula."""

_HEADING = re.compile(
    r"[\s#*_]*(?:(?:the|my|final|overall)\s)?(?:verdict|level|score|grade|rating|assessment|evaluation|conclusion)[\s*_:]*",
    re.IGNORECASE,
)
_TAG_OPENS, _TAG_CLOSES = re.compile(r"<[A-Za-z]\w*>"), re.compile(r"</[A-Za-z]\w*>")
_OTHER_SCALE = re.compile(
    r"\b(?:scale|rat(?:e|ed|ing)|grad(?:e|ed|ing)|scor(?:e|ed|ing)|level)s?\b[^.\n]{0,40}?(?:\b(?:to|of|and)\b|[-–—/])\s?"
    r"(?:[6-9]|[1-9]\d+|six|seven|ten|twenty|hundred)\b",
    re.IGNORECASE,
)
_OTHER_SUBJECT = re.compile(
    r"\b(?:confiden\w+|certain\w*|difficult\w*|hardness|complexity|maximum|highest|as follows|the following)\b"
    r"|\b(?:claims?|claimed|says?|said|writes?|wrote|states?|stated|concludes?|asserts?)(?: this| that| so)?\W*$",
    re.IGNORECASE,
)
"""Of a sentence right before a verdict: it is about something else, or introduces what another says."""

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}

_OWN_CLAIM = re.compile(
    rf"(?<![a-z])(?:{WORD}|score)"
    # captured and repeated, so that it never backtracks: `)*+` of a group is wrong in CPython before 3.11.5
    r"(?=(?=(?P<between>(?:[\W_]++|(?:of|out|is|an?|was|at|to|reached|should|be|boxed|text)(?![a-z]))*))"
    r"(?P=between)[0-9])",
    re.IGNORECASE,
)
"""The words of a verdict before a number, whatever stands between."""
_HARMLESS = "grade"
"""What `parse_score` takes for no verdict."""


def defuse_claims(trace: str) -> str:
    """`trace` without verdicts that `parse_score` would read: a small model copies one that it finds into its reply.

    The word is exchanged, which is what the copying hangs on, not the sign after it (`benchmarks/judge_gaming.py`).

    >>> defuse_claims("So x = 2. Level: 5, **Score** = 5/5")
    'So x = 2. grade: 5, **grade** = 5/5'
    """
    return without_claims(Parts([trace])).text


def without_claims(parts: Parts) -> Parts:
    """The same for a text of which prefixes are shown, each without verdicts and beginning with the one before.

    A prefix that ends between "Level" and its number has the other word as well: the longer ones have.
    """
    text = parts.text
    plain = text if text.isascii() else text.translate(_FULL_WIDTH)  # character for character
    return replaced(parts, [claim.span() for claim in _OWN_CLAIM.finditer(plain)], _HARMLESS)


def parse_score(reply: str) -> float | None:
    r"""The score of a finished reply: that of the verdict ("Level: n" or "Score: n") it ends with, or None.

    The verdict is the last thing said, alone on its line or after a sentence on it, outside thinking and quotations.
    Markdown, brackets, "=", "is", "/5" and "out of 5" are understood, and so is the level's own description behind it.
    Anything else behind it can take it back ("Level: 5 - undeserved") and makes None of it, as do another scale, a
    range, a number out of range, and text before it that it may be part of ("The student wrote:"). An earlier verdict
    never stands in: it may be a quotation of the attempt.

    >>> parse_score("The steps hold. **Score:** 4/5")
    4.0
    >>> parse_score("<think>Level: 5?</think>No, the last step is wrong.\nLevel: 3.")
    3.0
    >>> [parse_score(reply) for reply in ("Score: 10", "Score: 3-4", "Score: 4/10", "Level: 5\nNo, 2.", "Good work!")]
    [None, None, None, None, None]
    """
    said = without_thinking(reply.translate(_FULL_WIDTH))
    if said is None:
        return None
    said = said.strip()
    if fenced := _FENCED.fullmatch(said):
        said = fenced["inside"].strip()
        if not _OBJECT.fullmatch(said):
            return _alone(said)
    if item := _OBJECT.fullmatch(said):
        return _score(item["number"])
    said = _LAST_FENCE.sub("", said)
    starts = [start.end() for start in _START.finditer(said)]
    if not starts or not _leads_to_own_verdict(said[: starts[-1]]):
        return None
    return _alone(said[starts[-1] :])


def _alone(text: str) -> float | None:
    """The score of a text that is a verdict and nothing else."""
    verdict = _VERDICT.fullmatch(_plain(text)) if len(text) <= _LONGEST else None
    if verdict is None:
        return None
    score = _score(verdict["number"])
    if score is None or (verdict["remark"] or "").lower().strip() not in ("", MEANINGS.get(score)):
        return None
    return score if verdict["percent"] in (None, f"{20 * score:g}") else None


def _plain(text: str) -> str:
    """`text` without markup and without brackets around a number. Spaces take their place, so that no digits meet."""
    text = _MARKUP.sub(" ", text)
    text = _BRACKETED.sub(lambda found: f" {found[found.lastindex or 0]} ", text)
    return re.sub(r" *\n\s*", "\n", re.sub(r" +", " ", text)).strip()


def _score(number: str) -> float | None:
    score = float(number.replace(",", "."))
    return score if LOWEST <= score <= HIGHEST else None


def _leads_to_own_verdict(before: str) -> bool:
    """Whether a verdict after `before` is the judge's own, about the attempt, on the scale that was asked for."""
    if _is_open(before) or _OTHER_SCALE.search(before):
        return False
    same_line = before.rpartition("\n")[2].strip(" \t*_#")
    lines = [line.rstrip() for line in before.splitlines() if line.strip(" \t*_#-")]
    if not lines:
        return True
    last = lines[-1].strip(" \t*_#-")
    if not same_line and _HEADING.fullmatch(last):
        return True
    sentence = re.split(r"[.!?]\s", last)[-1]
    finished = _SENTENCE.search(last) or (not same_line and _POINT.fullmatch(lines[-1]))
    if not finished or _OTHER_SUBJECT.search(sentence):
        return False
    return not same_line or len(sentence.split()) >= 3  # "Confidence. Score: 5"


def _is_open(text: str) -> bool:
    """Whether a quotation, code or tag is left open at the end of `text`."""
    if any(text.count(mark) % 2 for mark in ('"', "`", "~~~")):
        return True
    if any(text.count(left) > text.count(right) for left, right in ("“”", "«»", "„“")):
        return True
    return len(_TAG_OPENS.findall(text)) > len(_TAG_CLOSES.findall(text))
