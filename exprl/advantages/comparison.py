"""Whether a step has rollouts that can be compared at all."""

from __future__ import annotations

from exprl.advantages.base import Advantage
from exprl.advantages.formulas import ROUNDING, has_signal
from exprl.component import title_of
from exprl.errors import ConfigError
from exprl.types import AnyReward, RolloutReward, Segment, SegmentRewards


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
    if not any(has_signal(group, ROUNDING) for group in advantage.estimate(step)):
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
