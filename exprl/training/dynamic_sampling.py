"""Dynamic sampling: which groups of a step fresh prompts take the place of (`update.dynamic_sampling`), and how many.

DAPO (arXiv:2503.14476, section 3.2), bounded and without a state: each group is looked at alone and its fresh problems
are known beforehand (`exprl.data.replacing`), so no rank waits for another, and a step is the same on any number of
ranks and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from exprl.advantages import Advantage, has_signal
from exprl.checks.finite import check_sampled
from exprl.errors import NonFiniteError
from exprl.training.comparing import compared
from exprl.training.exchange import Rewarded
from exprl.types import AnyReward

Lacking = Callable[[Rewarded], bool]
"""Says of a group whether a fresh prompt should take its place."""


@dataclass(frozen=True, kw_only=True)
class NoSignal:
    """A group lacks a signal if its advantages are all 0 when it is compared alone, as if it were the whole step.

    Attributes:
        advantage: that of the run.
        tolerance: up to which advantages are no signal (`update.signal_tolerance`).
    """

    advantage: Advantage
    tolerance: float

    def __call__(self, rewarded: Rewarded) -> bool:
        """Whether the group lacks a signal, and for no other reason than its rewards.

        A judgement that failed says nothing of the problem, and a number that is not finite stops the run: the step
        must come to know of both, so such a group stays.

        Raises:
            ContractError: the advantage gives something else than advantages of the rollouts.
        """
        group, rewards = rewarded
        if any(map(_unexplained, rewards)):
            return False
        try:
            check_sampled([group], "")
        except NonFiniteError:
            return False
        scored = compared(self.advantage, [rewarded])
        return not has_signal(scored[0].advantages, self.tolerance)


def _unexplained(reward: AnyReward) -> bool:
    """Whether a judgement failed, or a reward is missing and no judgement says why."""
    return any(judgement.status != "ok" for judgement in reward.asked) or not (reward.valid or reward.asked)


def rounds_of(kept: Sequence[str], own: Sequence[str], fresh: Sequence[Sequence[str]]) -> list[int]:
    """How often each place of a step was given a fresh problem; all are ids.

    >>> rounds_of(["a", "y"], ["a", "b"], [["u", "v"], ["x", "y"]])
    [0, 2]

    Args:
        kept: the problem of the group that stayed, at each place.
        own: the step's own problems.
        fresh: what could take their places, see `exprl.data.replacing`.
    """
    return [[first, *others].index(last) for last, first, others in zip(kept, own, fresh, strict=True)]


def replacement_metrics(rounds: Sequence[int]) -> dict[str, float]:
    """What is logged of a step whose places were given fresh problems so often.

    >>> replacement_metrics([0, 2, 1])
    {'update/replaced_groups': 3.0, 'update/sampling_rounds': 3.0}
    """
    return {"update/replaced_groups": float(sum(rounds)), "update/sampling_rounds": 1.0 + max(rounds)}
