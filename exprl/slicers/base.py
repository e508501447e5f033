"""The slicer contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from exprl.component import Component, title_of
from exprl.config.fields import choices_in, chosen_by
from exprl.errors import ConfigError
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


class ScoredSlicer(Slicer):
    """Cuts by a judge's scores of the rollout's prefixes, which whoever holds both gets for it, once.

    The scores at the segments' ends are then those of the segments themselves, so no prefix is judged twice.
    """

    @abstractmethod
    def prefix_ends(self, rollout: Rollout) -> tuple[int, ...]:
        """After which tokens a score is wanted: ascending, the last one T; none of a rollout of 0 tokens."""

    @abstractmethod
    def slice_scored(self, rollout: Rollout, scores: Sequence[float | None]) -> tuple[Segment, ...]:
        """Segments as `slice` promises them, each ending at one of `prefix_ends`.

        Args:
            rollout: of T tokens.
            scores: the Likert score of the prefix up to each of `prefix_ends`; None where the judgement failed.
        """

    def slice(self, rollout: Rollout) -> tuple[Segment, ...]:
        """Not without scores; raises `ConfigError`."""
        raise ConfigError(
            f"slicer {title_of(self)} cuts by a judge's scores: give it to ProcessReward, which has a judge, or call "
            "slice_scored(rollout, scores) with the scores at prefix_ends(rollout)."
        )

    @classmethod
    def check_fit(cls, config: Any, experiment: Any) -> None:
        """Whoever holds it must be able to get it scores (`Reward.gives_scores`)."""
        for _, choice in choices_in(experiment.reward, "reward"):
            holds = any(chosen.config is config for chosen in chosen_by(choice.config))
            if holds and not getattr(choice.cls, "gives_scores", False):
                raise ConfigError(
                    f"{cls.registered_name!r} cuts by a judge's scores, which {choice.name!r} does not get for it. "
                    "Choose the reward process, or a slicer that cuts by the text: delimiter, token_window."
                )
