"""ExpRL-Process: the judge's score of every prefix, or of every segment alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

from exprl.checks.contracts import check_segments, given_by
from exprl.component import choose, option, title_of
from exprl.judges.prefixes import Parts, PrefixRequest
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

    def setup(self) -> None:
        """Nothing has been begun."""
        super().setup()
        self._begun: dict[int, _Asked] = {}

    def score(
        self, groups: Sequence[RolloutGroup], on_progress: OnProgress = no_progress
    ) -> list[tuple[AnyReward, ...]]:
        """One judgement a segment, all asked for in one call; cut-off rollouts are sliced but not asked about."""
        asked = [[self._asked(group.problem, rollout) for rollout in group.rollouts] for group in groups]
        self._begun.clear()
        requests = [request for group in asked for one in group for request in one.requests]
        judgements = iter(self.ask(requests, on_progress))
        return [tuple(self._reward(one, judgements) for one in group) for group in asked]

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

    def start(self, problem: Problem, rollout: Rollout) -> None:
        """Let the judge begin with this rollout, which is cut here and not again when it is scored."""
        self._begun[id(rollout)] = asked = self._asked(problem, rollout)
        self.begin(asked.requests)

    def requests(self, problem: Problem, rollout: Rollout) -> list[JudgeRequest]:
        """One request a segment."""
        return list(self._asked(problem, rollout).requests)

    def cut(self, rollout: Rollout) -> tuple[Segment, ...]:
        """The slicer's segments; raises `ContractError` if they do not cover the rollout's tokens."""
        who = f"slicer {title_of(self.slicer)}"
        with given_by(who):
            return check_segments(rollout, self.slicer.slice(rollout), who)

    def _asked(self, problem: Problem, rollout: Rollout) -> _Asked:
        known = self._begun.get(id(rollout))
        if known is not None and known.problem is problem:
            return known
        segments = self.cut(rollout)
        requests = () if self.cut_off(rollout) else _requests(problem, rollout, segments, self.show)
        return _Asked(problem=problem, rollout=rollout, segments=segments, requests=requests)

    def _reward(self, asked: _Asked, judgements: Iterator[Judgement]) -> AnyReward:
        segments = asked.segments
        if self.cut_off(asked.rollout):
            return SegmentRewards(segments=segments, values=(), cut_off=True)
        own = tuple(islice(judgements, len(segments)))
        return SegmentRewards(segments=segments, values=tuple(map(self.value, own)), judgements=own)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the judge is asked about one rollout, which is held so that its `id` stays its own."""

    problem: Problem
    rollout: Rollout
    segments: tuple[Segment, ...]
    requests: tuple[JudgeRequest, ...]


def _requests(
    problem: Problem, rollout: Rollout, segments: Sequence[Segment], show: Literal["prefix", "segment"]
) -> tuple[JudgeRequest, ...]:
    texts = [rollout.text_of(segment.start, segment.end) for segment in segments]
    if show == "segment":
        return tuple(JudgeRequest(problem=problem, trace=text, view=show) for text in texts)
    return tuple(PrefixRequest(problem=problem, trace=prefix) for prefix in Parts(texts).prefixes())
