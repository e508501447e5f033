"""From rewards to advantages: pure functions over the scored rollouts of a group, and thin registered classes.

Rules that hold for every estimator:

- A rollout with a failed judgement leaves every mean and deviation, and its advantages are not `valid`: it leaves the
  loss and the loss's denominator too.
- A rollout cut off at the length limit under a process reward has no scores: its advantages are 0, it stays outside
  the baselines, and its tokens count in the loss's denominator. Under an outcome reward it is an ordinary 0.
- Fewer than two scored rollouts have nothing to be compared with: whatever a group baseline centres is 0.
- Groups of different domains, whose rewards may be of different kinds, are never compared: what is of a batch
  (`segment_batch`, `scale: rms`) is of the batch's groups of one domain.
- A reward for a whole rollout is one segment (K = 1). Segment estimators then give r minus the group mean
  (`segment_batch`: the batch's), which is `group` without its division by the group's standard deviation: Dr.GRPO's
  advantage, not GRPO's. A config that names no advantage has `group` with such a reward (`exprl.experiment`).

Departures from the authors' training script, which differs from the paper's formulas: it leaves K = 1 uncentred
(A = r, or 0 where the baseline is r_K itself), and in GroupNorm and BatchNorm it divides the baseline by the number
of tokens once too often, so that the baseline is almost 0. The formulas are implemented here.
"""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from exprl.checks.contracts import check_values
from exprl.component import Component, option, title_of
from exprl.config.ranges import Range
from exprl.errors import ConfigError
from exprl.registry import ADVANTAGES
from exprl.types import Advantages, AnyReward, RolloutReward, Segment, SegmentRewards

Values = tuple[float, ...]
AllReduce = Callable[[Sequence[float]], Sequence[float]]
"""Sums a few numbers, each over all ranks; called equally often on every rank."""

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

    @property
    def token_mean(self) -> float:
        """Mean of r_k, each weighted by its tokens; without tokens the plain mean."""
        return statistics.fmean(self.values, self.lengths if any(self.lengths) else None)


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
        if a.valid and abs(value) > _ROUNDING
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


# ------------------------------------------------------------------ components


def _alone(sums: Sequence[float]) -> Sequence[float]:
    return sums


class Advantage(Component):
    """Turns the rewards of a step into advantages, constant over each segment.

    `accepts` names the reward granularities an estimator takes: `rollout`, `segment`.
    """

    registered_family: ClassVar[str] = "advantage"

    accepts: ClassVar[frozenset[str]] = frozenset({"rollout", "segment"})

    scale: Literal["none", "rms"] = option(
        default="none", help="rms: divide by the batch's root mean square over tokens whose advantage is not 0"
    )

    def estimate(
        self,
        groups: Sequence[Sequence[AnyReward]],
        domains: Sequence[str] | None = None,
        *,
        all_reduce: AllReduce = _alone,
    ) -> list[tuple[Advantages, ...]]:
        """Advantages of every rollout of every group, in order.

        Args:
            groups: for each problem the rewards of its G rollouts.
            domains: of each problem; None: all are of one.
            all_reduce: sums a few numbers, each over all ranks; called equally often on every rank whose groups are of
                the same domains.

        Raises:
            ConfigError: a reward has a granularity that this estimator does not take.
            ContractError: `of_batch` gives something else than a number for each score.
        """
        for reward in (reward for group in groups for reward in group):
            self._check(reward)
        places: dict[str, list[int]] = {}
        for place, domain in enumerate(domains if domains is not None else [""] * len(groups)):
            places.setdefault(domain, []).append(place)
        estimated: dict[int, tuple[Advantages, ...]] = {}
        for domain in sorted(places) or [""]:  # in an order that all ranks have; without a group they still sum
            own = places.get(domain, [])
            estimated |= zip(own, self._of_domain([groups[place] for place in own], all_reduce), strict=True)
        return [estimated[place] for place in range(len(groups))]

    def _of_domain(self, groups: Sequence[Sequence[AnyReward]], all_reduce: AllReduce) -> list[tuple[Advantages, ...]]:
        scored = [[scores_of(reward) for reward in group] for group in groups]
        counted = [[s for s in group if s is not None] for group in scored]
        values = self.of_batch(counted, all_reduce)
        check_values([[s.values for s in group] for group in counted], values, f"advantage {title_of(self)}")
        batch = [_attach(*parts) for parts in zip(groups, scored, values, strict=True)]
        return scale_by_rms(batch, all_reduce=all_reduce) if self.scale == "rms" else batch

    @abstractmethod
    def of_batch(self, groups: Sequence[Sequence[Scores]], all_reduce: AllReduce) -> list[list[Values]]:
        """A_1..A_K of every scored rollout of every group."""

    def _check(self, reward: AnyReward) -> None:
        given = "rollout" if isinstance(reward, RolloutReward) else "segment"
        if given not in self.accepts:
            raise ConfigError(
                f"advantage {title_of(self)} takes one reward a {' or '.join(sorted(self.accepts))}, but got "
                f"one a {given}. Use an advantage that takes both, for example segment_delta."
            )


class GroupwiseAdvantage(Advantage):
    """An estimator that looks at one group at a time, the rollouts of one problem: most do."""

    def of_batch(self, groups: Sequence[Sequence[Scores]], all_reduce: AllReduce) -> list[list[Values]]:
        """A_1..A_K of every scored rollout of every group."""
        del all_reduce
        return [self.of_group(group) for group in groups]

    @abstractmethod
    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """A_1..A_K of every scored rollout of one group."""


@ADVANTAGES.register("group")
class GroupAdvantage(GroupwiseAdvantage):
    """GRPO's group-relative advantage of whole rollouts; without `std` Dr.GRPO's, with `leave_one_out` RLOO's."""

    accepts: ClassVar[frozenset[str]] = frozenset({"rollout"})

    std: bool = option(default=True, help="divide by the group's standard deviation (GRPO); false: Dr.GRPO")
    baseline: Literal["mean", "leave_one_out"] = option(
        default="mean", help="mean of the group, or of the others (RLOO)"
    )
    eps: Annotated[float, Range(ge=1e-12, le=1)] = option(
        default=1e-6, help="added to the standard deviation (verl: 1e-6)"
    )

    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """See `group_relative`."""
        values = [s.final for s in group]
        relative = group_relative(values, std=self.std, baseline=self.baseline, eps=self.eps)
        return [(value,) for value in relative]


@ADVANTAGES.register("segment_delta")
class SegmentDelta(GroupwiseAdvantage):
    """What each segment adds to the score: r_k - r_{k-1} (DeltaNorm)."""

    first: Literal["group", "last", "zero"] = option(
        default="group",
        help="baseline of the first segment: the group's mean of r_1; the rollout's own r_K (authors' script; pushes "
        "down good openings when scores are of prefixes); 0",
    )

    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """See `segment_delta`."""
        return segment_delta(group, first=self.first)


@ADVANTAGES.register("segment_return")
class SegmentReturn(GroupwiseAdvantage):
    """What the rollout gains from each segment on, centred: r_K - r_{k-1} minus its group mean."""

    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """See `segment_return`."""
        return segment_return(group)


@ADVANTAGES.register("segment_end")
class SegmentEnd(GroupwiseAdvantage):
    """How each segment's score compares with the last one's: r_k - r_K (EndNorm); meant for lone-segment scores."""

    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """See `segment_end`."""
        return segment_end(group)


@ADVANTAGES.register("segment_group")
class SegmentGroup(GroupwiseAdvantage):
    """How each segment's score compares with the group's mean token (GroupNorm)."""

    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """See `segment_group`."""
        return segment_group(group)


@ADVANTAGES.register("segment_batch")
class SegmentBatch(Advantage):
    """How each segment's score compares with the mean token of the batch, of all ranks (BatchNorm)."""

    def of_batch(self, groups: Sequence[Sequence[Scores]], all_reduce: AllReduce) -> list[list[Values]]:
        """See `segment_batch`."""
        return segment_batch(groups, all_reduce=all_reduce)


def check_comparison(advantage: Advantage, granularity: str, *, prompts: int, samples: int) -> None:
    """Raise `ConfigError` where no rollout has another to be compared with, so that nothing could ever be learnt.

    Asked of the estimator itself, on a made-up step of `prompts` times `samples` rollouts whose rewards all differ.

    Args:
        advantage: the estimator.
        granularity: what has a reward, `rollout` or `segment`.
        prompts: of a step, all ranks together.
        samples: rollouts a prompt.
    """
    rewards = (_made_up(granularity, number) for number in range(prompts * samples))
    step = [tuple(next(rewards) for _ in range(samples)) for _ in range(prompts)]
    if not any(has_signal(group, _ROUNDING) for group in advantage.estimate(step)):
        raise ConfigError(
            f"rollout.samples_per_prompt: {samples}, with which every advantage of {title_of(advantage)} is 0 "
            f"for data.prompts_per_step={prompts} and one reward a {granularity}: a rollout has no other to be "
            "compared with, and nothing would be learnt. Sample 2 or more a prompt (usual: 8)."
        )


def _made_up(granularity: str, number: int) -> AnyReward:
    value = 1.0 / (number + 2)
    if granularity == "rollout":
        return RolloutReward(value=value, length=2)
    return SegmentRewards(segments=(Segment(0, 1), Segment(1, 2)), values=(value, value * value))


# ------------------------------------------------------------------ rewards in, advantages out


def scores_of(reward: AnyReward) -> Scores | None:
    """The scores that count in baselines; None for an invalid rollout, and for one cut off under a process reward."""
    if isinstance(reward, RolloutReward):
        return Scores((reward.value,), (reward.length,)) if reward.value is not None else None
    values = tuple(value for value in reward.values if value is not None)
    if reward.cut_off or not values or len(values) < len(reward.values):
        return None
    return Scores(values, tuple(map(len, reward.segments)))


def _attach(
    rewards: Sequence[AnyReward], scored: Sequence[Scores | None], values: Sequence[Values]
) -> tuple[Advantages, ...]:
    remaining = iter(values)
    return tuple(
        _advantages(reward, next(remaining) if scores is not None else None)
        for reward, scores in zip(rewards, scored, strict=True)
    )


def _advantages(reward: AnyReward, values: Values | None) -> Advantages:
    if isinstance(reward, SegmentRewards):
        segments = reward.segments
    else:
        segments = (Segment(0, reward.length),) if reward.length else ()
    kept = values[: len(segments)] if values is not None else (0.0,) * len(segments)
    return Advantages(segments=segments, values=kept, valid=reward.valid)
