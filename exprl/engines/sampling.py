"""Draw tokens and report the log-probs of exactly the distribution drawn from: pure functions on tensors."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn.functional import pad

_BLOCK = 256  # tokens whose probabilities are summed at once: near the square root of a vocabulary


def sampling_logprobs(logits: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """[B, V] float32 log-probs after temperature, then top-k, then top-p (smallest set reaching `top_p`), renormalised.

    Tokens cut away get -inf.

    >>> sampling_logprobs(torch.tensor([[2.0, 1.0, 0.0]]).log(), temperature=1.0, top_k=1).exp()
    tensor([[1., 0., 0.]])
    """
    logprobs = (logits.float() / temperature).log_softmax(-1)
    if top_k <= 0 and top_p >= 1.0:
        return logprobs
    width = logprobs.shape[-1]
    values, indices = logprobs.topk(min(top_k, width) if top_k > 0 else width, dim=-1)
    if top_p < 1.0:
        probabilities = values.softmax(-1)
        reached = probabilities.cumsum(-1) - probabilities  # the mass before each token: the first one always stays
        values = values.masked_fill(reached >= top_p, -torch.inf)
    return torch.full_like(logprobs, -torch.inf).scatter(-1, indices, values.log_softmax(-1))


def draw(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """[B] tokens by inverting the cumulative distribution of [B, V] log-probs at [B] float64 uniforms in [0, 1).

    One uniform a row, rather than noise for the whole vocabulary, is what lets every rollout own its random numbers.
    Sums run in float64: in float32 the tail of a large vocabulary would be lost to rounding. They are taken block by
    block, and inside one block alone token by token, since a cumulative sum of everything is what takes the time.
    """
    probabilities = pad(logprobs.exp(), (0, -logprobs.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    sums = probabilities.sum(-1, dtype=torch.float64)  # [B, blocks]
    ends = sums.cumsum(-1)
    targets = (uniforms * ends[:, -1]).unsqueeze(-1)
    block = _first_above(ends, targets)
    inside = probabilities.take_along_dim(block.unsqueeze(-1), 1).squeeze(1).double().cumsum(-1)
    begin = ends.gather(-1, block) - sums.gather(-1, block)
    places = block * _BLOCK + _first_above(inside, (targets - begin).clamp_(min=0))
    return places.squeeze(-1).clamp_(max=logprobs.shape[-1] - 1)


def _first_above(cumulative: Tensor, targets: Tensor) -> Tensor:
    """[B, 1] where [B, N] first exceeds [B, 1]; where it last grows if rounding has put the target at its end.

    Any place for NaN, which whoever reads the log-probs will meet.
    """
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous()).clamp_(max=cumulative.shape[1] - 1)
    return torch.minimum(torch.searchsorted(cumulative, targets, right=True), last)


def uniforms_for(seed: int, prompt: int, sample: int, count: int) -> Tensor:
    """[count] float64 uniforms that depend on these numbers alone, not on the batch a rollout is decoded in."""
    digest = hashlib.blake2b(f"{seed}/{prompt}/{sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)
