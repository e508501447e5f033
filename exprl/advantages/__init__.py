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

from exprl.advantages.base import (
    Advantage,
    GroupwiseAdvantage,
    scores_of,
)
from exprl.advantages.comparison import (
    check_comparison,
)
from exprl.advantages.estimators import (
    GroupAdvantage,
    SegmentBatch,
    SegmentDelta,
    SegmentDeltaFinal,
    SegmentEnd,
    SegmentGroup,
    SegmentReturn,
    SegmentSum,
)
from exprl.advantages.formulas import (
    AllReduce,
    Scores,
    Values,
    group_relative,
    has_signal,
    scale_by_rms,
    segment_batch,
    segment_delta,
    segment_delta_final,
    segment_end,
    segment_group,
    segment_return,
    segment_sum,
    soft_overlong,
)

__all__ = [
    "Advantage",
    "AllReduce",
    "GroupAdvantage",
    "GroupwiseAdvantage",
    "Scores",
    "SegmentBatch",
    "SegmentDelta",
    "SegmentDeltaFinal",
    "SegmentEnd",
    "SegmentGroup",
    "SegmentReturn",
    "SegmentSum",
    "Values",
    "check_comparison",
    "group_relative",
    "has_signal",
    "scale_by_rms",
    "scores_of",
    "segment_batch",
    "segment_delta",
    "segment_delta_final",
    "segment_end",
    "segment_group",
    "segment_return",
    "segment_sum",
    "soft_overlong",
]
