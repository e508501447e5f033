"""The ablation: a judge that never sees a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from exprl.component import Choice, choose, option
from exprl.judges.llm import LLMJudge
from exprl.judges.same_model import Weights, policy_backend
from exprl.judges.smaller_model import own_backend
from exprl.registry import JUDGES, MODELS
from exprl.resources import Resources
from exprl.types import Problem


@JUDGES.register("no_reference")
class NoReferenceJudge(LLMJudge):
    """Grades from problem and attempt alone, by the same rubric and model as the judge it replaces.

    Swapping the name of a `same_model` or `smaller_model` judge for this one keeps all their options.
    """

    needs_reference: ClassVar[bool] = False
    template: ClassVar[str] = "no_reference"

    @dataclass(frozen=True, kw_only=True)
    class Config(LLMJudge.Config):
        """Whose weights, and how the judge is asked."""

        weights: Weights = option("frozen", "frozen: the initial policy judges throughout; live: as it trains")
        model: Annotated[Choice, MODELS] | None = choose(MODELS, None, "a model of its own; null: the policy's")

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> NoReferenceJudge:
        """On its own model if one is given, else on the run's policy."""
        if config.model is not None:
            return cls(config, own_backend(config, resources, cls.registered_name))
        return cls(config, policy_backend(config, resources, cls.registered_name))

    def contents(self, problem: Problem) -> Mapping[str, str]:
        """The question, and nothing of the scaffold."""
        return {"problem": problem.question.text}
