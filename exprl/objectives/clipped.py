"""PPO's clipped surrogate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from exprl import kernels
from exprl.component import option
from exprl.config.ranges import Range, Share
from exprl.errors import ConfigError
from exprl.objectives.base import Objective, PolicyTokens
from exprl.registry import OBJECTIVES

if TYPE_CHECKING:
    from exprl.kernels import TokenLoss


@OBJECTIVES.register("clipped")
class Clipped(Objective):
    """PPO's clipped surrogate with separate clips below and above 1 (the paper's loss)."""

    clip_low: Share = option(default=0.2, help="the ratio's gradient stops below 1 - clip_low (the paper: 0.2)")
    clip_high: Annotated[float, Range(ge=0, le=10**6)] = option(
        default=0.28,
        help="and above 1 + clip_high: more room for rare tokens (DAPO; the paper: 0.28 outcome, 0.26 process)",
    )
    dual_clip: Annotated[float, Range(gt=1, le=10**6)] | None = option(
        default=None, help="c > 1 bounds the loss at -cA where A < 0 (usual: 3); null: off"
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """The bound must lie above the clip."""
        if config.dual_clip is not None and config.dual_clip <= 1 + config.clip_high:
            raise ConfigError(
                f"dual_clip: must exceed 1 + clip_high ({1 + config.clip_high}), but got {config.dual_clip}."
            )

    def weighted_loss(self, tokens: PolicyTokens) -> TokenLoss:
        """See `policy_token_loss`, which computes it in one pass."""
        return kernels.policy_token_loss(
            tokens.logp,
            tokens.old_logp,
            tokens.advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            is_weight=tokens.is_weight,
            initial_logp=tokens.initial_logp,
            kl_coef=self.kl_coef,
            kl=self.kl,
        )
