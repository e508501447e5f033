"""Another, usually smaller, model as the judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from exprl.component import Choice, required_choice
from exprl.judges.llm import ReferenceJudge
from exprl.registry import JUDGES, MODELS


@JUDGES.register("smaller_model")
class SmallerModelJudge(ReferenceJudge):
    """A model of its own grades with the reference in view; its weights never change.

    The paper finds 4B parameters enough and 0.6B useless (judge calibration): measure before trusting one.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ReferenceJudge.Config):
        """Which model, and how it is asked."""

        model: Annotated[Choice, MODELS] = required_choice(MODELS, "the judge's own model")
