"""Segments that end where the judge's score bends, whatever the text looks like there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import Annotated, Any, Literal

from exprl.component import option
from exprl.config.ranges import PositiveInt, Range
from exprl.errors import ConfigError
from exprl.registry import SLICERS
from exprl.slicers.base import ScoredSlicer
from exprl.slicers.cuts import divide_evenly, even_ends, merge_blank
from exprl.types import Rollout, Segment

POINTS = 32
"""Prefixes of a rollout that the judge is asked about where `every` does not say it."""

PARTS = 8
"""Segments that a rollout has at least, where `max_tokens` does not say it, and points and `min_tokens` allow."""


@SLICERS.register("change_point")
class ChangePointSlicer(ScoredSlicer):
    """Ask the judge for its score every few tokens, and cut where the score-per-token curve bends; no delimiter needed.

    The curve is divided into pieces, of all divisions the best one: with `fit: level` its points lie about their mean
    in each piece, so that every rise is a cut; with `fit: line` about a straight line, so that steady progress is one
    segment and another begins where the score stops rising, or jumps. A segment ends with the first point of the next
    piece: what led to a jump has the credit for it.

    A cut must lower the sum of squared distances by `penalty` times the variance of the noise, times the parameters it
    adds (a place, and two of a line or one of a level), times log(points). With 1 that is the Bayesian information
    criterion (Yao 1988, doi:10.1016/0167-7152(88)90118-6), which finds too many in curves as short as these. The noise
    is measured on the curve itself.

    A point whose judgement failed is no point of the curve, and nothing is cut there. Of a curve of fewer than two
    points there is one segment; so there is of a rollout that was cut off and earns nothing, about which no judge is
    asked.
    """

    every: PositiveInt | None = option(
        default=None,
        help=f"tokens between two prefixes that the judge is asked about; null: a {POINTS}nd of the rollout",
    )
    fit: Literal["level", "line"] = option(
        default="level", help="what the score does within a segment: it stays (level), or changes evenly (line)"
    )
    penalty: Annotated[float, Range(ge=1e-3, le=1e6)] = option(
        default=2.0, help="what a cut must save, in units of the Bayesian information criterion; more: fewer segments"
    )
    noise: Annotated[float, Range(ge=1e-3, le=4)] = option(
        default=0.1,
        help="least standard deviation of the score's noise, in Likert points; more where the curve shows more",
    )
    min_tokens: PositiveInt = option(default=1, help="a segment has at least this many tokens")
    max_tokens: Literal["auto"] | PositiveInt | None = option(
        default="auto",
        help="a longer segment is divided evenly, as far as min_tokens and max_segments allow, as all of its tokens "
        "would share one advantage; auto: an eighth of the rollout; null: none is divided",
    )
    max_segments: PositiveInt | None = option(default=None, help="segments of a rollout at most; null: no limit")

    @classmethod
    def check_options(cls, config: Any) -> None:
        """What is divided must not fall below the least length."""
        if isinstance(config.max_tokens, int) and config.max_tokens < 2 * config.min_tokens:
            raise ConfigError(
                f"max_tokens: must be at least twice min_tokens ({config.min_tokens}), but got {config.max_tokens}."
            )

    @property
    def advice(self) -> str:
        """See `Slicer`."""
        every = "a few tokens" if self.every is None else f"{self.every} tokens now, well below the rollouts' length"
        return (
            f"Lower reward.slicer.penalty, {self.penalty:g} now, or reward.slicer.noise, {self.noise:g} Likert points; "
            f"set reward.slicer.every ({every}); or see by `exprl judge RUN --curve` whether the judge's score moves."
        )

    def prefix_ends(self, rollout: Rollout) -> tuple[int, ...]:
        """Every `every` tokens, and all T."""
        most = self.max_tokens if isinstance(self.max_tokens, int) else len(rollout)
        return even_ends(rollout, self.every or min(ceil(len(rollout) / POINTS), most))

    def slice_scored(self, rollout: Rollout, scores: Sequence[float | None]) -> tuple[Segment, ...]:
        """The segments of the best approximation, in order."""
        ends = self.prefix_ends(rollout)
        known = [(end, score) for end, score in zip(ends, scores, strict=True) if score is not None]
        if len(known) < 2:
            return (Segment(0, len(rollout)),) if len(rollout) else ()
        places = self._division(*zip(*known, strict=True), length=len(rollout))
        pieces = [Segment(start, end) for start, end in pairwise(places) if start < end]
        longest = self._longest(pieces, len(rollout))
        segments = divide_evenly(pieces, longest, [end for end, _ in known], self.min_tokens)
        return merge_blank(segments, lambda segment: not rollout.text_of(segment.start, segment.end).strip())

    def _longest(self, pieces: Sequence[Segment], length: int) -> int:
        """Tokens of a segment at most, or as many more as it takes for `max_segments`."""
        if self.max_tokens is None:
            return length
        auto = max(ceil(length / PARTS), 2 * self.min_tokens)
        longest = self.max_tokens if isinstance(self.max_tokens, int) else auto
        while self.max_segments is not None and sum(ceil(len(one) / longest) for one in pieces) > self.max_segments:
            longest += ceil(longest / 16)
        return longest

    def _division(self, ends: Sequence[int], scores: Sequence[float], *, length: int) -> list[int]:
        """0, the tokens at which it is cut, and `length`; one may stand there twice, which is no segment."""
        import numpy as np  # options are read without

        from exprl.slicers import segmentation

        points, values = np.array(ends, dtype=np.float64), np.array(scores, dtype=np.float64)
        lines = self.fit == "line"
        costs = segmentation.line_costs(points, values) if lines else segmentation.level_costs(values)
        noise = max(self.noise, segmentation.noise_of(values, 2 if lines else 1))
        places = np.array([0, *ends[1:], length], dtype=np.int64)
        path = segmentation.cheapest(
            segmentation.at_least(costs, places, self.min_tokens),
            len(values),
            self.penalty * (3 if lines else 2) * noise**2 * float(np.log(len(values))),
            self.max_segments,
        )
        return [int(place) for place in places[path]]
