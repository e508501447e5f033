"""What a reward gives one to, a rollout or a segment, and the advantage that goes with it."""

from __future__ import annotations

from exprl.component import Choice
from exprl.errors import ConfigError
from exprl.registry import ADVANTAGES

USUAL_ADVANTAGES = {"rollout": "group", "segment": "segment_delta"}
"""The advantage that goes with a reward of each granularity where none is named: GRPO's, and the paper's main one."""


def granularities_of(reward: Choice) -> dict[str, str]:
    """What a reward gives one to, a rollout or a segment, by the key within it; raises `ConfigError` if unsaid."""
    try:
        return dict(reward.cls.granularities(reward.config))
    except ConfigError as error:
        raise ConfigError(f"reward.{error}") from error


def usual_advantage(reward: Choice) -> str:
    """The name of the advantage that goes with a reward, so that swapping the reward alone compares the methods.

    Where domains have rewards of both kinds it is that of segments, which takes a rollout's as one segment.

    Raises:
        ConfigError: the reward's class does not say what it gives a reward to.
    """
    return USUAL_ADVANTAGES["segment" if "segment" in granularities_of(reward).values() else "rollout"]


def check_advantage(advantage: Choice, reward: Choice) -> None:
    """Raise `ConfigError` where a reward, that of a domain for example, gives what the advantage does not take."""
    given, accepts = granularities_of(reward), advantage.cls.accepts
    for key, granularity in given.items():
        if granularity not in accepts:
            fitting = [name for name in ADVANTAGES.names() if ADVANTAGES.get(name).accepts >= set(given.values())]
            giver = f"reward.{key}" if key else f"reward {reward.name!r}"
            raise ConfigError(
                f"advantage.name: {advantage.name!r} takes one reward a {' or '.join(sorted(accepts))}, but {giver} "
                f"gives one a {granularity}. Set advantage.name to one of: {', '.join(fitting)}"
                f"{'; or reward.name=sparse or outcome.' if granularity == 'segment' else '.'}"
            )
