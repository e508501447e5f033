"""What a run that works may still not be meant to do, said once."""

from __future__ import annotations

from collections.abc import Sequence

from exprl.experiment import Experiment
from exprl.granularity import granularities_of
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
    made_for_them = "segment" not in advantage.cls.accepts or advantage.cls.is_grpo
    if "segment" in granularities_of(reward).values() or made_for_them:
        return None
    return (
        f"advantage.name={advantage.name} is made for one reward a segment, and reward.name={reward.name} gives one a "
        "rollout. exprl's own are then the reward minus the mean of its group (segment_batch: of the batch), which is "
        "Dr.GRPO; GRPO, which divides by the group's standard deviation as well, is advantage.name=group. A config "
        "that names no advantage has the one that goes with its reward."
    )


def about_updates(experiment: Experiment) -> str | None:
    """That an objective without a ratio is given several updates a step; None otherwise."""
    objective, options, every = experiment.objective, experiment.update, experiment.data.prompts_per_step
    updates = options.epochs * every // (options.prompts_per_update or every)
    if objective.cls.has_ratio or updates == 1:
        return None
    return (
        f"objective.name={objective.name} has no ratio π / π_old, and each step makes {updates} updates "
        "(update.epochs, update.prompts_per_update): from the second on, they take rollouts of an earlier policy for "
        "its own. For one update a step set update.epochs=1 update.prompts_per_update=null, or choose an objective "
        "with a ratio, such as objective.name=clipped."
    )


def about_dynamic_sampling(experiment: Experiment, problems: int) -> str | None:
    """Why `update.dynamic_sampling` does nothing, where it is set and does nothing; None otherwise.

    Args:
        experiment: the run's.
        problems: how many there are to train on.
    """
    rounds, method, every = experiment.update.dynamic_sampling, experiment.method, experiment.data.prompts_per_step
    if not rounds:
        return None
    if not method.cls.scores:
        return (
            f"update.dynamic_sampling={rounds} is ignored: method.name={method.name} compares no rewards, so none of "
            "its groups lacks a signal."
        )
    if problems > every:
        return None
    return (
        f"update.dynamic_sampling={rounds} does nothing: each step has all of the {problems} training problems "
        "(data.prompts_per_step), and none is left to take another's place."
    )
