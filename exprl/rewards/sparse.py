"""The sparse reward: is the final answer right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from exprl.component import option
from exprl.errors import ConfigError
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

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """What becomes of cut-off rollouts."""

        clip_length: bool = option(True, "a rollout cut off at the length limit earns 0 whatever it says")

    config: Any

    def __init__(self, config: Config | None = None, *, verifier: Verifier) -> None:
        super().__init__(config)
        self.verifier = verifier

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> SparseReward:
        """With the run's verifier."""
        if resources.verifier is None:
            raise ConfigError("reward 'sparse' needs a verifier: set verifier.name, or pass Resources(verifier=...).")
        return cls(config, verifier=resources.verifier)

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

    def check(self, problems: Sequence[Problem]) -> None:
        """Every problem needs a final answer."""
        self.verifier.check(problems)

    def _score(self, group: RolloutGroup, on_progress: OnProgress) -> tuple[AnyReward, ...]:
        cut_off = [self.config.clip_length and rollout.finish_reason == "length" for rollout in group.rollouts]
        read = [rollout.reply for rollout, clipped in zip(group.rollouts, cut_off, strict=True) if not clipped]
        verdicts = iter(self.verifier.verdicts([group.problem] * len(read), read))
        rewards = tuple(
            RolloutReward(value=float(not clipped and next(verdicts)), length=len(rollout), cut_off=clipped)
            for rollout, clipped in zip(group.rollouts, cut_off, strict=True)
        )
        on_progress(len(group.rollouts))
        return rewards
