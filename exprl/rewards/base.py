"""The reward contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

from exprl.component import Stateful
from exprl.errors import ConfigError
from exprl.rewards.checks import check_failures
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import AnyReward, Problem, Rollout, RolloutGroup

Granularity = Literal["rollout", "segment"]

MOST_LOST = 0.25
"""Of a step's rollouts, see `Reward.check_step`; a reward that asks a judge has an option for it."""


class Reward(Stateful):
    """Scores the rollouts of each group: one value a rollout, or one a segment."""

    registered_family: ClassVar[str] = "reward"

    granularity: ClassVar[Granularity]

    judged_as: ClassVar[str] = "judge"
    """What its judgements are called in metrics: `judge/count`. Those of who asks no judge have another name."""

    gives_scores: ClassVar[bool] = False
    """Whether a slicer that it holds may be one that cuts by scores, a `ScoredSlicer`."""

    @classmethod
    def granularities(cls, config: Any) -> dict[str, Granularity]:
        """What has a reward with these options, by the key of the reward within that gives it; `""` is this one.

        Raises:
            ConfigError: the class does not say it.
        """
        del config
        given: Any = getattr(cls, "granularity", None)
        if given not in get_args(Granularity):
            raise ConfigError(
                f"name: {cls.registered_name!r} ({cls.__module__}.{cls.__qualname__}) must define granularity as "
                f"{' or '.join(map(repr, get_args(Granularity)))}, but it is {given!r}."
            )
        return {"": given}

    @classmethod
    def reads_references(cls, config: Any) -> bool:
        """Whether it reads reference solutions with these options; a run in which nothing does holds none."""
        del config
        return True

    @classmethod
    def graded_by(cls, config: Any, problems: Sequence[Problem], seed: int) -> Sequence[Problem]:
        """For each of a run's problems the one by whose scaffold its rollouts are graded: the problem itself."""
        del config, seed
        return problems

    @abstractmethod
    def score(
        self, groups: Sequence[RolloutGroup], on_progress: OnProgress = no_progress
    ) -> list[tuple[AnyReward, ...]]:
        """For each group one reward a rollout, in order. Values lie in [0, 1]; None marks a failed judgement.

        `on_progress` is called with the number of things scored as they are, for a progress bar.
        """

    def scorers(self, problems: Sequence[Problem]) -> list[tuple[str, Reward, list[int]]]:
        """Which reward scores which of these problems: its key within this one, itself, and their places.

        A step's rewards are looked at, by `check_step` and `advice`, by whoever gave them.
        """
        return [("", self, list(range(len(problems))))]

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
