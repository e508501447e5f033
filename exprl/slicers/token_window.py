"""Segments of a fixed number of sampled tokens."""

from __future__ import annotations

from typing import Any

from exprl.component import option
from exprl.config.ranges import PositiveInt
from exprl.errors import ConfigError
from exprl.registry import SLICERS
from exprl.slicers.base import Slicer
from exprl.slicers.cuts import merge_blank, segments_between
from exprl.types import Rollout, Segment


@SLICERS.register("token_window")
class TokenWindowSlicer(Slicer):
    """Cut every `window` sampled tokens, whatever they say.

    A window of nothing but white space or zero-width tokens joins the one after it, a last one the one before it, so
    that no judge is asked about nothing; a last window shorter than `min_last` joins the one before it too.
    """

    window: PositiveInt = option(default=512, help="tokens a segment")
    min_last: PositiveInt = option(
        default=1, help="a last segment of fewer tokens joins the one before it; 1: keep any"
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """A last segment is no longer than the others."""
        if config.min_last > config.window:
            raise ConfigError(f"min_last: must be at most window ({config.window}), but got {config.min_last}.")

    @property
    def advice(self) -> str:
        """See `Slicer`."""
        return f"Set reward.slicer.window, {self.window} tokens now, well below the length of the rollouts."

    def slice(self, rollout: Rollout) -> tuple[Segment, ...]:
        """Segments of the T tokens, in order."""
        length = len(rollout)
        cuts = range(self.window, length - self.min_last + 1, self.window)
        return merge_blank(
            segments_between(cuts, length),
            lambda segment: not rollout.text_of(segment.start, segment.end).strip(),
        )
