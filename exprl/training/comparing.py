"""From rewarded groups to scored ones: what each rollout is worth beside others."""

from __future__ import annotations

from collections.abc import Sequence

from exprl.advantages import Advantage
from exprl.checks.contracts import check_estimates, given_by
from exprl.component import title_of
from exprl.training.exchange import Rewarded
from exprl.types import ScoredGroup


def compared(advantage: Advantage, rewarded: Sequence[Rewarded]) -> list[ScoredGroup]:
    """Groups with the advantages that they have as one step.

    Raises:
        ContractError: the advantage gives something else than advantages of the rollouts.
    """
    who, rewards = f"advantage {title_of(advantage)}", [own for _, own in rewarded]
    with given_by(who):
        advantages = advantage.estimate(rewards, [group.problem.domain for group, _ in rewarded])
    check_estimates(rewards, advantages, who)
    return [
        ScoredGroup(group=group, rewards=own, advantages=estimated)
        for (group, own), estimated in zip(rewarded, advantages, strict=True)
    ]
