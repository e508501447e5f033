"""The policy's own model as the judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from exprl.component import option
from exprl.judges.backends.base import JudgeBackend, JudgeModel
from exprl.judges.llm import ReferenceJudge, open_backend
from exprl.registry import JUDGES
from exprl.resources import Resources

Weights = Literal["frozen", "live"]


@JUDGES.register("same_model")
class SameModelJudge(ReferenceJudge):
    """The policy's model grades with the reference in view (the paper's judge).

    `frozen` shares the run's frozen initial policy, so no copy is loaded for judging; `live` judges with the policy as
    it is at that moment, so the standard moves with training.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ReferenceJudge.Config):
        """Whose weights, and how the judge is asked."""

        weights: Weights = option(help="frozen: the initial policy judges throughout; live: the policy as it trains")

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> SameModelJudge:
        """On the run's frozen or live policy."""
        return cls(config, policy_backend(config, resources, cls.registered_name))


def policy_backend(config: Any, resources: Resources, who: str) -> JudgeBackend:
    """The backend on the policy `config.weights` means."""
    return open_backend(config, JudgeModel(weights=config.weights, judge=who), resources)
