"""ExpRL-Process: the judge's score of every prefix, or of every segment alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import ClassVar, Literal

from exprl.checks.contracts import check_segments, given_by
from exprl.component import choose, option, title_of
from exprl.registry import REWARDS, SLICERS
from exprl.rewards.judged import JudgedReward
from exprl.slicers.base import Slicer
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import AnyReward, Judgement, JudgeRequest, Problem, Rollout, RolloutGroup, Segment, SegmentRewards

SINGLE_SHARE = 0.95
"""From this share of rollouts that are one segment on, there is hardly a process left to reward."""


@REWARDS.register("process")
class ProcessReward(JudgedReward):
    """The judge's normalised score after each segment (ExpRL-Process, arXiv:2606.17024)."""

    granularity: ClassVar[Literal["rollout", "segment"]] = "segment"

    slicer: Slicer = choose(SLICERS, default="delimiter", help="how a rollout is cut into segments")
    show: Literal["prefix", "segment"] = option(
        default="prefix",
        help="what the judge sees of segment k: all up to its end (the paper), or it alone (authors' script)",
    )

    def score(
        self, groups: Sequence[RolloutGroup], on_progress: OnProgress = no_progress
    ) -> list[tuple[AnyReward, ...]]:
        """One judgement a segment, all asked for in one call; cut-off rollouts are sliced but not asked about."""
        cuts = [[self.cut(rollout) for rollout in group.rollouts] for group in groups]
        requests = [
            request
            for group, sliced in zip(groups, cuts, strict=True)
            for rollout, segments in zip(group.rollouts, sliced, strict=True)
            for request in self._about(group.problem, rollout, segments)
        ]
        judgements = iter(self.ask(requests, on_progress))
        return [
            tuple(self._reward(rollout, segments, judgements) for rollout, segments in zip(g.rollouts, s, strict=True))
            for g, s in zip(groups, cuts, strict=True)
        ]

    def advice(self, rewards: Sequence[tuple[AnyReward, ...]]) -> str | None:
        """That nearly every rollout is one segment, if so: what is left of a process reward is an outcome reward."""
        every = [reward for group in rewards for reward in group if reward.length]
        single = [reward for reward in every if isinstance(reward, SegmentRewards) and len(reward.segments) == 1]
        if not every or len(single) < SINGLE_SHARE * len(every):
            return None
        mean = sum(reward.length for reward in every) / len(every)
        return (
            f"{len(single)} of {len(every)} rollouts (of {mean:.0f} tokens on average) are one segment for slicer "
            f"{title_of(self.slicer)}, so this process reward is an outcome reward. {self.slicer.advice}"
        )

    def requests(self, problem: Problem, rollout: Rollout) -> list[JudgeRequest]:
        """One request a segment."""
        return self._about(problem, rollout, self.cut(rollout))

    def cut(self, rollout: Rollout) -> tuple[Segment, ...]:
        """The slicer's segments; raises `ContractError` if they do not cover the rollout's tokens."""
        who = f"slicer {title_of(self.slicer)}"
        with given_by(who):
            return check_segments(rollout, self.slicer.slice(rollout), who)

    def _about(self, problem: Problem, rollout: Rollout, segments: Sequence[Segment]) -> list[JudgeRequest]:
        if self.cut_off(rollout):
            return []
        whole = self.show == "prefix"
        return [
            JudgeRequest(problem=problem, trace=rollout.text_of(0 if whole else s.start, s.end), view=self.show)
            for s in segments
        ]

    def _reward(self, rollout: Rollout, segments: tuple[Segment, ...], judgements: Iterator[Judgement]) -> AnyReward:
        if self.cut_off(rollout):
            return SegmentRewards(segments=segments, values=(), cut_off=True)
        own = tuple(islice(judgements, len(segments)))
        return SegmentRewards(segments=segments, values=tuple(map(self.value, own)), judgements=own)
