"""The sparse reward: is the final answer right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from exprl.component import given, option
from exprl.registry import REWARDS
from exprl.resources import Resources
from exprl.rewards.base import Reward
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import AnyReward, Problem, RolloutGroup, RolloutReward
from exprl.verifiers.base import Verifier


@REWARDS.register("sparse")
class SparseReward(Reward):
    """1 if the verifier accepts the final answer, else 0: ordinary RL, and Stage II."""

    granularity: ClassVar[Literal["rollout", "segment"]] = "rollout"
    overlaps: ClassVar[bool] = True

    verifier: Verifier = given(Resources.need_verifier, help="of final answers")
    clip_length: bool = option(default=True, help="a rollout cut off at the length limit earns 0 whatever it says")

    @classmethod
    def reads_references(cls, config: Any) -> bool:
        """Final answers alone."""
        del config
        return False

    def score(
        self, groups: Sequence[RolloutGroup], on_progress: OnProgress = no_progress
    ) -> list[tuple[AnyReward, ...]]:
        """0 or 1 a rollout."""
        return [self._score(group, on_progress) for group in groups]

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """Every problem needs a final answer."""
        super().check_data(config, problems, resources)
        if resources.verifier is not None:
            resources.verifier.check(problems)

    def check(self, problems: Sequence[Problem]) -> None:
        """Every problem needs a final answer."""
        self.verifier.check(problems)

    def _score(self, group: RolloutGroup, on_progress: OnProgress) -> tuple[AnyReward, ...]:
        cut_off = [self.clip_length and rollout.finish_reason == "length" for rollout in group.rollouts]
        read = [rollout.reply for rollout, clipped in zip(group.rollouts, cut_off, strict=True) if not clipped]
        verdicts = iter(self.verifier.verdicts([group.problem] * len(read), read))
        rewards = tuple(
            RolloutReward(value=float(not clipped and next(verdicts)), length=len(rollout), cut_off=clipped)
            for rollout, clipped in zip(group.rollouts, cut_off, strict=True)
        )
        on_progress(len(group.rollouts))
        return rewards
