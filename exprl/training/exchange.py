"""What ranks tell each other of a step's rollouts: numbers, not texts.

Any rank may compute with the tokens of any rollout, and its update, advantages and metrics are those of all. Nobody but
the rank that sampled a rollout reads its text: it judges, verifies and counts behaviours, and hands what is written of
it to the rank that writes. So a rank holds no other's texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from exprl.rewards.checks import without_words
from exprl.training.world import World
from exprl.types import AnyReward, Prompt, Rollout, RolloutGroup, ScoredGroup

Rewarded = tuple[RolloutGroup, tuple[AnyReward, ...]]


@dataclass(frozen=True, kw_only=True)
class RemoteRollout(Rollout):
    """Another rank's rollout: its T ids and log-probs, as arrays, without any text and without token ends."""

    def __post_init__(self) -> None:
        """There is no text in which tokens could end."""


@dataclass(frozen=True, kw_only=True)
class RemoteGroup(RolloutGroup):
    """Another rank's rollouts of one problem."""


def everyones(world: World, own: Sequence[Rewarded], what: str) -> list[Rewarded]:
    """The groups of all ranks with their rewards, rank by rank: this rank's as they are, of the others the numbers.

    Raises as `World.gather` does.
    """
    if world.size == 1:
        return list(own)
    parts = world.gather(remote(own), what)
    parts[world.rank] = list(own)
    return [rewarded for part in parts for rewarded in part]


def own_groups(scored: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """Those that this rank sampled, in order."""
    return [s for s in scored if not isinstance(s.group, RemoteGroup)]


def remote(rewarded: Sequence[Rewarded]) -> list[Rewarded]:
    """What other ranks are given of these."""
    return [(_remote_group(group), tuple(map(without_words, rewards))) for group, rewards in rewarded]


def _remote_group(group: RolloutGroup) -> RemoteGroup:
    prompts = {id(rollout.prompt): replace(rollout.prompt, text="") for rollout in group.rollouts}
    rollouts = tuple(_remote_rollout(rollout, prompts[id(rollout.prompt)]) for rollout in group.rollouts)
    return RemoteGroup(problem=group.problem, rollouts=rollouts)


def _remote_rollout(rollout: Rollout, prompt: Prompt) -> RemoteRollout:
    return RemoteRollout(
        prompt=prompt,
        token_ids=cast(Any, np.asarray(rollout.token_ids, dtype=np.int32)),
        text="",
        token_ends=(),
        sampler_logprobs=cast(Any, _exact(np.asarray(rollout.sampler_logprobs, dtype=np.float64))),
        finish_reason=rollout.finish_reason,
        policy_version=rollout.policy_version,
    )


def _exact(values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """In half the bytes where they say the same: most engines' log-probs are single-precision numbers."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return single if np.array_equal(single, values, equal_nan=True) else values
