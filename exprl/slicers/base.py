"""The slicer contract."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from exprl.component import Component
from exprl.types import Rollout, Segment


class Slicer(Component):
    """Cuts a rollout into contiguous segments that cover exactly its sampled tokens."""

    registered_family: ClassVar[str] = "slicer"

    @abstractmethod
    def slice(self, rollout: Rollout) -> tuple[Segment, ...]:
        """Segments in order: the first starts at 0, each starts where the last ended, the last ends at T.

        A rollout of 0 tokens gives no segment. Cuts by `rollout.token_ids` and `rollout.token_ends` only; text is
        never tokenised again.
        """

    @property
    def advice(self) -> str:
        """What to change where it finds one segment only."""
        return "Change the options of reward.slicer, or choose reward.slicer.name=token_window."
