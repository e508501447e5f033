"""What a run that works may still not be meant to do, said once."""

from __future__ import annotations

from exprl.experiment import Experiment, granularities_of


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
