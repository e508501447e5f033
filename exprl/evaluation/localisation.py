"""Labelled rollouts with a judge's scores, as `calibration` reads them; and where the judge sees the first error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exprl.rollouts.stored import Label, StoredGroup
from exprl.types import Rollout, RolloutReward, SegmentRewards

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Graded:
    """A labelled rollout and the Likert scores of its prefixes, the last one that of the whole.

    Attributes:
        problem_id: of the problem.
        domain: likewise.
        correct: the label; None where nobody said.
        scores: [K], one a segment; one alone for a reward of whole rollouts.
        first_wrong: the segment, from 0, in which the first wrong step begins; None where none is known.
    """

    problem_id: str
    domain: str
    correct: bool | None
    scores: tuple[float, ...]
    first_wrong: int | None


def graded(groups: Iterable[StoredGroup]) -> tuple[list[Graded], int]:
    """The labelled rollouts with scores, and how many labelled ones have none: a judgement failed, or none was made.

    A reward on prefixes is meant: of scores of segments alone the last one is not that of the whole.
    """
    found, failed = [], 0
    for group in groups:
        if group.labels is None or group.rewards is None:
            continue
        for rollout, reward, label in zip(group.rollouts, group.rewards, group.labels, strict=True):
            if label == Label() or label.correct is None:
                continue
            scores = [judgement.score for judgement in reward.judgements]
            if not scores or any(score is None for score in scores):
                failed += 1
                continue
            found.append(
                Graded(
                    problem_id=group.problem_id,
                    domain=group.domain,
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
        wrong: [M] whether the prefix contains the first error.
    """

    problems: tuple[str, ...]
    scores: Array
    wrong: npt.NDArray[np.bool_]


def prefixes_of(rollouts: Sequence[Graded]) -> Prefixes:
    """Those of right rollouts, and of wrong ones whose first error is known."""
    known = [one for one in rollouts if one.correct or one.first_wrong is not None]
    rows = [
        (one.problem_id, score, one.first_wrong is not None and number >= one.first_wrong)
        for one in known
        for number, score in enumerate(one.scores)
    ]
    problems, scores, wrong = zip(*rows, strict=True) if rows else ((), (), ())
    return Prefixes(problems=problems, scores=np.array(scores, dtype=float), wrong=np.array(wrong, dtype=bool))


def localisation_error(one: Graded) -> float:
    """How far the place where the score stops rising is from the first wrong step, as a share of the rollout.

    The score stops rising with the first prefix that has the highest one; what comes next is taken for wrong, and
    nothing if that is the whole. 0 is right, 1 the whole length off.

    >>> one = Graded(problem_id="p", domain="math", correct=False, scores=(1, 3, 2, 2), first_wrong=2)
    >>> localisation_error(one)
    0.0
    """
    assert one.first_wrong is not None
    return abs(int(np.argmax(one.scores)) + 1 - one.first_wrong) / len(one.scores)


def late_gain(one: Graded) -> float | None:
    """The share of all that the score rises by, from 1 on, that it rises in the first wrong step or later.

    None where it never rises.

    >>> late_gain(Graded(problem_id="p", domain="math", correct=False, scores=(2, 3, 2, 4), first_wrong=2))
    0.5
    """
    assert one.first_wrong is not None
    rises = np.maximum(np.diff(np.array(one.scores, dtype=float), prepend=1.0), 0.0)
    return float(rises[one.first_wrong :].sum() / rises.sum()) if rises.sum() > 0 else None
