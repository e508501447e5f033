"""Another, usually smaller, model as the judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from exprl.component import Choice, required_choice
from exprl.judges.backends.base import JudgeBackend, JudgeModel
from exprl.judges.llm import ReferenceJudge, open_backend
from exprl.registry import JUDGES, MODELS
from exprl.resources import Resources


@JUDGES.register("smaller_model")
class SmallerModelJudge(ReferenceJudge):
    """A model of its own grades with the reference in view; its weights never change.

    The paper finds 4B parameters enough and 0.6B useless (judge calibration): measure before trusting one.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ReferenceJudge.Config):
        """Which model, and how it is asked."""

        model: Annotated[Choice, MODELS] = required_choice(MODELS, "the judge's own model")

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> SmallerModelJudge:
        """Load the model; it judges on the policy's device where there is a policy."""
        return cls(config, own_backend(config, resources, cls.registered_name))


def own_backend(config: Any, resources: Resources, who: str) -> JudgeBackend:
    """The backend on the model `config.model` provides."""
    return open_backend(config, JudgeModel(weights="own", own=config.model, judge=who), resources)
