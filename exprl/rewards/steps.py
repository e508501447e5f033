"""What is asked of a whole step's rewards, each of the reward that gave them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from exprl.errors import JudgeError
from exprl.rewards.base import Reward
from exprl.types import AnyReward, Problem

Rewards = Sequence[tuple[AnyReward, ...]]


def check_step(reward: Reward, problems: Sequence[Problem], rewards: Rewards) -> None:
    """Raise `JudgeError` where a step, or a domain's part of it, cannot be learned from (`Reward.check_step`).

    Args:
        reward: the run's.
        problems: those of the step, of all ranks.
        rewards: for each problem those of its rollouts.
    """
    for key, scorer, own in _shares(reward, problems, rewards):
        try:
            scorer.check_step(own)
        except JudgeError as error:
            raise (JudgeError(of_route(str(error), key)) if key else error) from error


def advice_on(reward: Reward, problems: Sequence[Problem], rewards: Rewards) -> str | None:
    """The first thing to change about a step that can be learned from (`Reward.advice`); None: nothing seen."""
    for key, scorer, own in _shares(reward, problems, rewards):
        if (advice := scorer.advice(own)) is not None:
            return of_route(advice, key) if key else advice
    return None


def of_route(message: str, key: str) -> str:
    """What one of several rewards says, with where it stands: the options that it names are its own.

    >>> of_route("set reward.slicer.window.", "domains.math")
    'reward.domains.math: set reward.domains.math.slicer.window.'
    """
    return f"reward.{key}: " + re.sub(r"\breward\.(?=[a-z])", f"reward.{key}.", message)


def _shares(
    reward: Reward, problems: Sequence[Problem], rewards: Rewards
) -> Iterator[tuple[str, Reward, list[tuple[AnyReward, ...]]]]:
    for key, scorer, places in reward.scorers(problems):
        yield key, scorer, [rewards[place] for place in places]
