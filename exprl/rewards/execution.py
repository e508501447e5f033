"""The reward of a program: its tests."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, ClassVar, Literal

from exprl.component import option
from exprl.errors import ExecutionError
from exprl.execution.answer import program_of
from exprl.execution.judging import Outcome
from exprl.execution.options import Executing
from exprl.execution.runner import outcome_of
from exprl.execution.tests import read_tests
from exprl.registry import REWARDS
from exprl.resources import Resources
from exprl.rewards.base import Reward
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import AnyReward, Judgement, Problem, Rollout, RolloutGroup, RolloutReward


@REWARDS.register("execution")
class ExecutionReward(Executing, Reward):
    """1 if the program in the rollout passes all its tests, else 0; or the share of tests that it passes.

    Programs are run while others are still sampled. One that cannot be judged, because no sandbox can be made, has no
    reward; that is never a 0.
    """

    granularity: ClassVar[Literal["rollout", "segment"]] = "rollout"
    judged_as: ClassVar[str] = "program"
    overlaps: ClassVar[bool] = True

    credit: Literal["all", "share"] = option(
        default="all", help="all: 1 for a program that passes every test; share: the share of tests that it passes"
    )
    clip_length: bool = option(default=True, help="a rollout cut off at the length limit earns 0 whatever it says")

    @classmethod
    def reads_references(cls, config: Any) -> bool:
        """Tests alone."""
        del config
        return False

    def setup(self) -> None:
        """No program has been started yet."""
        self._runner = self.runner(every=self.credit == "share")

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """Every problem needs tests."""
        super().check_data(config, problems, resources)
        for problem in problems:
            read_tests(problem)

    def check(self, problems: Sequence[Problem]) -> None:
        """The same."""
        self.check_data(self.config, problems, Resources())

    def start(self, problem: Problem, rollout: Rollout) -> None:
        """Run its program, as soon as there is room."""
        self._begin(problem, rollout)

    def score(
        self, groups: Sequence[RolloutGroup], on_progress: OnProgress = no_progress
    ) -> list[tuple[AnyReward, ...]]:
        """A reward a rollout, with what was found as its judgement."""
        begun = [[(one, self._begin(group.problem, one)) for one in group.rollouts] for group in groups]
        return [
            tuple(self._reward(group.problem, one, future, on_progress) for one, future in futures)
            for group, futures in zip(groups, begun, strict=True)
        ]

    def sync(self) -> None:
        """The next step's programs are others."""
        self._runner.forget()
        super().sync()

    def close(self) -> None:
        """End what still runs."""
        self._runner.close()
        super().close()

    def _begin(self, problem: Problem, rollout: Rollout) -> Future[Outcome] | None:
        if self.clip_length and rollout.finish_reason == "length":
            return None
        tests = read_tests(problem)
        return self._runner.start(program_of(rollout.reply, tests), tests)

    def _reward(
        self, problem: Problem, rollout: Rollout, future: Future[Outcome] | None, on_progress: OnProgress
    ) -> RolloutReward:
        if future is None:
            on_progress(1)
            return RolloutReward(value=0.0, length=len(rollout), cut_off=True)
        try:
            outcome = outcome_of(problem, future)
        except ExecutionError as error:
            value, judgement = None, Judgement(score=None, status="error", rationale=str(error))
        else:
            value = outcome.share if self.credit == "share" else float(outcome.passed)
            judgement = Judgement(score=1 + 4 * value, rationale=str(outcome))
        on_progress(1)
        return RolloutReward(value=value, length=len(rollout), judgements=(judgement,))
