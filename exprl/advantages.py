"""From rewards to advantages: pure functions over the scored rollouts of a group, and thin registered classes.

Rules that hold for every estimator:

- A rollout with a failed judgement leaves every mean and deviation, and its advantages are not `valid`: it leaves the
  loss and the loss's denominator too.
- A rollout cut off at the length limit under a process reward has no scores: its advantages are 0, it stays outside
  the baselines, and its tokens count in the loss's denominator. Under an outcome reward it is an ordinary 0.
- Fewer than two scored rollouts have nothing to be compared with: whatever a group baseline centres is 0.
- A reward for a whole rollout is one segment (K = 1). Segment estimators then give r minus the group mean, so that
  swapping a process reward for an outcome reward changes the reward and nothing else.

Departures from the authors' training script, which differs from the paper's formulas: it leaves K = 1 uncentred
(A = r, or 0 where the baseline is r_K itself), and in GroupNorm and BatchNorm it divides the baseline by the number
of tokens once too often, so that the baseline is almost 0. The formulas are implemented here.
"""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from exprl.component import Component, option
from exprl.errors import ConfigError
from exprl.registry import ADVANTAGES
from exprl.types import Advantages, AnyReward, RolloutReward, Segment, SegmentRewards

Values = tuple[float, ...]
AllReduce = Callable[[Tensor], Tensor]

_ROUNDING = 1e-9
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

    def token_mean(self, values: Values | None = None) -> float:
        """Mean of r_k (or of other `values` of the K segments), each weighted by its tokens."""
        values = self.values if values is None else values
        tokens = sum(self.lengths)
        weighted = zip(values, self.lengths, strict=True)
        return math.fsum(v * n for v, n in weighted) / tokens if tokens else statistics.fmean(values)


# ------------------------------------------------------------------ pure functions


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


def segment_delta(group: Sequence[Scores], *, first: Literal["group", "last", "zero"]) -> list[Values]:
    """A_k = r_k - r_{k-1} for k > 1, and A_1 = r_1 - b; DeltaNorm of the paper.

    b is the group's mean of r_1 (`group`), the rollout's own r_K (`last`, the authors' script) or 0 (`zero`). A
    rollout of one segment has no step to credit: where b would be r_K or 0, it is the group's mean of r_K, so that
    K = 1 stays centred. Nothing of A_k, k > 1, depends on the group.
    """
    first_mean, final_mean = _mean(s.values[0] for s in group), _mean(s.final for s in group)
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


def segment_return(group: Sequence[Scores]) -> list[Values]:
    """A_k = (r_K - r_{k-1}) - baseline with r_0 = 0: the sum of the deltas from segment k on, centred.

    The baseline is the mean over the group's rollouts of the token-mean of r_K - r_{k-1}. So the advantages average
    to 0 when every rollout weighs the same, a long rollout does not set the baseline, and K = 1 gives r minus the
    group mean exactly. Not in the paper.
    """
    returns = [tuple(s.final - before for before in (0.0, *s.values[:-1])) for s in group]
    return _centred(group, returns)


def segment_end(group: Sequence[Scores]) -> list[Values]:
    """A_k = r_k - r_K, EndNorm of the paper; K = 1 (where that is 0) gives r_1 minus the group's mean of r_K."""
    mean = _mean(s.final for s in group)
    return [
        tuple(value - s.final for value in s.values) if len(s.values) > 1 else (s.final - mean,) for s in group
    ]


def segment_group(group: Sequence[Scores]) -> list[Values]:
    """A_k = r_k - the mean over the group's rollouts of the token-mean score; GroupNorm of the paper."""
    return _centred(group, [s.values for s in group])


def has_signal(advantages: Sequence[Advantages], tolerance: float) -> bool:
    """Whether any valid advantage of a group lies further than `tolerance` from 0; without one the group is dropped."""
    return any(abs(value) > tolerance for a in advantages if a.valid and a.segments for value in a.values)


def _centred(group: Sequence[Scores], values: Sequence[Values]) -> list[Values]:
    if len(group) < 2:
        return [(0.0,) * len(own) for own in values]
    baseline = statistics.fmean(s.token_mean(own) for s, own in zip(group, values, strict=True))
    return [tuple(value - baseline for value in own) for own in values]


def _mean(values: Sequence[float] | object) -> float:
    raise NotImplementedError
