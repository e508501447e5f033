"""The policy's own model as the judge."""

from __future__ import annotations

from typing import Literal

from exprl.component import option
from exprl.judges.llm import ReferenceJudge
from exprl.registry import JUDGES

Weights = Literal["frozen", "live"]


@JUDGES.register("same_model")
class SameModelJudge(ReferenceJudge):
    """The policy's model grades with the reference in view (the paper's judge).

    `frozen` shares the run's frozen initial policy, so no copy is loaded for judging; `live` judges with the policy as
    it is at that moment, so the standard moves with training.
    """

    weights: Weights = option(help="frozen: the initial policy judges throughout; live: the policy as it trains")
