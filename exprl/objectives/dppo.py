"""A trust region by the divergence of the policies, not by their ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from exprl import kernels
from exprl.component import option
from exprl.config.ranges import Range
from exprl.corrections import Bound
from exprl.objectives.base import PolicyTokens, Surrogate
from exprl.registry import OBJECTIVES

if TYPE_CHECKING:
    from torch import Tensor

    from exprl.kernels import TokenLoss

Threshold = Annotated[float, Range(ge=0, le=100)]

PAPERS_THRESHOLD = {"tv": 0.15, "kl": 0.05}


@OBJECTIVES.register("dppo")
class DPPO(Surrogate):
    """-sg[min(ρ, c) M] A log π, M = 0 where the policy would go further from π_old than allowed (arXiv:2602.04879).

    How far it is at a token is the divergence of two distributions on "this token or another": |π - π_old| (`tv`), or
    KL(π_old ‖ π) (`kl`). A ratio says little there: from 0.001 to 0.002 it doubles, and nothing happens. Masked are
    tokens beyond the threshold that the step would take further: rarer than under π_old with A <= 0, or likelier with
    A > 0. So do verl's `dppo_tv` and `dppo_kl`, and TRL's `binary_tv` and `binary_kl`, which measures from the
    sampler's log-probs instead; here the `correction` makes up for those.
    """

    divergence: Literal["tv", "kl"] = option(
        default="tv", help="of token or not under π_old and π: total variation, or KL(π_old ‖ π)"
    )
    delta_low: Threshold | None = option(
        default=None, help="tokens that become rarer are masked beyond it; null: the paper's, 0.15 for tv, 0.05 for kl"
    )
    delta_high: Threshold | None = option(
        default=None, help="tokens that become likelier are masked beyond it; null: the paper's"
    )
    ratio_high: Bound | None = option(default=20.0, help="upper bound of the ratio (verl, TRL: 20); null: none")

    def surrogate(self, tokens: PolicyTokens) -> TokenLoss:
        """The policy gradient times the cut ratio, 0 where masked, which `clipped` counts."""
        logp = tokens.logp.detach()
        ratio = kernels.ratio_of(logp, tokens.old_logp)
        masked = self.masked(logp, tokens.old_logp, tokens.advantages)
        weight = (ratio if self.ratio_high is None else ratio.clamp(max=self.ratio_high)).masked_fill(masked, 0.0)
        loss = -weight * tokens.advantages * tokens.logp
        return kernels.TokenLoss(loss, {"ratio": ratio, "clipped": masked.to(loss.dtype)})

    def masked(self, logp: Tensor, old_logp: Tensor, advantages: Tensor) -> Tensor:
        """[N] bool: where a step would leave the trust region."""
        usual = PAPERS_THRESHOLD[self.divergence]
        low = usual if self.delta_low is None else self.delta_low
        high = usual if self.delta_high is None else self.delta_high
        distance = kernels.binary_divergence(logp, old_logp, self.divergence)
        further_up = (distance > high) & (logp > old_logp)
        further_down = (distance > low) & (logp < old_logp)
        return further_up.where(advantages > 0, further_down)
