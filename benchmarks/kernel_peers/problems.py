"""Inputs of each task, made where they are used."""

from __future__ import annotations

import torch
from torch import Tensor

from kernel_peers.base import Outputs, PolicyArguments, Problem, Size, Task

SPREAD = 2.0
"""Standard deviation of logits. Over 151,936 tokens the log-sum-exp of the rest is then about 13.9."""

LOW, HIGH = 5.0, 20.0
"""The chosen token's logit is raised by this much, uniformly: its probability runs from 1e-4 to 0.998, as in the
rollouts of a trained model. On flat distributions a peer that drops small gradients would drop all of them."""


def make_problem(task: Task, size: Size, device: torch.device) -> Problem:
    """The same numbers for every peer."""
    torch.manual_seed(0)
    dtype: torch.dtype = getattr(torch, size.dtype)
    ids = torch.randint(size.vocabulary, (size.tokens,), device=device)
    if task == "policy":
        return _policy(task, size, ids)
    upstream = _upstream(size.tokens, device)
    if task == "logits":
        inputs: tuple[Tensor, ...] = (_logits(ids, size, dtype),)
        return Problem(task=task, size=size, ids=ids, inputs=_with_gradient(*inputs), upstream=upstream)
    hidden, weight = _head(ids, size, dtype)
    frozen = None
    if task != "linear":
        # A teacher close by: KL of about 0.2 nats.
        frozen_hidden = hidden + 0.3 * torch.randn_like(hidden)
        frozen = (frozen_hidden, (weight + 0.1 * SPREAD / size.hidden**0.5 * torch.randn_like(weight)).detach())
    return Problem(
        task=task, size=size, ids=ids, inputs=_with_gradient(hidden, weight), frozen=frozen, upstream=upstream
    )


def _head(ids: Tensor, size: Size, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    device = ids.device
    weight = torch.empty(size.vocabulary, size.hidden, dtype=dtype, device=device)
    for rows in weight.split(16384):
        rows.copy_(torch.randn(rows.shape, device=device) * (SPREAD / size.hidden**0.5))
    raised = torch.empty(size.tokens, 1, device=device).uniform_(LOW, HIGH) / SPREAD**2
    hidden = torch.randn(size.tokens, size.hidden, device=device) + raised * weight[ids].float()
    return hidden.to(dtype), weight


def _logits(ids: Tensor, size: Size, dtype: torch.dtype) -> Tensor:
    logits = torch.empty(size.tokens, size.vocabulary, dtype=dtype, device=ids.device)
    for rows, chosen in zip(logits.split(1024), ids.split(1024), strict=True):
        z = torch.randn(rows.shape, device=ids.device) * SPREAD
        z.scatter_add_(1, chosen[:, None], torch.empty_like(z[:, :1]).uniform_(LOW, HIGH))
        rows.copy_(z)
    return logits


def _policy(task: Task, size: Size, ids: Tensor) -> Problem:
    def noise(scale: float) -> Tensor:
        return scale * torch.randn(size.tokens, device=ids.device)

    logp = -noise(1.0).abs()
    policy = PolicyArguments(
        old_logp=logp + noise(0.2),
        advantages=noise(1.0),
        mask=ids % 8 != 0,
        is_weight=noise(0.1).exp(),
        initial_logp=logp + noise(0.2),
    )
    upstream = Outputs(loss=torch.full_like(logp, 1 / size.tokens))
    return Problem(task=task, size=size, ids=ids, inputs=_with_gradient(logp), policy=policy, upstream=upstream)


def _upstream(tokens: int, device: torch.device) -> Outputs:
    """Advantages over tokens at log-probs, smaller ones at entropies, positive ones at divergences."""
    advantages = torch.randn(tokens, device=device) / tokens
    return Outputs(
        logp=advantages,
        entropy=0.1 * torch.randn(tokens, device=device) / tokens,
        divergence=advantages.abs(),
        mean=torch.ones((), device=device),
    )


def _with_gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.detach().requires_grad_() for x in tensors)
