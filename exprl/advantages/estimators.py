"""The registered estimators, each a thin class over its formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from exprl.advantages.base import Advantage, GroupwiseAdvantage
from exprl.advantages.formulas import (
    AllReduce,
    Scores,
    Values,
    group_relative,
    segment_batch,
    segment_delta,
    segment_delta_final,
    segment_end,
    segment_group,
    segment_return,
    segment_sum,
    soft_overlong,
)
from exprl.component import option
from exprl.config.ranges import PositiveInt, Range, Tokens
from exprl.errors import ConfigError
from exprl.registry import ADVANTAGES


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

    overlong_penalty: Annotated[float, Range(ge=0, le=1000)] = option(
        default=0.0,
        help="what the reward of a rollout at overlong_limit loses before rollouts are compared; 0: nothing (DAPO: 1 "
        "with rewards of -1 and 1, which is 0.5 with 0 and 1)",
    )
    overlong_buffer: PositiveInt = option(
        default=4096, help="tokens before overlong_limit within which it grows from 0 (DAPO: 4096)"
    )
    overlong_limit: Tokens | None = option(
        default=None, help="tokens at which all of it is lost, as a rule rollout.max_new_tokens (DAPO: 20480)"
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """A penalty needs a limit, and its buffer lies below that."""
        if config.overlong_penalty and config.overlong_limit is None:
            raise ConfigError(
                f"overlong_limit: required with overlong_penalty {config.overlong_penalty:g}. Set it to the length "
                "limit, rollout.max_new_tokens."
            )
        if config.overlong_limit is not None and config.overlong_buffer > config.overlong_limit:
            raise ConfigError(
                f"overlong_buffer: must be at most overlong_limit ({config.overlong_limit}), but got "
                f"{config.overlong_buffer}."
            )

    def reward(self, scores: Scores) -> float:
        """Of a rollout, less what it loses by its length."""
        if not self.overlong_penalty:
            return scores.final
        assert self.overlong_limit is not None, "the options are checked"
        share = soft_overlong(sum(scores.lengths), limit=self.overlong_limit, buffer=self.overlong_buffer)
        return scores.final - self.overlong_penalty * share

    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """See `group_relative`."""
        values = [self.reward(s) for s in group]
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


@ADVANTAGES.register("segment_delta_final")
class SegmentDeltaFinal(GroupwiseAdvantage):
    """What each segment adds to the score, plus the final score: r_k - r_{k-1} + r_K (the authors' proof script)."""

    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """See `segment_delta_final`."""
        return segment_delta_final(group)


@ADVANTAGES.register("segment_sum")
class SegmentSum(GroupwiseAdvantage):
    """GRPO on the sum of a rollout's segment scores, the same at every segment (the authors' `is_process_sum`)."""

    is_grpo: ClassVar[bool] = True

    std: bool = option(default=True, help="divide by the group's standard deviation (GRPO)")
    eps: Annotated[float, Range(ge=1e-12, le=1)] = option(
        default=1e-6, help="added to the standard deviation (verl: 1e-6)"
    )

    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """See `segment_sum`."""
        return segment_sum(group, std=self.std, eps=self.eps)


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
    """How each segment compares with the mean, over the group's rollouts, of each one's token mean (GroupNorm)."""

    def of_group(self, group: Sequence[Scores]) -> list[Values]:
        """See `segment_group`."""
        return segment_group(group)


@ADVANTAGES.register("segment_batch")
class SegmentBatch(Advantage):
    """Like `segment_group`, but the mean is over the rollouts of the whole batch, of all ranks (BatchNorm)."""

    def of_batch(self, groups: Sequence[Sequence[Scores]], all_reduce: AllReduce) -> list[list[Values]]:
        """See `segment_batch`."""
        return segment_batch(groups, all_reduce=all_reduce)
