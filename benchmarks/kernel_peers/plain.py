"""Plain torch: the formulas on materialised logits, eager and compiled, and what torch itself offers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_peers.base import DUAL_CLIP, KL_COEF, Adapter, Forward, Outputs, PolicyArguments, Problem, Task


def logprob_entropy(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """log_softmax in fp32, gather, and -Σ p log p."""
    log_p = logits.float().log_softmax(1)
    return log_p.gather(1, ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)


def linear_logprob_entropy(hidden: Tensor, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The same from a head."""
    return logprob_entropy(hidden @ weight.t(), ids)


def divergence(hidden: Tensor, weight: Tensor, frozen_hidden: Tensor, frozen_weight: Tensor, kind: str) -> Tensor:
    """[T] of two heads."""
    log_p = (hidden @ weight.t()).float().log_softmax(1)
    log_q = (frozen_hidden @ frozen_weight.t()).float().log_softmax(1)
    if kind == "rkl":
        return (log_p.exp() * (log_p - log_q)).sum(1)
    if kind == "fkl":
        return (log_q.exp() * (log_q - log_p)).sum(1)
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - middle) + log_q.exp() * (log_q - middle)).sum(1)


def policy_loss(logp: Tensor, p: PolicyArguments) -> Tensor:
    """PPO's surrogate with asymmetric and dual clip, importance weight and k3, as TRL and verl write it."""
    ratio = (logp - p.old_logp).clamp(-20, 20).exp()
    free, bounded = -ratio * p.advantages, -ratio.clamp(0.8, 1.28) * p.advantages
    loss = torch.maximum(free, bounded)
    loss = torch.where(p.advantages < 0, torch.minimum(loss, -DUAL_CLIP * p.advantages), loss)
    delta = (p.initial_logp - logp).clamp(-20, 20)
    return (loss * p.is_weight + KL_COEF * (delta.exp() - delta - 1)) * p.mask


Wrap = Callable[[Callable], Callable]


def _as_is(function: Callable) -> Callable:
    return function


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function)


def _logits(wrap: Wrap) -> Forward:
    function = wrap(logprob_entropy)
    return lambda problem: Outputs(*function(problem.inputs[0], problem.ids))


def _linear(wrap: Wrap) -> Forward:
    function = wrap(linear_logprob_entropy)
    return lambda problem: Outputs(*function(*problem.inputs, problem.ids))


def _divergence(kind: str, wrap: Wrap) -> Forward:
    function = wrap(divergence)
    return lambda problem: Outputs(divergence=function(*problem.inputs, *problem.frozen, kind))


def _policy(wrap: Wrap) -> Forward:
    function = wrap(policy_loss)
    return lambda problem: Outputs(loss=function(problem.inputs[0], problem.policy))


def _linear_cross_entropy() -> Forward:
    # torch 2.13: torch/nn/functional.py, linear_cross_entropy(input, linear_weight, target, *, reduction, options);
    # without options it materialises the logits, with them it works in chunks of tokens and recomputes going backward.
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError(f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()

    def forward(problem: Problem) -> Outputs:
        hidden, weight = problem.inputs
        return Outputs(logp=-F.linear_cross_entropy(hidden, weight, problem.ids, reduction="none", options=options))

    return forward


def _variants(peer: str, wrap: Wrap) -> list[Adapter]:
    divergences: list[Task] = ["rkl", "fkl", "jsd"]
    return [
        Adapter(peer=peer, task="logits", load=partial(_logits, wrap), on_cpu=True),
        Adapter(peer=peer, task="linear", load=partial(_linear, wrap), on_cpu=True),
        *(Adapter(peer=peer, task=x, load=partial(_divergence, x, wrap), on_cpu=True) for x in divergences),
        Adapter(peer=peer, task="policy", load=partial(_policy, wrap), on_cpu=True),
    ]


ADAPTERS = [
    *_variants("torch eager", _as_is),
    *_variants("torch.compile", _compiled),
    Adapter(peer="F.linear_cross_entropy", task="linear", load=_linear_cross_entropy, on_cpu=True, note="no entropy"),
]
