"""ExpRL-Process: the judge's score of every prefix, or of every segment alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, ClassVar, Literal

from exprl.checks.contracts import check_prefix_ends, check_scored, check_segments, given_by
from exprl.component import choose, option, title_of
from exprl.config.ranges import PositiveInt
from exprl.errors import ConfigError
from exprl.judges.prefixes import Parts, PrefixRequest
from exprl.registry import REWARDS, SLICERS
from exprl.rewards.judged import JudgedReward
from exprl.slicers.base import ScoredSlicer, Slicer
from exprl.slicers.cuts import even_ends
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import (
    AnyReward,
    Curve,
    Judgement,
    JudgeRequest,
    Problem,
    Rollout,
    RolloutGroup,
    Segment,
    SegmentRewards,
)

SINGLE_SHARE = 0.95
"""From this share of rollouts that are one segment on, there is hardly a process left to reward."""


@REWARDS.register("process")
class ProcessReward(JudgedReward):
    """The judge's normalised score after each segment (ExpRL-Process, arXiv:2606.17024).

    A slicer that cuts by scores gets those of the prefixes that it asks for, and each segment is worth what the judge
    said of the one that ends with it: no prefix is judged twice.
    """

    granularity: ClassVar[Literal["rollout", "segment"]] = "segment"
    gives_scores: ClassVar[bool] = True

    slicer: Slicer = choose(SLICERS, default="delimiter", help="how a rollout is cut into segments")
    show: Literal["prefix", "segment"] = option(
        default="prefix",
        help="what the judge sees of segment k: all up to its end (the paper), or it alone (authors' script)",
    )
    curve_every: PositiveInt | None = option(
        default=None,
        help="also ask the judge about the prefix every so many tokens, for its scores to be kept with the rollouts; "
        "null: only where segments need it",
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """A curve is one of prefixes."""
        if config.show == "prefix":
            return
        if issubclass(config.slicer.cls, ScoredSlicer):
            raise ConfigError(
                f"show: must be prefix with slicer {config.slicer.name!r}, which cuts by the scores of prefixes, and "
                "these are then the segments' own, but got 'segment'."
            )
        if config.curve_every is not None:
            raise ConfigError(
                f"curve_every: {config.curve_every} asks about prefixes, but show is 'segment'. Set show=prefix, or "
                "curve_every=null."
            )

    def setup(self) -> None:
        """Nothing has been begun."""
        super().setup()
        self._begun: dict[int, _Asked] = {}

    def score(
        self, groups: Sequence[RolloutGroup], on_progress: OnProgress = no_progress
    ) -> list[tuple[AnyReward, ...]]:
        """All judgements in one call, one a segment or a point of the curve; cut-off rollouts are not asked about."""
        asked = [[self._asked(group.problem, rollout) for rollout in group.rollouts] for group in groups]
        self._begun.clear()
        requests = [request for group in asked for one in group for request in one.requests]
        judgements = iter(self.ask(requests, on_progress))
        return [tuple(self._reward(one, judgements) for one in group) for group in asked]

    def advice(self, rewards: Sequence[tuple[AnyReward, ...]]) -> str | None:
        """That nearly every rollout is one segment, if so: what is left of a process reward is an outcome reward."""
        scored = isinstance(self.slicer, ScoredSlicer)  # cuts none that is cut off and not judged
        every = [reward for group in rewards for reward in group if reward.length and not (scored and reward.cut_off)]
        single = [reward for reward in every if isinstance(reward, SegmentRewards) and len(reward.segments) == 1]
        if not every or len(single) < SINGLE_SHARE * len(every):
            return None
        mean = sum(reward.length for reward in every) / len(every)
        return (
            f"{len(single)} of {len(every)} rollouts (of {mean:.0f} tokens on average) are one segment for slicer "
            f"{title_of(self.slicer)}, so this process reward is an outcome reward. {self.slicer.advice}"
        )

    def start(self, problem: Problem, rollout: Rollout) -> None:
        """Let the judge begin with this rollout, which is not cut again when it is scored."""
        self._begun[id(rollout)] = asked = self._asked(problem, rollout)
        self.begin(asked.requests)

    def requests(self, problem: Problem, rollout: Rollout) -> list[JudgeRequest]:
        """One request a segment, or a point of the curve."""
        return list(self._asked(problem, rollout).requests)

    def cut(self, rollout: Rollout) -> tuple[Segment, ...]:
        """The slicer's segments; raises `ContractError` if they do not cover the rollout's tokens."""
        with given_by(self._slicer):
            return check_segments(rollout, self.slicer.slice(rollout), self._slicer)

    def _asked(self, problem: Problem, rollout: Rollout) -> _Asked:
        known = self._begun.get(id(rollout))
        if known is not None and known.problem is problem:
            return known
        cut_off = self.cut_off(rollout)
        if isinstance(self.slicer, ScoredSlicer):
            segments, own = None, () if cut_off else self._prefix_ends(self.slicer, rollout)
        else:
            segments = self.cut(rollout)
            own = tuple(segment.end for segment in segments)
        more = () if self.curve_every is None else even_ends(rollout, self.curve_every)
        ends = () if cut_off else tuple(sorted({*own, *more}))
        return _Asked(
            problem=problem,
            rollout=rollout,
            segments=segments,
            slicer_ends=own,
            ends=ends,
            requests=_requests(problem, rollout, ends, self.show),
        )

    def _reward(self, asked: _Asked, judgements: Iterator[Judgement]) -> AnyReward:
        rollout, segments = asked.rollout, asked.segments
        if self.cut_off(rollout):
            whole = (Segment(0, len(rollout)),) if len(rollout) else ()
            return SegmentRewards(segments=whole if segments is None else segments, values=(), cut_off=True)
        at = dict(zip(asked.ends, islice(judgements, len(asked.ends)), strict=True))
        if segments is None:
            segments = self._cut_by(rollout, {end: at[end].score for end in asked.slicer_ends})
        own = tuple(at[segment.end] for segment in segments)
        swept = asked.segments is None or self.curve_every is not None
        return SegmentRewards(
            segments=segments,
            values=tuple(map(self.value, own)),
            judgements=own,
            curve=Curve(ends=asked.ends, judgements=tuple(at.values())) if swept else None,
        )

    # ------------------------------------------------------------------ a slicer that cuts by scores

    def _prefix_ends(self, slicer: ScoredSlicer, rollout: Rollout) -> tuple[int, ...]:
        with given_by(self._slicer):
            return check_prefix_ends(rollout, slicer.prefix_ends(rollout), self._slicer)

    def _cut_by(self, rollout: Rollout, scores: dict[int, float | None]) -> tuple[Segment, ...]:
        assert isinstance(self.slicer, ScoredSlicer)
        with given_by(self._slicer):
            segments = self.slicer.slice_scored(rollout, tuple(scores.values()))
            return check_scored(check_segments(rollout, segments, self._slicer), tuple(scores), self._slicer)

    @property
    def _slicer(self) -> str:
        return f"slicer {title_of(self.slicer)}"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the judge is asked about one rollout, which is held so that its `id` stays its own.

    Attributes:
        problem: what is attempted.
        rollout: the attempt.
        segments: those of a slicer that cuts by the text; None of one that cuts by scores.
        slicer_ends: the tokens at which segments end, or at which such a slicer wants scores.
        ends: the token at which what each request shows ends.
        requests: as many.
    """

    problem: Problem
    rollout: Rollout
    segments: tuple[Segment, ...] | None
    slicer_ends: tuple[int, ...]
    ends: tuple[int, ...]
    requests: tuple[JudgeRequest, ...]


def _requests(
    problem: Problem, rollout: Rollout, ends: Sequence[int], show: Literal["prefix", "segment"]
) -> tuple[JudgeRequest, ...]:
    texts = [rollout.text_of(start, end) for start, end in pairwise([0, *ends])]
    if show == "segment":
        return tuple(JudgeRequest(problem=problem, trace=text, view=show) for text in texts)
    return tuple(PrefixRequest(problem=problem, trace=prefix) for prefix in Parts(texts).prefixes())
