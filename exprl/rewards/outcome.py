"""ExpRL-Outcome: the judge's score of the whole rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from exprl.registry import REWARDS
from exprl.rewards.judged import JudgedReward
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import AnyReward, JudgeRequest, Problem, Rollout, RolloutGroup, RolloutReward


@REWARDS.register("outcome")
class OutcomeReward(JudgedReward):
    """The judge's normalised score of the whole rollout (ExpRL-Outcome, arXiv:2606.17024)."""

    granularity: ClassVar[Literal["rollout", "segment"]] = "rollout"

    def score(
        self, groups: Sequence[RolloutGroup], on_progress: OnProgress = no_progress
    ) -> list[tuple[AnyReward, ...]]:
        """One judgement a rollout, all asked for in one call; a cut-off rollout is not asked about."""
        requests = [r for group in groups for rollout in group.rollouts for r in self.requests(group.problem, rollout)]
        judgements = iter(self.ask(requests, on_progress))
        return [
            tuple(self._reward(rollout, () if self.cut_off(rollout) else (next(judgements),)) for rollout in g.rollouts)
            for g in groups
        ]

    def requests(self, problem: Problem, rollout: Rollout) -> list[JudgeRequest]:
        """One request about the whole rollout."""
        return [] if self.cut_off(rollout) else [JudgeRequest(problem=problem, trace=rollout.text)]

    def _reward(self, rollout: Rollout, judgements: tuple[Any, ...]) -> AnyReward:
        value = self.value(judgements[0]) if judgements else 0.0
        return RolloutReward(value=value, length=len(rollout), judgements=judgements, cut_off=not judgements)
