"""What another way of scoring changes of a step's rewards and advantages, as figures with intervals over problems.

Two ways of scoring may cut a rollout into other segments, or give it a reward as a whole. They are compared on pieces:
the longest runs of tokens over which both are constant. Where they cut alike, pieces are their segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from exprl.evaluation.bootstrap import bootstrapped
from exprl.evaluation.intervals import Interval
from exprl.evaluation.ranks import rank_correlation
from exprl.types import Advantages, AnyReward, RolloutReward

Array = npt.NDArray[np.float64]
Steps = Sequence[tuple[int, float]]
"""A value for every token of a rollout: (end, value) of each segment, in order."""
T = TypeVar("T")
Groups = Sequence[Sequence[T]]
"""Of each problem one a rollout."""

NOTHING = 1e-9
"""An advantage as close to 0 as this is 0: what is left of adding and subtracting equal rewards."""
RESAMPLES = 1_000


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """How far two ways of scoring a step are apart, with 95 % intervals over problems.

    Attributes:
        rewards: rank correlation of the rollouts' last rewards.
        segment_rewards: the same of the rewards of pieces.
        flipped_segments: share of pieces whose advantage has the other sign.
        flipped_tokens: share of tokens that are in such pieces.
        silenced_tokens: share of tokens whose advantage is 0 now, and was not.
        awakened_tokens: share of tokens whose advantage was 0, and is not any more.
    """

    rewards: Interval
    segment_rewards: Interval
    flipped_segments: Interval
    flipped_tokens: Interval
    silenced_tokens: Interval
    awakened_tokens: Interval


def rescored(
    before: tuple[Groups[AnyReward], Groups[Advantages]], after: tuple[Groups[AnyReward], Groups[Advantages]]
) -> Rescored:
    """Compare two scorings of the same rollouts, each rewards and advantages of every problem's rollouts.

    Rollouts without a reward on one side (a judgement failed, or they were cut off under a process reward) take no part
    in the correlations. In the shares their advantages are 0, as in the loss.
    """
    last = compared(before[0], after[0], _last)
    rewards = compared(before[0], after[0], reward_steps)
    changes = compared(before[1], after[1], advantage_steps)
    signs = [np.where(np.abs(values) > NOTHING, np.sign(values), 0.0) for values in (changes.before, changes.after)]
    flipped, silenced, awakened = (
        signs[0] * signs[1] < 0,
        (signs[0] != 0) & (signs[1] == 0),
        (signs[0] == 0) & (signs[1] != 0),
    )
    return Rescored(
        rewards=correlated(last),
        segment_rewards=correlated(rewards),
        flipped_segments=share(flipped, np.ones(len(flipped)), changes.problems),
        flipped_tokens=share(flipped, changes.tokens, changes.problems),
        silenced_tokens=share(silenced, changes.tokens, changes.problems),
        awakened_tokens=share(awakened, changes.tokens, changes.problems),
    )


# ------------------------------------------------------------------ pieces


@dataclass(frozen=True, kw_only=True)
class Compared:
    """[N] each: which problem a piece is of, its tokens, and its two values."""

    problems: npt.NDArray[np.intp]
    tokens: Array
    before: Array
    after: Array


def compared(before: Groups[T], after: Groups[T], steps_of: Callable[[T], Steps | None]) -> Compared:
    """The pieces of all rollouts for which both sides have values."""
    rows = [
        (problem, *piece)
        for problem, (one, other) in enumerate(zip(before, after, strict=True))
        for old, new in zip(one, other, strict=True)
        for piece in pieces(steps_of(old), steps_of(new))
    ]
    problems, tokens, first, second = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Compared(
        problems=np.array(problems, dtype=np.intp),
        tokens=np.array(tokens, dtype=float),
        before=np.array(first, dtype=float),
        after=np.array(second, dtype=float),
    )


def pieces(one: Steps | None, other: Steps | None) -> Iterator[tuple[int, float, float]]:
    """(tokens, value, value) of each piece; none where a side has no values.

    >>> list(pieces([(2, 0.5), (5, 1.0)], [(3, 0.1), (5, 0.2)]))
    [(2, 0.5, 0.1), (1, 1.0, 0.1), (2, 1.0, 0.2)]
    """
    if not one or not other:
        return
    if one[-1][0] != other[-1][0]:
        raise ValueError(f"two scorings of one rollout end at the same token, but got {one[-1][0]} and {other[-1][0]}")
    start, first, second = 0, 0, 0
    while first < len(one):
        end = min(one[first][0], other[second][0])
        yield end - start, one[first][1], other[second][1]
        start = end
        first += one[first][0] == end
        second += other[second][0] == end


def reward_steps(reward: AnyReward) -> Steps | None:
    """The reward at every token; None without one."""
    if isinstance(reward, RolloutReward):
        return None if reward.value is None or not reward.length else [(reward.length, reward.value)]
    values = [value for value in reward.values if value is not None]
    if not values or len(values) < len(reward.segments):
        return None
    return [(segment.end, value) for segment, value in zip(reward.segments, values, strict=True)]


def advantage_steps(advantages: Advantages) -> Steps:
    """The advantage at every token: 0 where the rollout is left out of the loss."""
    return [
        (segment.end, value if advantages.valid else 0.0)
        for segment, value in zip(advantages.segments, advantages.values, strict=True)
    ]


def _last(reward: AnyReward) -> Steps | None:
    steps = reward_steps(reward)
    return None if steps is None else [(steps[-1][0], steps[-1][1])]


# ------------------------------------------------------------------ figures


def correlated(pieces: Compared) -> Interval:
    """The rank correlation of both values, a piece counting once."""
    return bootstrapped(
        partial(rank_correlation, pieces.before, pieces.after), list(pieces.problems), resamples=RESAMPLES
    )


def share(hit: npt.NDArray[np.bool_], size: Array, problems: npt.NDArray[np.intp]) -> Interval:
    """What part of all `size` is hit; weights of problems need only each problem's sums."""
    _, codes = np.unique(problems, return_inverse=True)
    hits, sizes = np.bincount(codes, hit * size), np.bincount(codes, size)

    def of(weights: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Array = (weights @ hits) / (weights @ sizes)
        return found

    return bootstrapped(of, [str(number) for number in range(len(sizes))], resamples=RESAMPLES)
