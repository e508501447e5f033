"""The score-per-token curves of stored rollouts, a line of JSON each."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from exprl.rollouts.stored import Label, StoredGroup
from exprl.types import Curve, Rollout, SegmentRewards


@dataclass(frozen=True, kw_only=True)
class RolloutCurve:
    """A rollout's curve, with what it is compared with.

    Attributes:
        step: of the run.
        problem_id: what is attempted.
        domain: the problem's.
        place: which of the problem's rollouts of the step it is, from 0.
        tokens: T.
        curve: the judge's scores of prefixes.
        segments: the K tokens at which segments end.
        first_error: how many tokens stand before the one in which the first wrong step begins; None: not known.
        label: what a person, or a verifier, says of the rollout.
    """

    step: int
    problem_id: str
    domain: str
    place: int
    tokens: int
    curve: Curve
    segments: tuple[int, ...]
    first_error: int | None
    label: Label

    def line(self) -> str:
        """As JSON."""
        node = {
            "step": self.step,
            "problem_id": self.problem_id,
            "domain": self.domain,
            "rollout": self.place,
            "tokens": self.tokens,
            "ends": self.curve.ends,
            "scores": self.curve.scores,
            "segments": self.segments,
            "first_error": self.first_error,
            "correct": self.label.correct,
            "author": self.label.author,
        }
        return json.dumps(node)


def curves_of(rollouts: Mapping[int, Sequence[StoredGroup]]) -> Iterator[RolloutCurve]:
    """Those of all rollouts that have one, step by step."""
    for step in rollouts:
        for group in rollouts[step]:
            labels = group.labels or (Label(),) * len(group.rollouts)
            rewards = group.rewards or ()
            for place, (rollout, reward, label) in enumerate(zip(group.rollouts, rewards, labels, strict=False)):
                if isinstance(reward, SegmentRewards) and reward.curve is not None:
                    yield RolloutCurve(
                        step=step,
                        problem_id=group.problem_id,
                        domain=group.domain,
                        place=place,
                        tokens=len(rollout),
                        curve=reward.curve,
                        segments=tuple(segment.end for segment in reward.segments),
                        first_error=tokens_before(rollout, label.first_error),
                        label=label,
                    )


def tokens_before(rollout: Rollout, character: int | None) -> int | None:
    """How many tokens end at or before a character of the text."""
    return None if character is None else bisect_right(rollout.token_ends, character)
