"""From prompts to judgements: the judge writes a rationale, or only the probabilities of its scores are read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

from exprl.judges.backends.base import Query, Reply
from exprl.judges.prompting import JudgePrompt, read_prompt
from exprl.judges.verdict import HIGHEST, INSTRUCTION, LABELS, LINE_LENGTH, LOWEST, PATTERN, REPLY_START, parse_score
from exprl.types import Judgement

Scoring = Literal["rationale", "expected"]

_SCORE_LINE = LINE_LENGTH + 3  # with the end of the sentence before, the line break, and the end-of-sequence token

SHORTEST_CONSTRAINED = 32
"""Tokens a constrained rationale takes at least, so that there is room for some text before its score."""


_CUT_OFF = "[cut off before its end]"
_ROUNDING = 1e-2
"""By how much the sum of half-precision probabilities may pass 1."""


def query_for(prompt: JudgePrompt, scoring: Scoring, max_new_tokens: int, *, constrained: bool = False) -> Query:
    """How the judge is asked: to write, greedily, and end with a score (the paper's way), or for "1".."5" alone."""
    if scoring == "rationale":
        pattern = rationale_pattern(max_new_tokens) if constrained else ""
        return Query(prompt=prompt, max_new_tokens=max_new_tokens, pattern=pattern)
    return Query(prompt=prompt, labels=LABELS, reply_start=REPLY_START)


@cache
def reply_instructions(scoring: Scoring) -> str:
    """What the prompt says of the reply's form."""
    return read_prompt(scoring).replace("{verdict}", INSTRUCTION)


def rationale_pattern(max_new_tokens: int) -> str:
    r"""A regular expression of replies that end in a score and fit `max_new_tokens`, however they become tokens.

    The text ends a sentence and has no quotation marks: the parser takes no verdict inside what is left open.
    A token is at least a character of the printable ASCII the text may have, so its characters are bounded instead.

    >>> rationale_pattern(110)
    '[ !#-_a-~\\n]{1,99}[.!?]\\nLevel: [1-5]'
    """
    return rf"[ !#-_a-~\n]{{1,{max_new_tokens - _SCORE_LINE}}}[.!?]\n{PATTERN}"


def judgement_of(reply: Reply, scoring: Scoring, min_mass: float) -> Judgement:
    """The score a rationale ends with, or the expected score under the probabilities of "1".."5"."""
    return _read(reply) if scoring == "rationale" else _expect(reply, min_mass)


def expected_score(probabilities: Sequence[float]) -> float:
    """Sum of i p_i over sum of p_i for i = 1..5.

    >>> expected_score([0.0, 0.0, 0.1, 0.1, 0.0])
    3.5
    """
    mass = sum(probabilities)
    mean = sum(score * p for score, p in enumerate(probabilities, start=1)) / mass
    return min(max(mean, LOWEST), HIGHEST)  # rounding alone can pass an end


def _read(reply: Reply) -> Judgement:
    if reply.status != "ok":
        return Judgement(score=None, status=reply.status, rationale=reply.text)
    if not reply.text.strip():
        return Judgement(score=None, status="empty")
    if not reply.finished:
        return Judgement(score=None, status="unparseable", rationale=f"{reply.text} {_CUT_OFF}")
    score = parse_score(reply.text)
    return Judgement(score=score, status="unparseable" if score is None else "ok", rationale=reply.text)


def _expect(reply: Reply, min_mass: float) -> Judgement:
    if reply.status != "ok":
        return Judgement(score=None, status=reply.status, rationale=reply.text)
    if not _are_probabilities(reply.probabilities):
        note = f"the judge's model gives no probabilities of its {len(LABELS)} scores, but {reply.probabilities}"
        return Judgement(score=None, status="error", rationale=note)
    mass = sum(reply.probabilities)
    shown = " ".join(f"{label}:{p:.3f}" for label, p in zip(LABELS, reply.probabilities, strict=True))
    if mass <= 0.0 or mass < min_mass:
        note = f"scores have {mass:.2g} of the probability, less than min_mass {min_mass:g} ({shown})"
        return Judgement(score=None, status="unparseable", rationale=note)
    given = tuple(map(float, reply.probabilities))
    return Judgement(score=expected_score(given), rationale=shown, probabilities=given)


def _are_probabilities(values: Sequence[float]) -> bool:
    """One for each label, none NaN or outside [0, 1], together at most 1."""
    return (
        len(values) == len(LABELS) and all(0.0 <= p <= 1.0 + _ROUNDING for p in values) and sum(values) <= 1 + _ROUNDING
    )
