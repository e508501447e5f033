"""From prompts to judgements: the judge writes a rationale, or only the probabilities of its scores are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from exprl.judges.backend import JudgeBackend, Reply
from exprl.judges.parsing import HIGHEST, LOWEST, parse_score
from exprl.judges.prompting import JudgePrompt
from exprl.progress import Advance
from exprl.types import Judgement

Scoring = Literal["rationale", "expected"]

LABELS = ("1", "2", "3", "4", "5")
REPLY_START = "Score: "


def by_rationale(
    backend: JudgeBackend, prompts: Sequence[JudgePrompt], max_new_tokens: int, advance: Advance
) -> list[Judgement]:
    """Let the judge write, greedily, and read the score it ends with (the paper's way)."""
    return [_read(reply) for reply in backend.complete(prompts, max_new_tokens, advance)]


def by_expectation(
    backend: JudgeBackend, prompts: Sequence[JudgePrompt], min_mass: float, advance: Advance
) -> list[Judgement]:
    """The expected score under the judge's probabilities of "1".."5", from one forward pass and no decoding."""
    replies = backend.label_probabilities(prompts, LABELS, REPLY_START, advance)
    return [_expect(reply, min_mass) for reply in replies]


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
    score = parse_score(reply.text)
    return Judgement(score=score, status="unparseable" if score is None else "ok", rationale=reply.text)


def _expect(reply: Reply, min_mass: float) -> Judgement:
    if reply.status != "ok":
        return Judgement(score=None, status=reply.status, rationale=reply.text)
    mass = sum(reply.probabilities)
    shown = " ".join(f"{label}:{p:.3f}" for label, p in zip(LABELS, reply.probabilities, strict=True))
    if mass <= 0.0 or mass < min_mass:
        note = f"scores have {mass:.2g} of the probability, less than min_mass {min_mass:g} ({shown})"
        return Judgement(score=None, status="unparseable", rationale=note)
    return Judgement(score=expected_score(reply.probabilities), rationale=shown)
