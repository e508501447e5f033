"""Another, usually smaller, model as the judge."""

from __future__ import annotations

from exprl.component import required_choice
from exprl.judges.llm import ReferenceJudge
from exprl.models.provider import ModelProvider
from exprl.registry import JUDGES, MODELS


@JUDGES.register("smaller_model")
class SmallerModelJudge(ReferenceJudge):
    """A model of its own grades with the reference in view; its weights never change.

    The paper finds 4B parameters enough and 0.6B useless (judge calibration): measure before trusting one.
    """

    model: ModelProvider | str = required_choice(MODELS, help="the judge's own model")
