"""Questions to a judge's model that are answered by yes or no: one token, of which the probability is read."""

from __future__ import annotations

from exprl.judges.backends.base import Query, Reply
from exprl.judges.prompting import JudgePrompt

LABELS = ("Y", "N")


def yes_no(prompt: JudgePrompt, word: str) -> Query:
    """The query for the probabilities of yes and no right after `word`, as `instruction` says it in the prompt."""
    return Query(prompt=prompt, labels=LABELS, reply_start=f"{word}: ")


def instruction(word: str) -> str:
    """How prompts say what to reply.

    >>> instruction("Answer")
    '"Answer: Y" for yes or "Answer: N" for no'
    """
    return f'"{word}: {LABELS[0]}" for yes or "{word}: {LABELS[1]}" for no'


def probability_of_yes(reply: Reply, min_mass: float) -> float | None:
    """Of yes against no, in [0, 1]; None where the reply failed, or both together are less likely than `min_mass`."""
    if reply.status != "ok" or len(reply.probabilities) != len(LABELS):
        return None
    mass = sum(reply.probabilities)
    # `not >=`: NaN is no answer either
    if not mass >= min_mass or not mass > 0.0:
        return None
    return min(max(reply.probabilities[0] / mass, 0.0), 1.0)
