"""Per-token policy losses: thin registered classes over the formulas of `exprl.kernels.policy`.

Nothing is reduced here: the caller sums the [N] losses and divides by the token count of the whole batch. Gradient
flows through the current policy's log-probs only.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from exprl import kernels
from exprl.component import Component, option
from exprl.config.ranges import SMALLEST, Range, Share
from exprl.errors import ConfigError
from exprl.kernels import KL
from exprl.registry import OBJECTIVES

if TYPE_CHECKING:
    from torch import Tensor

    from exprl.kernels import TokenLoss


class Objective(Component):
    """A per-token policy loss with an optional KL term and the correction for another engine's sampling."""

    registered_family: ClassVar[str] = "objective"

    kl_coef: Annotated[float, Range(ge=0, le=1000)] = option(
        default=0.0, help="weight of the KL to the frozen initial policy; 0: none (the paper: 0.001)"
    )
    kl: KL = option(default="k3", help="estimator in the loss: k1 (no gradient in expectation), k2, k3 (the paper)")
    is_cap: Annotated[float, Range(ge=SMALLEST, le=10**6)] | None = option(
        default=2.0,
        help="cap of the weights π_old / π_sampler that correct for the engine's own log-probs; null: no weights",
    )

    @property
    def needs_initial_policy(self) -> bool:
        """Whether `token_loss` needs `initial_logp`."""
        return bool(self.kl_coef > 0)

    def token_loss(
        self,
        logp: Tensor,
        old_logp: Tensor,
        advantages: Tensor,
        *,
        sampler_logp: Tensor | None = None,
        initial_logp: Tensor | None = None,
    ) -> TokenLoss:
        """Loss of N tokens, not reduced.

        Values are not looked at, which would wait for the device: a NaN among them, and log-probs that are both
        infinite, make that token's loss NaN. A run checks its numbers before and after (`exprl/checks/finite.py`).

        Args:
            logp: [N] log-probs under the current policy, with gradient.
            old_logp: [N] under the policy before the step's first update.
            advantages: [N].
            sampler_logp: [N] the engine sampled with; None: the engine is the trainer.
            initial_logp: [N] under the frozen initial policy; with `kl_coef` 0 only the statistic `kl` comes of it.

        Raises:
            ValueError: shapes differ, or `initial_logp` is missing with `kl_coef` above 0.
        """
        _check_shapes(
            logp=logp, old_logp=old_logp, advantages=advantages, sampler_logp=sampler_logp, initial_logp=initial_logp
        )
        if self.needs_initial_policy and initial_logp is None:
            raise ValueError(f"initial_logp: required with kl_coef {self.kl_coef}, but got None")
        weight = kernels.importance_weight(old_logp, sampler_logp, self.is_cap)
        return self.weighted_loss(logp, old_logp, advantages.detach(), weight, initial_logp)

    @abstractmethod
    def weighted_loss(
        self, logp: Tensor, old_logp: Tensor, advantages: Tensor, is_weight: Tensor, initial_logp: Tensor | None
    ) -> TokenLoss:
        """The loss times `is_weight`, plus the KL term; all [N], checked and, but for logp, without gradient."""


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

    def weighted_loss(
        self, logp: Tensor, old_logp: Tensor, advantages: Tensor, is_weight: Tensor, initial_logp: Tensor | None
    ) -> TokenLoss:
        """See `policy_token_loss`."""
        return kernels.policy_token_loss(
            logp,
            old_logp,
            advantages,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            is_weight=is_weight,
            initial_logp=initial_logp,
            kl_coef=self.kl_coef,
            kl=self.kl,
        )


@OBJECTIVES.register("reinforce")
class Reinforce(Objective):
    """-A log π, the policy gradient itself: no ratio, no clip; for one update a batch."""

    def weighted_loss(
        self, logp: Tensor, old_logp: Tensor, advantages: Tensor, is_weight: Tensor, initial_logp: Tensor | None
    ) -> TokenLoss:
        """-A log π, never clipped; the statistics tell how far π moved."""
        loss = -advantages * logp * is_weight
        stats = {
            "ratio": kernels.ratio_of(logp.detach(), old_logp),
            "clipped": old_logp.new_zeros(old_logp.shape),
            "is_weight": is_weight,
        }
        if initial_logp is not None:
            stats["kl"] = kernels.kl_estimate(logp.detach(), initial_logp, "k3")
            if self.needs_initial_policy:
                loss = loss + self.kl_coef * kernels.kl_estimate(logp, initial_logp, self.kl)
        return kernels.TokenLoss(loss, stats)


def _check_shapes(**tensors: Tensor | None) -> None:
    shape = next(t.shape for t in tensors.values() if t is not None)
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dim() != 1 or tensor.shape != shape):
            raise ValueError(f"{name}: expected shape [N] as logp {list(shape)}, but got {list(tensor.shape)}")
