"""What a run that works may still not be meant to do, said once."""

from __future__ import annotations

from collections.abc import Sequence

from exprl.experiment import Experiment, granularities_of
from exprl.types import RolloutGroup

MANY_CUT_OFF = 0.5
"""From this share of rollouts at the length limit on, what they lack they may not have come to."""


def about_cut_off(groups: Sequence[RolloutGroup]) -> str:
    """What to change before anything else where many rollouts were cut off; "" otherwise."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    cut_off = sum(rollout.finish_reason == "length" for rollout in rollouts)
    if not rollouts or cut_off < MANY_CUT_OFF * len(rollouts):
        return ""
    return (
        f" But first raise rollout.max_new_tokens: {cut_off} of the step's {len(rollouts)} rollouts were cut off at "
        "it, before the steps that they may have gone on to write."
    )


def about_advantage(experiment: Experiment) -> str | None:
    """That an advantage for segments is given whole rollouts, where it is not GRPO's; None otherwise."""
    reward, advantage = experiment.reward, experiment.advantage
    if "segment" in granularities_of(reward).values() or "segment" not in advantage.cls.accepts:
        return None
    return (
        f"advantage.name={advantage.name} is made for one reward a segment, and reward.name={reward.name} gives one a "
        "rollout. exprl's own are then the reward minus the mean of its group (segment_batch: of the batch), which is "
        "Dr.GRPO; GRPO, which divides by the group's standard deviation as well, is advantage.name=group. A config "
        "that names no advantage has the one that goes with its reward."
    )
