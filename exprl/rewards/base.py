"""The reward contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from exprl.component import Stateful
from exprl.rewards.checks import check_failures
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import AnyReward, Problem, Rollout, RolloutGroup

MOST_LOST = 0.25
"""Of a step's rollouts, see `Reward.check_step`; a reward that asks a judge has an option for it."""


class Reward(Stateful):
    """Scores the rollouts of each group: one value a rollout, or one a segment."""

    registered_family: ClassVar[str] = "reward"

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
        """Raise where a step cannot be learned from; `rewards` are those of its groups on all ranks.

        Raises:
            JudgeError: more than a quarter of the rollouts have no reward.
        """
        check_failures(rewards, MOST_LOST)

    def advice(self, rewards: Sequence[tuple[AnyReward, ...]]) -> str | None:
        """What to change about a step that can be learned from, but hardly as it is meant; None: nothing seen."""
        del rewards
        return None

    def start(self, problem: Problem, rollout: Rollout) -> None:
        """A hint that `score` will be asked about this rollout, given while others are still being sampled."""

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise, naming the first problem that lacks what this reward needs, before a run starts.

        What it is built of is asked.
        """
        for part in self.lasting().values():
            if (check := getattr(part, "check", None)) is not None:
                check(problems)
