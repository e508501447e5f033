"""Labelled rollouts with a judge's scores, as `calibration` reads them; and where the judge sees the first error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exprl.evaluation.bootstrap import ROUNDING
from exprl.rollouts.stored import Label, StoredGroup
from exprl.types import Rollout, RolloutReward, SegmentRewards

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Graded:
    """A labelled rollout and the Likert scores of its prefixes, the last one that of the whole.

    Attributes:
        place: which rollout of the source it is, whichever judge graded it.
        problem_id: of the problem.
        domain: likewise.
        text: what was written.
        correct: the label; None where nobody said.
        scores: [K], one a segment; one alone for a reward of whole rollouts.
        first_wrong: the segment, from 0, in which the first wrong step begins; None where none is known.
    """

    place: int
    problem_id: str
    domain: str
    text: str
    correct: bool | None
    scores: tuple[float, ...]
    first_wrong: int | None


def graded(groups: Iterable[StoredGroup]) -> tuple[list[Graded], int]:
    """The labelled rollouts with scores, and how many labelled ones have none: a judgement failed, or none was made.

    A reward on prefixes is meant: of scores of segments alone the last one is not that of the whole.
    """
    found: list[Graded] = []
    failed, place = 0, -1
    for group in groups:
        labels = group.labels or (Label(),) * len(group.rollouts)
        rewards = group.rewards or (None,) * len(group.rollouts)
        for rollout, reward, label in zip(group.rollouts, rewards, labels, strict=True):
            place += 1
            if label.correct is None or reward is None:
                continue
            scores = [judgement.score for judgement in reward.judgements]
            if not scores or any(score is None for score in scores):
                failed += 1
                continue
            found.append(
                Graded(
                    place=place,
                    problem_id=group.problem_id,
                    domain=group.domain,
                    text=rollout.text,
                    correct=label.correct,
                    scores=tuple(score for score in scores if score is not None),
                    first_wrong=_segment_of(label.first_error, rollout, reward),
                )
            )
    return found, failed


def _segment_of(first_error: int | None, rollout: Rollout, reward: RolloutReward | SegmentRewards) -> int | None:
    """The segment whose text reaches beyond the character at which the error begins."""
    if first_error is None or not isinstance(reward, SegmentRewards):
        return None
    ends = [rollout.token_ends[segment.end - 1] for segment in reward.segments]
    return next((number for number, end in enumerate(ends) if end > first_error), None)


# ------------------------------------------------------------------ process judges


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    """Every prefix of every rollout of which it is known whether it holds an error.

    Attributes:
        problems: [M] ids.
        scores: [M].
        positions: [M] how much of the rollout it is, as a share of the segments.
        wrong: [M] whether the prefix contains the first error.
    """

    problems: tuple[str, ...]
    scores: Array
    positions: Array
    wrong: npt.NDArray[np.bool_]


def prefixes_of(rollouts: Sequence[Graded]) -> Prefixes:
    """Those of right rollouts, and of wrong ones whose first error is known."""
    known = [one for one in rollouts if one.correct or one.first_wrong is not None]
    rows = [
        (
            one.problem_id,
            score,
            (number + 1) / len(one.scores),
            one.first_wrong is not None and number >= one.first_wrong,
        )
        for one in known
        for number, score in enumerate(one.scores)
    ]
    problems, scores, positions, wrong = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Prefixes(
        problems=problems,
        scores=np.array(scores, dtype=float),
        positions=np.array(positions, dtype=float),
        wrong=np.array(wrong, dtype=bool),
    )


NOTHING_RIGHT = 1.5
"""The score of the prefix before the first segment: one below it rounds to 1, as that of nothing written is."""


def localisation_error(scores: Sequence[float], first_wrong: int) -> float:
    """How far the place where [K] scores stop rising is from the first wrong segment, as a share of them.

    The scores stop rising with the first prefix that has the highest one; what comes next is taken for wrong, and
    nothing if that is the whole. That prefix may be the empty one, which counts as `NOTHING_RIGHT`: the first segment
    is then taken for wrong. 0 is right, 1 the whole length off.

    Of one curve that does not move nobody can say whether it means the first segment or nothing: `tells_places`.

    >>> localisation_error((1, 3, 2, 2), first_wrong=2)
    0.0
    >>> localisation_error((1, 1, 1, 1), first_wrong=0)
    0.0
    """
    return abs(int(np.argmax((NOTHING_RIGHT, *scores))) - first_wrong) / len(scores)


def is_flat(scores: Sequence[float]) -> bool:
    """Whether all [K] scores are the same.

    >>> is_flat((2, 2, 2)), is_flat((2, 2, 3))
    (True, False)
    """
    return float(np.ptp(scores)) <= ROUNDING


def tells_places(rollouts: Iterable[Graded]) -> bool:
    """Whether a judge gives any two prefixes, of whichever rollouts, different scores: else it places nothing."""
    return not is_flat([score for one in rollouts for score in one.scores] or [0.0])


def late_gain(scores: Sequence[float], first_wrong: int) -> float | None:
    """The share of all that [K] scores rise by, from 1 on, that they rise in the first wrong segment or later.

    None where they never rise.

    >>> late_gain((2, 3, 2, 4), first_wrong=2)
    0.5
    """
    rises = np.maximum(np.diff(np.array(scores, dtype=float), prepend=1.0), 0.0)
    return float(rises[first_wrong:].sum() / rises.sum()) if rises.sum() > 0 else None
