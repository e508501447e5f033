"""The reward contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from exprl.component import Component
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import AnyReward, Problem, Rollout, RolloutGroup


class Reward(Component):
    """Scores the rollouts of each group: one value a rollout, or one a segment."""

    granularity: ClassVar[Literal["rollout", "segment"]]

    @classmethod
    def reads_references(cls, config: Any) -> bool:
        """Whether it reads reference solutions with these options; a run in which nothing does holds none."""
        del config
        return True

    @abstractmethod
    def score(
        self, groups: Sequence[RolloutGroup], on_progress: OnProgress = no_progress
    ) -> list[tuple[AnyReward, ...]]:
        """For each group one reward a rollout, in order. Values lie in [0, 1]; None marks a failed judgement.

        `on_progress` is called with the number of things scored as they are, for a progress bar.
        """

    def check_step(self, rewards: Sequence[tuple[AnyReward, ...]]) -> None:
        """Raise where a step cannot be learned from; `rewards` are those of its groups on all ranks."""

    def advice(self, rewards: Sequence[tuple[AnyReward, ...]]) -> str | None:
        """What to change about a step that can be learned from, but hardly as it is meant; None: nothing seen."""
        del rewards
        return None

    def start(self, problem: Problem, rollout: Rollout) -> None:
        """A hint that `score` will be asked about this rollout, given while others are still being sampled."""

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise, naming the first problem that lacks what this reward needs, before a run starts."""

    def texts(self) -> dict[str, str]:
        """The texts that shape its values beside its config, by what they are: a run goes on with the same."""
        return {}

    def prepare(self) -> None:
        """Called on every rank when a run starts, with all weights in place."""

    def close(self) -> None:
        """Free what the reward holds; called when a run ends, also by an error."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this reward; it must pickle."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""

    def sync(self) -> None:
        """Called after every policy update."""
