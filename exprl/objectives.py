"""Per-token policy losses: pure functions of log-probs and advantages, and thin registered classes.

Nothing is reduced here: the caller sums the [N] losses and divides by the token count of the whole batch. Gradient
flows through the current policy's log-probs only.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exprl.component import Component, option
from exprl.registry import OBJECTIVES

KL = Literal["k1", "k2", "k3"]

_MAX_LOG_RATIO = 20.0
"""Bound on differences of log-probs before `exp`, as in verl: e^20 is far beyond any clip and still finite."""


@dataclass(frozen=True)
class TokenLoss:
    """The loss [N] of N tokens, and detached statistics [N] each.

    Statistics: `ratio` π/π_old; `clipped` 1 where a clip holds the gradient at 0; `is_weight` of the sampler's
    mismatch; `kl`, the k3 estimate of KL(π ‖ π_ref), where reference log-probs were given.
    """

    loss: Tensor
    stats: dict[str, Tensor]


# ------------------------------------------------------------------ pure functions


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> tuple[Tensor, Tensor]:
    """The negated PPO surrogate [N] with asymmetric clip, and where a clip holds its gradient at 0 [N] (bool).

    -min(ρA, clip(ρ, 1 - clip_low, 1 + clip_high) A) (arXiv:1707.06347, arXiv:2503.14476), and with `dual_clip` c at
    most -cA where A < 0 (arXiv:1912.09729).

    Args:
        ratio: [N] π/π_old with gradient.
        advantages: [N].
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.
        dual_clip: c > 1, or None for no bound where A < 0.
    """
    free = -ratio * advantages
    bounded = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss, clipped = torch.maximum(free, bounded), bounded > free
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        beyond = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(beyond, ceiling, loss), clipped | beyond
    return loss, clipped


def kl_estimate(logp: Tensor, ref_logp: Tensor, kind: KL) -> Tensor:
    """Estimate [N] of KL(π ‖ π_ref) from tokens sampled by π (Schulman 2020, "Approximating KL divergence").

    With Δ = log π_ref - log π: k1 = -Δ, k2 = Δ²/2, k3 = exp(Δ) - Δ - 1. As values k1 and k3 are unbiased and k3 is
    never negative. As loss terms they differ: the gradient of k1 is 0 in expectation, that of k2 is the gradient of
    KL(π ‖ π_ref), that of k3 is the gradient of KL(π_ref ‖ π).
    """
    delta = ref_logp.detach() - logp
    if kind == "k1":
        return -delta
    if kind == "k2":
        return 0.5 * delta.square()
    delta = delta.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return delta.exp() - delta - 1


def importance_weight(old_logp: Tensor, sampler_logp: Tensor | None, cap: float | None) -> Tensor:
    """Truncated importance weights [N], min(π_old / π_sampler, cap), without gradient; 1 without sampler or cap."""
    if sampler_logp is None or cap is None:
        return torch.ones_like(old_logp)
    return ratio_of(old_logp.detach(), sampler_logp.detach()).clamp(max=cap)


def ratio_of(logp: Tensor, other_logp: Tensor) -> Tensor:
    """exp(logp - other_logp) [N], the difference held within ±20."""
    return (logp - other_logp.detach()).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


# ------------------------------------------------------------------ components


class Objective(Component):
    """A per-token policy loss with an optional KL term and the correction for another engine's sampling."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        """What every objective can add."""

        kl_coef: float = option(0.0, "weight of the KL to the frozen initial policy; 0: none (the paper: 0.001)")
        kl: KL = option("k3", "estimator in the loss: k1 (no gradient in expectation), k2, k3 (the paper)")
        is_cap: float | None = option(
            2.0, "cap of the weights π_old / π_sampler that correct for the engine's own log-probs; null: no weights"
        )

        def __post_init__(self) -> None:
            if self.kl_coef < 0:
                raise ValueError(f"kl_coef must not be negative, but got {self.kl_coef}")
            if self.is_cap is not None and self.is_cap <= 0:
                raise ValueError(f"is_cap must be above 0 or null, but got {self.is_cap}")

    @property
    def needs_reference(self) -> bool:
        """Whether `token_loss` needs `ref_logp`."""
        return bool(self.config.kl_coef > 0)

    def token_loss(
        self,
        logp: Tensor,
        old_logp: Tensor,
        advantages: Tensor,
        *,
        sampler_logp: Tensor | None = None,
        ref_logp: Tensor | None = None,
    ) -> TokenLoss:
        """Loss of N tokens, not reduced.

        Args:
            logp: [N] log-probs under the current policy, with gradient.
            old_logp: [N] under the policy before the step's first update.
            advantages: [N].
            sampler_logp: [N] the engine sampled with; None: the engine is the trainer.
            ref_logp: [N] under the frozen initial policy; with `kl_coef` 0 only the statistic `kl` comes of it.

        Raises:
            ValueError: shapes differ, or `ref_logp` is missing with `kl_coef` above 0.
        """
        _check_shapes(logp=logp, old_logp=old_logp, advantages=advantages, sampler_logp=sampler_logp, ref_logp=ref_logp)
        ratio = ratio_of(logp, old_logp)
        weight = importance_weight(old_logp, sampler_logp, self.config.is_cap)
        loss, clipped = self.policy_term(logp, ratio, advantages.detach())
        loss = loss * weight
        stats = {"ratio": ratio.detach(), "clipped": clipped.to(logp.dtype), "is_weight": weight}
        if ref_logp is not None:
            stats["kl"] = kl_estimate(logp.detach(), ref_logp, "k3")
        if self.needs_reference:
            if ref_logp is None:
                raise ValueError(f"ref_logp: required with kl_coef {self.config.kl_coef}, but got None")
            loss = loss + self.config.kl_coef * kl_estimate(logp, ref_logp, self.config.kl)
        return TokenLoss(loss, stats)

    @abstractmethod
    def policy_term(self, logp: Tensor, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """The loss without weights and KL, and where a clip holds its gradient at 0; all [N]."""


@OBJECTIVES.register("clipped")
class Clipped(Objective):
    """PPO's clipped surrogate with separate clips below and above 1 (the paper's loss)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        """Where the ratio is clipped."""

        clip_low: float = option(0.2, "the ratio's gradient stops below 1 - clip_low (the paper: 0.2)")
        clip_high: float = option(
            0.28, "and above 1 + clip_high: more room for rare tokens (DAPO; the paper: 0.28 outcome, 0.26 process)"
        )
        dual_clip: float | None = option(None, "c > 1 bounds the loss at -cA where A < 0 (usual: 3); null: off")

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
                raise ValueError(
                    f"clip_low must lie in [0, 1] and clip_high must not be negative, but got {self.clip_low} and "
                    f"{self.clip_high}"
                )
            if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
                raise ValueError(
                    f"dual_clip must exceed 1 + clip_high ({1 + self.clip_high}), but got {self.dual_clip}"
                )

    def policy_term(self, logp: Tensor, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """See `clipped_surrogate`."""
        del logp
        options = self.config
        return clipped_surrogate(
            ratio,
            advantages,
            clip_low=options.clip_low,
            clip_high=options.clip_high,
            dual_clip=options.dual_clip,
        )


@OBJECTIVES.register("reinforce")
class Reinforce(Objective):
    """-A log π, the policy gradient itself: no ratio, no clip; for one update a batch."""

    def policy_term(self, logp: Tensor, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """-A log π, never clipped."""
        return -advantages * logp, torch.zeros_like(ratio, dtype=torch.bool)


def _check_shapes(**tensors: Tensor | None) -> None:
    shape = next(t.shape for t in tensors.values() if t is not None)
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.dim() != 1 or tensor.shape != shape):
            raise ValueError(f"{name}: expected shape [N] as logp {list(shape)}, but got {list(tensor.shape)}")
