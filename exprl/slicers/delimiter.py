"""Segments that begin or end at a delimiter in the text, as the paper's `###` steps."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Literal

from exprl.component import option
from exprl.config.ranges import NonEmpty, PositiveInt
from exprl.registry import SLICERS
from exprl.slicers.base import Slicer
from exprl.slicers.cuts import merge_blank, merge_evenly, segments_between
from exprl.types import Rollout, Segment


@SLICERS.register("delimiter")
class DelimiterSlicer(Slicer):
    """Cut at every occurrence of a delimiter in the text (ExpRL, section on process rewards: `###`).

    Occurrences are found in the text from the left without overlap, so the delimiter may be spread over tokens in any
    way. With `position: start` a segment begins with the token that holds the delimiter's first character (whole:
    what else that token holds goes with it); with `end` it closes with the token that holds the last one. A segment
    of nothing but delimiters and white space joins the one after it, a last one the one before it, so that no judge
    is asked about nothing; so does a lone end-of-sequence token. Without any delimiter there is one segment.
    """

    delimiter: NonEmpty = option(default="###", help='text that marks a step (the paper: "###")')
    position: Literal["start", "end"] = option(
        default="start", help="the delimiter opens a segment (start) or closes one (end)"
    )
    max_segments: PositiveInt | None = option(
        default=None, help="merge neighbours evenly down to this many; null: no limit"
    )

    def slice(self, rollout: Rollout) -> tuple[Segment, ...]:
        """Segments of the T tokens, in order."""
        segments = merge_blank(
            segments_between(self._cuts(rollout), len(rollout)),
            lambda segment: not rollout.text_of(segment.start, segment.end).replace(self.delimiter, "").strip(),
        )
        return segments if self.max_segments is None else merge_evenly(segments, self.max_segments)

    @property
    def advice(self) -> str:
        """See `Slicer`."""
        delimiter, verb = self.delimiter, "Open" if self.position == "start" else "End"
        return (
            f"Let the prompt ask for the delimiter, {delimiter!r} ({verb} every step with {delimiter!r}; the key is "
            "prompt.template, or of prompts by domain prompt.default.template or prompt.domains.NAME.template), set "
            "reward.slicer.delimiter to what the policy writes between its steps (see exprl rollouts RUN), or choose "
            "reward.slicer.name=token_window."
        )

    def _cuts(self, rollout: Rollout) -> Iterator[int]:
        delimiter, ends = self.delimiter, rollout.token_ends
        found = rollout.text.find(delimiter)
        while found >= 0:
            if self.position == "start":
                yield bisect_right(ends, found)
            else:
                yield bisect_left(ends, found + len(delimiter)) + 1
            found = rollout.text.find(delimiter, found + len(delimiter))
