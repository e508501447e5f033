"""Weights that correct for tokens that another engine sampled than the one that trains, between two bounds.

The engine's log-probs of its own tokens differ from the trainer's, by precision, by kernels, or because its weights are
a step older. What an objective makes of a token is multiplied by the ratio π_old / π_sampler, which makes the
expectation right, and its bounds keep the variance finite: beyond them a weight is cut (`tis`) or is 0 (`icepop`,
`sequence_mask`).

A token of weight 0 has no policy gradient but stays in the denominator of the loss, and its KL term and entropy bonus
stay in the loss: so it is in TRL and in IcePop's formula, which divides by all tokens. (verl takes such tokens out of
the denominator, so that the others weigh more the more are masked.)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from exprl import kernels
from exprl.component import Component, option
from exprl.config.ranges import SMALLEST, Range
from exprl.errors import ConfigError
from exprl.registry import CORRECTIONS

if TYPE_CHECKING:
    from torch import Tensor

Bound = Annotated[float, Range(ge=SMALLEST, le=10**6)]


@dataclass(frozen=True)
class Weights:
    """Of N tokens, without gradient.

    Attributes:
        weight: [N] what each token's policy loss is multiplied by.
        outside: [N] 1 where the ratio, or that of the token's rollout, lies outside of the bounds, else 0.
    """

    weight: Tensor
    outside: Tensor


class Correction(Component):
    """Makes weights of the ratios π_old / π_sampler."""

    registered_family: ClassVar[str] = "correction"

    def weights(self, old_logp: Tensor, sampler_logp: Tensor | None, lengths: Sequence[int] | None = None) -> Weights:
        """Weights of N tokens.

        Args:
            old_logp: [N] log-probs under the policy that trains, before the step's first update.
            sampler_logp: [N] the engine sampled with; None: the engine is the trainer, and every weight is 1.
            lengths: tokens of each rollout, which lie one after another; for corrections of whole rollouts.

        Raises:
            ValueError: naming the argument with a wrong shape, dtype or device; `lengths` are needed and missing, or do
                not add up to N.
        """
        from exprl.kernels.arguments import check_tokens

        check_tokens(old_logp=old_logp, sampler_logp=sampler_logp)
        old_logp = old_logp.detach()
        if sampler_logp is None:
            return _ones(old_logp)
        return self.of_log_ratio(old_logp - sampler_logp.detach(), lengths)

    @abstractmethod
    def of_log_ratio(self, log_ratio: Tensor, lengths: Sequence[int] | None) -> Weights:
        """Weights of N tokens with log(π_old / π_sampler) [N], which has no gradient."""


@CORRECTIONS.register("none")
class NoCorrection(Correction):
    """No correction: every weight is 1."""

    def of_log_ratio(self, log_ratio: Tensor, lengths: Sequence[int] | None) -> Weights:
        """Ones."""
        del lengths
        return _ones(log_ratio)


class BoundedCorrection(Correction):
    """A correction with a bound on either side of the ratio, or on one."""

    low: Bound | None = option(default=None, help="lower bound of the ratio; null: none")
    high: Bound | None = option(default=None, help="upper bound of the ratio; null: none")

    @classmethod
    def check_options(cls, config: Any) -> None:
        """The lower bound must lie below the upper one."""
        if config.low is not None and config.high is not None and config.low >= config.high:
            raise ConfigError(f"low: must be below high ({config.high:g}), but got {config.low:g}.")

    def outside(self, ratio: Tensor) -> Tensor:
        """[N] bool: where a ratio lies beyond a bound."""
        low, high = self.low or 0.0, self.high or math.inf
        return (ratio < low) | (ratio > high)  # a NaN is nowhere, and stays one


@CORRECTIONS.register("tis")
class TruncatedImportance(BoundedCorrection):
    """Truncated importance sampling: the ratio, cut at the bounds.

    With the token's own ratio that is verl's `rollout_is=token` and TRL's `token_truncate`; with the product of the
    rollout's ratios `rollout_is=sequence` and `sequence_truncate`.
    """

    level: Literal["token", "sequence"] = option(
        default="token",
        help="whose ratio: the token's own, or the product of its rollout's, which is unbiased and of large variance",
    )
    high: Bound | None = option(default=2.0, help="upper bound of the ratio (verl: 2, TRL: 3); null: none")

    def of_log_ratio(self, log_ratio: Tensor, lengths: Sequence[int] | None) -> Weights:
        """min(max(ratio, low), high)."""
        ratio = _exp(log_ratio) if self.level == "token" else _product(log_ratio, lengths)
        weight = ratio.clamp(self.low or 0.0, self.high or math.inf)
        return Weights(weight, self.outside(ratio).to(ratio.dtype))


@CORRECTIONS.register("icepop")
class IcePop(BoundedCorrection):
    """The token's ratio between the bounds, 0 beyond them (IcePop, arXiv:2510.18855; TRL's `token_mask`)."""

    low: Bound | None = option(default=0.5, help="tokens of a smaller ratio are masked (arXiv:2512.16144); null: none")
    high: Bound | None = option(default=5.0, help="tokens of a larger ratio are masked (arXiv:2512.16144); null: none")

    def of_log_ratio(self, log_ratio: Tensor, lengths: Sequence[int] | None) -> Weights:
        """The ratio, or 0."""
        del lengths
        ratio = _exp(log_ratio)
        outside = self.outside(ratio)
        return Weights(ratio.masked_fill(outside, 0.0), outside.to(ratio.dtype))


@CORRECTIONS.register("sequence_mask")
class SequenceMask(BoundedCorrection):
    """Whole rollouts whose ratio lies beyond the bounds are masked.

    With the product of the tokens' ratios the others weigh that product (TRL's `sequence_mask`); with their geometric
    mean, which does not grow with the length, the others weigh 1 (verl's `rollout_rs=geometric`).
    """

    ratio: Literal["product", "geometric"] = option(
        default="product",
        help="of a rollout: the product of its tokens' ratios, which weighs too; or their geometric mean, whose bounds "
        "lie close to 1 (verl: 0.999 and 1.001)",
    )
    low: Bound | None = option(default=None, help="rollouts of a smaller ratio are masked (TRL: none); null: none")
    high: Bound | None = option(default=3.0, help="rollouts of a larger ratio are masked (TRL: 3); null: none")

    def of_log_ratio(self, log_ratio: Tensor, lengths: Sequence[int] | None) -> Weights:
        """Of each rollout one weight."""
        if self.ratio == "product":
            ratio = weight = _product(log_ratio, lengths)
        else:
            lengths = _needed(lengths)
            ratio = _exp(kernels.by_token(kernels.mean_by_rollout(log_ratio, lengths), lengths))
            weight = ratio * 0 + 1  # a NaN stays one
        outside = self.outside(ratio)
        return Weights(weight.masked_fill(outside, 0.0), outside.to(ratio.dtype))


# ------------------------------------------------------------------ ratios


def _exp(log_ratio: Tensor) -> Tensor:
    return kernels.ratio_of(log_ratio, log_ratio.new_zeros(log_ratio.shape))


def _product(log_ratio: Tensor, lengths: Sequence[int] | None) -> Tensor:
    lengths = _needed(lengths)
    return _exp(kernels.by_token(kernels.sum_by_rollout(log_ratio, lengths), lengths))


def _needed(lengths: Sequence[int] | None) -> Sequence[int]:
    if lengths is None:
        raise ValueError("lengths: required to correct whole rollouts (the tokens of each), but got None")
    return lengths


def _ones(like: Tensor) -> Weights:
    return Weights(like.new_ones(like.shape), like.new_zeros(like.shape))
