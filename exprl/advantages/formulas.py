"""The estimators as pure functions of scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from exprl.types import Advantages

Values = tuple[float, ...]
AllReduce = Callable[[Sequence[float]], Sequence[float]]
"""Sums a few numbers, each over all ranks; called equally often on every rank."""

ROUNDING = 1e-9
"""Advantages this close to 0 are what a mean of equal scores leaves; `rms` must not count them."""


@dataclass(frozen=True)
class Scores:
    """The scores of one rollout that counts in baselines: r_1..r_K, K >= 1, and the tokens of each segment."""

    values: Values
    lengths: tuple[int, ...]

    @property
    def final(self) -> float:
        """r_K."""
        return self.values[-1]

    @property
    def token_mean(self) -> float:
        """Mean of r_k, each weighted by its tokens; without tokens the plain mean."""
        return statistics.fmean(self.values, self.lengths if any(self.lengths) else None)


def group_relative(
    values: Sequence[float], *, std: bool, baseline: Literal["mean", "leave_one_out"], eps: float
) -> list[float]:
    """(R - baseline) / (std + eps) for the G values of one group; GRPO (arXiv:2402.03300), Dr.GRPO, RLOO.

    The deviation is the sample's (divided by G - 1), as in TRL and verl.

    >>> group_relative([1.0, 0.0], std=False, baseline="leave_one_out", eps=1e-6)
    [1.0, -1.0]
    """
    count = len(values)
    if count < 2:
        return [0.0] * count
    mean = statistics.fmean(values)
    spread = statistics.stdev(values, mean) + eps if std else 1.0
    # R_i minus the mean of the others is count / (count - 1) times R_i minus the mean of all.
    factor = count / (count - 1) if baseline == "leave_one_out" else 1.0
    return [factor * (value - mean) / spread for value in values]


def soft_overlong(length: int, *, limit: int, buffer: int) -> float:
    """How much too long a rollout is: 0 up to `limit - buffer` tokens, 1 from `limit` on, in between a straight line.

    DAPO's soft overlong punishment without its sign (arXiv:2503.14476, equation 13).

    >>> [soft_overlong(length, limit=100, buffer=20) for length in (80, 85, 100)]
    [0.0, 0.25, 1.0]
    """
    return min(max((length - limit + buffer) / buffer, 0.0), 1.0)


def segment_delta(group: Sequence[Scores], *, first: Literal["group", "last", "zero"]) -> list[Values]:
    """A_k = r_k - r_{k-1} for k > 1, and A_1 = r_1 - b; DeltaNorm of the paper.

    b is the group's mean of r_1 (`group`), the rollout's own r_K (`last`, the authors' script) or 0 (`zero`). A
    rollout of one segment has no step to credit: where b would be r_K or 0, it is the group's mean of r_K, so that
    K = 1 stays centred. Nothing of A_k, k > 1, depends on the group.
    """
    if not group:
        return []
    first_mean = statistics.fmean(s.values[0] for s in group)
    final_mean = statistics.fmean(s.final for s in group)
    result = []
    for scores in group:
        opening, alone = scores.values[0], len(scores.values) == 1
        if first == "group" or alone:
            opened = opening - (first_mean if first == "group" else final_mean)
        else:
            opened = opening - (scores.final if first == "last" else 0.0)
        steps = (after - before for before, after in zip(scores.values, scores.values[1:], strict=False))
        result.append((opened, *steps))
    return result


def segment_delta_final(group: Sequence[Scores]) -> list[Values]:
    """A_1 = r_1 and A_k = r_k - r_{k-1} + r_K for k > 1: the delta shifted by the final score.

    The authors' proof script. A step is worth what it adds and what it led to; nothing is centred, so with scores in
    [0, 1] most advantages are positive. A rollout of one segment has the group's mean of r_K as its baseline, as in
    `segment_delta`.
    """
    if not group:
        return []
    mean = statistics.fmean(s.final for s in group)
    result = []
    for scores in group:
        steps = (after - before + scores.final for before, after in zip(scores.values, scores.values[1:], strict=False))
        alone = len(scores.values) == 1
        result.append((scores.final - mean,) if alone else (scores.values[0], *steps))
    return result


def segment_sum(group: Sequence[Scores], *, std: bool, eps: float) -> list[Values]:
    """R = r_1 + ... + r_K as one reward a rollout, then GRPO's advantage at every segment.

    The authors' baseline `is_process_sum`: what process rewards give without credit for single segments. A rollout of
    more segments has a larger sum, whatever they are worth. K = 1 gives `group_relative`.
    """
    relative = group_relative([math.fsum(s.values) for s in group], std=std, baseline="mean", eps=eps)
    return [(value,) * len(s.values) for value, s in zip(relative, group, strict=True)]


def segment_return(group: Sequence[Scores]) -> list[Values]:
    """A_k = (r_K - r_{k-1}) - b_k with r_0 = 0: the sum of the deltas from segment k on, centred at each k.

    b_k is the mean over the group's rollouts of that sum, 0 for a rollout that has fewer than k segments: it has
    nothing more to gain. One baseline for all k would call every late segment bad, since little is left to gain there.
    The group's first segments average to 0, and K = 1 gives r minus the group mean exactly. Not in the paper.
    """
    if len(group) < 2:
        return [(0.0,) * len(s.values) for s in group]
    returns = [tuple(s.final - before for before in (0.0, *s.values[:-1])) for s in group]
    longest = max(map(len, returns))
    baselines = [math.fsum(own[k] for own in returns if k < len(own)) / len(group) for k in range(longest)]
    return [tuple(value - baseline for value, baseline in zip(own, baselines, strict=False)) for own in returns]


def segment_end(group: Sequence[Scores]) -> list[Values]:
    """A_k = r_k - r_K, EndNorm of the paper; K = 1 (where that is 0) gives r_1 minus the group's mean of r_K."""
    if not group:
        return []
    mean = statistics.fmean(s.final for s in group)
    return [tuple(value - s.final for value in s.values) if len(s.values) > 1 else (s.final - mean,) for s in group]


def segment_group(group: Sequence[Scores]) -> list[Values]:
    """A_k = r_k - the mean over the group's rollouts of the token-mean score; GroupNorm of the paper."""
    if len(group) < 2:
        return [(0.0,) * len(s.values) for s in group]
    baseline = statistics.fmean(s.token_mean for s in group)
    return [tuple(value - baseline for value in s.values) for s in group]


def segment_batch(groups: Sequence[Sequence[Scores]], *, all_reduce: AllReduce) -> list[list[Values]]:
    """A_k = r_k - the mean over the batch's rollouts, of all ranks, of the token-mean score; BatchNorm of the paper.

    K = 1 gives r minus the batch mean. With fewer than two scored rollouts in the batch every advantage is 0.
    """
    means = [s.token_mean for group in groups for s in group]
    total, count = all_reduce([math.fsum(means), len(means)])
    if count < 2:
        return [[(0.0,) * len(s.values) for s in group] for group in groups]
    return [[tuple(value - total / count for value in s.values) for s in group] for group in groups]


def scale_by_rms(batch: Sequence[tuple[Advantages, ...]], *, all_reduce: AllReduce) -> list[tuple[Advantages, ...]]:
    """Divide by the root mean square over the tokens, of all ranks, whose advantage is valid and not 0.

    Zeros stay outside the mean: whole Likert steps make most deltas 0, and a batch with a single non-zero segment
    must not be blown up to fill it. An all-zero batch stays 0.
    """
    weighted = [
        (value, len(segment))
        for group in batch
        for a in group
        for value, segment in zip(a.values, a.segments, strict=True)
        if a.valid and abs(value) > ROUNDING
    ]
    sums = [math.fsum(value * value * n for value, n in weighted), sum(n for _, n in weighted)]
    squares, tokens = all_reduce(sums)
    if not tokens:
        return list(batch)
    rms = math.sqrt(squares / tokens)
    return [tuple(replace(a, values=tuple(value / rms for value in a.values)) for a in group) for group in batch]


def has_signal(advantages: Sequence[Advantages], tolerance: float) -> bool:
    """Whether any valid advantage of a group lies further than `tolerance` from 0; without one the group is dropped."""
    return any(abs(value) > tolerance for a in advantages if a.valid and a.segments for value in a.values)
