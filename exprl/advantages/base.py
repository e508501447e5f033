"""What every estimator does around its formula: which rollouts count, per domain, back to segments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from exprl.advantages.formulas import AllReduce, Scores, Values, scale_by_rms
from exprl.checks.contracts import check_values, given_by
from exprl.component import Component, option, title_of
from exprl.errors import ConfigError, ContractError
from exprl.invariants import shown
from exprl.types import Advantages, AnyReward, RolloutReward, Segment, SegmentRewards


def _alone(sums: Sequence[float]) -> Sequence[float]:
    return sums


class Advantage(Component):
    """Turns the rewards of a step into advantages, constant over each segment.

    `accepts` names the reward granularities an estimator takes: `rollout`, `segment`.
    """

    registered_family: ClassVar[str] = "advantage"

    accepts: ClassVar[frozenset[str]] = frozenset({"rollout", "segment"})
    is_grpo: ClassVar[bool] = False
    """Whether an estimator for segments gives whole rollouts GRPO's advantage, divided by the group's deviation."""

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
            ContractError: `groups` hold something else than rewards, or `of_batch` gives something else than a finite
                number for each score.
        """
        for group in groups:
            self._check(group)
        if domains is not None and len(domains) != len(groups):
            raise ContractError(f"domains: one for each group, but got {len(domains)} for {len(groups)}")
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
        who = f"advantage {title_of(self)}"
        with given_by(who):
            values = self.of_batch(counted, all_reduce)
            check_values([[s.values for s in group] for group in counted], values, who)
            batch = [_attach(*parts) for parts in zip(groups, scored, values, strict=True)]
        return scale_by_rms(batch, all_reduce=all_reduce) if self.scale == "rms" else batch

    @abstractmethod
    def of_batch(self, groups: Sequence[Sequence[Scores]], all_reduce: AllReduce) -> list[list[Values]]:
        """A_1..A_K of every scored rollout of every group."""

    def _check(self, group: Sequence[AnyReward]) -> None:
        if not isinstance(group, (list, tuple)):
            raise ContractError(f"groups: for each problem the rewards of its rollouts, but one is {shown(group)}")
        for reward in group:
            if not isinstance(reward, (RolloutReward, SegmentRewards)):
                raise ContractError(f"a reward is a RolloutReward or SegmentRewards, but got {shown(reward)}")
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
