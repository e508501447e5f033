"""What the kernels must compute, written out in plain torch with every tensor held; and inputs to try it on.

Nothing here imports exprl, so tests and benchmarks compare with something independent. Results have the inputs' dtype:
pass float64 for results to trust. T tokens, V vocabulary, D and D_frozen widths of the two heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class HeadInputs(NamedTuple):
    """A policy's head, a frozen head over the same vocabulary, and the chosen tokens."""

    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]
    bias: Tensor  # [V]
    ids: Tensor  # [T] int64
    frozen_hidden: Tensor  # [T, D_frozen]
    frozen_weight: Tensor  # [V, D_frozen]
    frozen_bias: Tensor  # [V]

    @property
    def trained(self) -> tuple[Tensor, Tensor, Tensor]:
        """What has a gradient: hidden, weight, bias."""
        return self.hidden, self.weight, self.bias

    @property
    def frozen(self) -> tuple[Tensor, Tensor, Tensor]:
        """The frozen head."""
        return self.frozen_hidden, self.frozen_weight, self.frozen_bias

    def to(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> HeadInputs:
        """Leaves of their own in another dtype, the trained ones with `requires_grad`."""

        def leaf(x: Tensor, trained: bool) -> Tensor:
            return x.detach().to(device, dtype, copy=True).requires_grad_(trained)

        return HeadInputs(
            *(leaf(x, True) for x in self.trained), self.ids.clone().to(device), *(leaf(x, False) for x in self.frozen)
        )


def head_inputs(
    tokens: int, vocabulary: int, width: int, *, frozen_width: int | None = None, scale: float = 2.0, seed: int = 0
) -> HeadInputs:
    """Float64 heads whose logits have a standard deviation of about `scale`; ids include the first and last token."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    frozen_width = frozen_width or width
    ids = torch.randint(vocabulary, (tokens,), generator=g)
    if tokens:
        ids[0] = 0
        ids[-1] = vocabulary - 1
    return HeadInputs(
        hidden=normal(tokens, width),
        weight=normal(vocabulary, width) * scale / width**0.5,
        bias=normal(vocabulary),
        ids=ids,
        frozen_hidden=normal(tokens, frozen_width),
        frozen_weight=normal(vocabulary, frozen_width) * scale / frozen_width**0.5,
        frozen_bias=normal(vocabulary),
    )


# Inside the clips, outside them, beyond the dual clip, and beyond the bound of 20, on both sides.
LOG_RATIOS = [0.01, -0.01, 0.2, -0.2, 0.5, -0.5, 1.5, -3.0, 19.0, 25.0, -25.0]
ADVANTAGES = [1.3, -0.7, 0.0]


class PolicyInputs(NamedTuple):
    """Every pair of a log-ratio and an advantage, T of them; each [T]."""

    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    is_weight: Tensor
    initial_logp: Tensor


def policy_inputs(dtype: torch.dtype, device: str | torch.device = "cpu") -> PolicyInputs:
    """Leaves in a dtype, logp with `requires_grad`."""
    log_ratio = torch.tensor(LOG_RATIOS).repeat(len(ADVANTAGES))
    old = torch.linspace(-3, -1, len(log_ratio))
    columns = (
        old + log_ratio,
        old,
        torch.tensor(ADVANTAGES).repeat_interleave(len(LOG_RATIOS)),
        torch.linspace(0.25, 2, len(log_ratio)),
        old + log_ratio + torch.tensor(LOG_RATIOS).roll(3).repeat(len(ADVANTAGES)),
    )
    inputs = PolicyInputs(*(x.to(device, dtype) for x in columns))
    inputs.logp.requires_grad_()
    return inputs


class Statistics(NamedTuple):
    """Each [T], in nats; None where it does not apply."""

    logp: Tensor
    entropy: Tensor
    divergence: Tensor | None
    frozen_logp: Tensor | None
    lse: Tensor


def head_logits(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None = None,  # [V]
    *,
    temperature: float | Tensor = 1.0,  # or [T]
    softcap: float | None = None,
) -> Tensor:
    """Softcap(hidden @ weight.T + bias) / temperature, [T, V]."""
    logits = functional.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return tempered(logits, temperature)


def tempered(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits [T, V] over one temperature, or over one for each token [T]."""
    return logits / (temperature[:, None].to(logits.dtype) if isinstance(temperature, Tensor) else temperature)


def logprob_entropy(
    logits: Tensor,  # [T, V]
    ids: Tensor,  # [T] int64
    *,
    temperature: float | Tensor = 1.0,  # or [T]
    mask: Tensor | None = None,  # [T] bool
) -> tuple[Tensor, Tensor]:
    """Log-prob of ids [T] and entropy [T]; 0 where the mask is false."""
    if mask is not None:
        temperatures = temperature[mask] if isinstance(temperature, Tensor) else temperature
        logp, entropy = logprob_entropy(logits[mask], ids[mask], temperature=temperatures)
        return spread(logp, mask), spread(entropy, mask)
    logits = tempered(logits, temperature)
    log_p = logits.log_softmax(-1)
    # Not Categorical's: it holds log 0 at the smallest number, and the gradient of that overflows.
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)
    return -functional.cross_entropy(logits, ids, reduction="none"), entropy


def linear_statistics(
    hidden: Tensor,  # [T, D]
    weight: Tensor,  # [V, D]
    ids: Tensor,  # [T] int64
    *,
    bias: Tensor | None = None,  # [V]
    temperature: float | Tensor = 1.0,  # or [T]
    softcap: float | None = None,
    mask: Tensor | None = None,  # [T] bool
    frozen: tuple[Tensor, ...] | None = None,  # [T, D_frozen], [V, D_frozen], and maybe [V]
    divergence: str | None = None,
) -> Statistics:
    """Log-prob, entropy, log-sum-exp, the frozen head's log-prob and any divergence; 0 where the mask is false."""
    if mask is not None:
        kept = linear_statistics(
            hidden[mask],
            weight,
            ids[mask],
            bias=bias,
            temperature=temperature[mask] if isinstance(temperature, Tensor) else temperature,
            softcap=softcap,
            frozen=None if frozen is None else (frozen[0][mask], *frozen[1:]),
            divergence=divergence,
        )
        return Statistics._make(None if x is None else spread(x, mask) for x in kept)
    logits = head_logits(hidden, weight, bias, temperature=temperature, softcap=softcap)
    logp, entropy = logprob_entropy(logits, ids)
    lse = logits.logsumexp(-1)
    if frozen is None:
        return Statistics(logp, entropy, None, None, lse)
    frozen_logits = head_logits(*frozen, temperature=temperature, softcap=softcap)
    between = None
    if divergence is not None:
        between = DIVERGENCES[divergence](logits.log_softmax(-1), frozen_logits.log_softmax(-1))
    return Statistics(logp, entropy, between, logprob_entropy(frozen_logits, ids)[0], lse)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) [T] from log-probs [T, V]; a token that p rules out adds nothing, whatever q says of it."""
    return (log_p.exp() * (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)).sum(-1)


def jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) [T] with m = ½ (p + q), from log-probs [T, V]."""
    nothing = (log_p == -torch.inf) & (log_q == -torch.inf)
    log_m = torch.logaddexp(log_p.masked_fill(nothing, 0.0), log_q.masked_fill(nothing, 0.0)) - math.log(2)
    return 0.5 * (kl(log_p, log_m) + kl(log_q, log_m))


DIVERGENCES = {"rkl": kl, "fkl": lambda log_p, log_q: kl(log_q, log_p), "jsd": jensen_shannon}


def policy_loss(
    logp: Tensor,  # [T], and so are the others
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,  # bool
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    is_weight: Tensor | None = None,
    initial_logp: Tensor | None = None,
    kl_coef: float = 0.0,
    kl: str = "k3",
) -> Tensor:
    """PPO's negated surrogate times the weight, plus the KL estimate, [T]; 0 where the mask is false."""
    if mask is not None:
        kept = [None if x is None else x[mask] for x in (is_weight, initial_logp)]
        options = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip, "kl_coef": kl_coef, "kl": kl}
        loss = policy_loss(
            logp[mask], old_logp[mask], advantages[mask], is_weight=kept[0], initial_logp=kept[1], **options
        )
        return spread(loss, mask)
    ratio = (logp - old_logp).clamp(-20, 20).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    loss = -surrogate if is_weight is None else -surrogate * is_weight
    if initial_logp is None or not kl_coef:
        return loss
    delta = initial_logp - logp
    near = delta.clamp(-20, 20)
    return loss + kl_coef * {"k1": -delta, "k2": delta**2 / 2, "k3": near.exp() - near - 1}[kl]


def spread(kept: Tensor, mask: Tensor) -> Tensor:
    """Results of the kept tokens [n] at their places among all [T], 0 elsewhere."""
    return torch.zeros(len(mask), dtype=kept.dtype, device=kept.device).masked_scatter(mask, kept)
