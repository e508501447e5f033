"""The ablation: whoever grades, without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from exprl.judges.base import Judge
from exprl.judges.wrapping import WrappingJudge, refused
from exprl.registry import JUDGES
from exprl.resources import Resources
from exprl.types import Problem


@JUDGES.register("no_reference")
class NoReferenceJudge(WrappingJudge):
    """What the judge it stands around says without a reference: a language model from problem and attempt alone.

    `reference_steps` knows nothing else: in its place the run's verifier says whether the final answer is right.
    """

    needs_reference: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(WrappingJudge.Config):
        """The judge it stands around."""

        def __post_init__(self) -> None:
            if self.judge is not None and not _can_do_without(self.judge.cls):
                raise refused(self.judge, "does not say how it grades without a reference", _can_do_without)

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> NoReferenceJudge:
        """Around what the judge of its config becomes without a reference."""
        return cls(config, config.judge.build(resources).without_reference(resources))

    def shown(self, problem: Problem) -> Problem:
        """Without reference and steps."""
        return problem.without_reference()


def _can_do_without(judge: type[Judge]) -> bool:
    return judge.without_reference is not Judge.without_reference
