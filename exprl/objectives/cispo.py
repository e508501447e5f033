"""REINFORCE with truncated importance weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exprl import kernels
from exprl.component import option
from exprl.corrections import Bound
from exprl.errors import ConfigError
from exprl.objectives.base import PolicyTokens, Surrogate
from exprl.registry import OBJECTIVES

if TYPE_CHECKING:
    from exprl.kernels import TokenLoss


@OBJECTIVES.register("cispo")
class CISPO(Surrogate):
    """-sg[clip(ρ)] A log π: the ratio is a weight without gradient, so no token is left out (arXiv:2506.13585).

    MiniMax-M1 cuts the ratio above alone, as `ratio_low: null` does; TRL's `cispo` is that, and verl's cuts on both
    sides.
    """

    ratio_low: Bound | None = option(default=None, help="lower bound of the ratio (MiniMax-M1: none); null: none")
    ratio_high: Bound | None = option(default=5.0, help="upper bound of the ratio (arXiv:2510.13786: 5); null: none")

    @classmethod
    def check_options(cls, config: Any) -> None:
        """The lower bound must lie below the upper one."""
        low, high = config.ratio_low, config.ratio_high
        if low is not None and high is not None and low >= high:
            raise ConfigError(f"ratio_low: must be below ratio_high ({high:g}), but got {low:g}.")

    def surrogate(self, tokens: PolicyTokens) -> TokenLoss:
        """The policy gradient times the cut ratio; `clipped` where it is cut."""
        ratio = kernels.ratio_of(tokens.logp.detach(), tokens.old_logp)
        weight = ratio.clamp(self.ratio_low, self.ratio_high) if self.ratio_low or self.ratio_high else ratio
        loss = -weight * tokens.advantages * tokens.logp
        return kernels.TokenLoss(loss, {"ratio": ratio, "clipped": (weight != ratio).to(loss.dtype)})
