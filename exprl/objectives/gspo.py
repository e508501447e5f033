"""Group sequence policy optimization: one ratio a rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from exprl import kernels
from exprl.component import option
from exprl.config.ranges import Range, Share
from exprl.objectives.base import PolicyTokens, Surrogate
from exprl.registry import OBJECTIVES

if TYPE_CHECKING:
    from exprl.kernels import TokenLoss


@OBJECTIVES.register("gspo")
class GSPO(Surrogate):
    """The clipped surrogate with one ratio a rollout, the geometric mean of its tokens' (GSPO, arXiv:2507.18071).

    s = exp(mean_t log(π_t / π_old,t)), and for token t the ratio s · π_t / sg[π_t], the paper's GSPO-token and verl's
    `gspo`: its value is s, and its gradient that of the token's own log-prob. Where the advantages of a rollout's
    tokens are the same, loss and gradient are those of the sequence form, which TRL has; where segments have their
    own, each token keeps its own. In the paper rollouts weigh alike: set `update.aggregation: sequence`.
    """

    sequence_clip_low: Share = option(
        default=3e-4, help="a rollout's gradient stops below 1 - this (the paper: 3e-4); ratios of means lie close to 1"
    )
    sequence_clip_high: Annotated[float, Range(ge=0, le=10**6)] = option(
        default=4e-4, help="and above 1 + this (the paper: 4e-4)"
    )

    def surrogate(self, tokens: PolicyTokens) -> TokenLoss:
        """-min(s A, clip(s) A) of each token."""
        if tokens.lengths is None:
            raise ValueError("lengths: required by gspo (the tokens of each rollout), but got None")
        now = tokens.logp.detach()
        mean = kernels.mean_by_rollout(now - tokens.old_logp, tokens.lengths)
        level = kernels.by_token(mean, tokens.lengths)
        ratio = kernels.ratio_of(tokens.logp - now + level, level.new_zeros(level.shape))
        loss, clipped = kernels.clipped_surrogate(
            ratio,
            tokens.advantages,
            clip_low=self.sequence_clip_low,
            clip_high=self.sequence_clip_high,
            dual_clip=None,
        )
        return kernels.TokenLoss(loss, {"ratio": ratio.detach(), "clipped": clipped.to(loss.dtype)})
