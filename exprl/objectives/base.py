"""What objectives share: the arguments, their check, the correction, the KL term and the entropy bonus."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from exprl import kernels
from exprl.component import Component, choose, option
from exprl.config.ranges import Range
from exprl.corrections import Correction
from exprl.kernels import KL
from exprl.registry import CORRECTIONS

if TYPE_CHECKING:
    from torch import Tensor

    from exprl.kernels import TokenLoss


@dataclass(frozen=True, kw_only=True)
class PolicyTokens:
    """N tokens as a loss sees them: checked, and but for `logp` without gradient.

    Attributes:
        logp: [N] log-probs under the current policy, with gradient.
        old_logp: [N] under the policy before the step's first update.
        advantages: [N].
        is_weight: [N] what the policy loss is multiplied by, the weight of the correction.
        initial_logp: [N] under the frozen initial policy, or None.
        lengths: tokens of each rollout, which lie one after another, or None where nobody said.
    """

    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    is_weight: Tensor
    initial_logp: Tensor | None = None
    lengths: Sequence[int] | None = None


class Objective(Component):
    """A per-token policy loss with an optional KL term and the correction for another engine's sampling."""

    registered_family: ClassVar[str] = "objective"

    has_ratio: ClassVar[bool] = True
    """Whether π / π_old takes part, so that a step may update more than once; False: a run that does is warned."""

    former_options: ClassVar[Mapping[str, str]] = {
        "is_cap": "The cap of importance weights is that of their correction: correction: {name: tis, high: 2.0}, "
        "which is the default; for null write correction: {name: none}."
    }

    kl_coef: Annotated[float, Range(ge=0, le=1000)] = option(
        default=0.0, help="weight of the KL to the frozen initial policy; 0: none (the paper: 0.001)"
    )
    kl: KL = option(default="k3", help="estimator in the loss: k1 (no gradient in expectation), k2, k3 (the paper)")
    entropy_coef: Annotated[float, Range(ge=0, le=1000)] = option(
        default=0.0, help="weight of an entropy bonus, which is subtracted; 0: none (the authors' Stage II: 0.0001)"
    )
    correction: Correction = choose(
        CORRECTIONS, default="tis", help="weights π_old / π_sampler that correct for the engine's own log-probs"
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
        lengths: Sequence[int] | None = None,
        entropy: Tensor | None = None,
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
            lengths: tokens of each rollout, which lie one after another; needed by what looks at whole rollouts.
            entropy: [N] of the current policy at the tokens, with gradient; needed with `entropy_coef` above 0.

        Raises:
            ValueError: naming the argument with a wrong shape, dtype or device; `initial_logp` or `entropy` are missing
                with their coefficient above 0, or `lengths` where they are needed, or these do not add up to N.
        """
        given = {"sampler_logp": sampler_logp, "initial_logp": initial_logp, "entropy": entropy}
        _check(lengths, logp=logp, old_logp=old_logp, advantages=advantages, **given)
        if self.needs_initial_policy and initial_logp is None:
            raise ValueError(f"initial_logp: required with kl_coef {self.kl_coef}, but got None")
        if self.entropy_coef and entropy is None:
            raise ValueError(f"entropy: required with entropy_coef {self.entropy_coef}, but got None")
        weights = self.correction.weights(old_logp, sampler_logp, lengths)
        tokens = PolicyTokens(
            logp=logp,
            old_logp=old_logp.detach(),
            advantages=advantages.detach(),
            is_weight=weights.weight,
            initial_logp=None if initial_logp is None else initial_logp.detach(),
            lengths=lengths,
        )
        found = self.weighted_loss(tokens)
        loss = found.loss - self.entropy_coef * entropy if self.entropy_coef and entropy is not None else found.loss
        return kernels.TokenLoss(loss, {**found.stats, "is_outside": weights.outside})

    @abstractmethod
    def weighted_loss(self, tokens: PolicyTokens) -> TokenLoss:
        """The policy loss [N] times `is_weight`, plus the KL term."""


class Surrogate(Objective):
    """An objective that says its policy loss alone; weight, KL term and their statistics are added here."""

    @abstractmethod
    def surrogate(self, tokens: PolicyTokens) -> TokenLoss:
        """The policy loss [N] and its statistics, `ratio` and `clipped` among them: neither weighted nor with a KL."""

    def weighted_loss(self, tokens: PolicyTokens) -> TokenLoss:
        """See `Objective`."""
        found = self.surrogate(tokens)
        loss, stats = found.loss * tokens.is_weight, {**found.stats, "is_weight": tokens.is_weight}
        if tokens.initial_logp is not None:
            stats["kl"] = kernels.kl_estimate(tokens.logp.detach(), tokens.initial_logp, "k3")
            if self.needs_initial_policy:
                loss = loss + self.kl_coef * kernels.kl_estimate(tokens.logp, tokens.initial_logp, self.kl)
        return kernels.TokenLoss(loss, stats)


def _check(lengths: Sequence[int] | None, **tensors: Tensor | None) -> None:
    from exprl.kernels.arguments import check_tokens
    from exprl.kernels.rollouts import checked_lengths

    check_tokens(**tensors)
    if lengths is not None:
        checked_lengths(lengths, len(next(iter(tensors.values()))))  # type: ignore[arg-type]
