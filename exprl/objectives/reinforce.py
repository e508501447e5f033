"""The policy gradient itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from exprl import kernels
from exprl.objectives.base import PolicyTokens, Surrogate
from exprl.registry import OBJECTIVES

if TYPE_CHECKING:
    from exprl.kernels import TokenLoss


@OBJECTIVES.register("reinforce")
class Reinforce(Surrogate):
    """-A log π, the policy gradient itself: no ratio, no clip; for one update a step."""

    has_ratio: ClassVar[bool] = False

    def surrogate(self, tokens: PolicyTokens) -> TokenLoss:
        """-A log π, never clipped; the statistics tell how far π moved."""
        stats = {
            "ratio": kernels.ratio_of(tokens.logp.detach(), tokens.old_logp),
            "clipped": tokens.old_logp.new_zeros(tokens.old_logp.shape),
        }
        return kernels.TokenLoss(-tokens.advantages * tokens.logp, stats)
