"""Rollouts with advantages as padded micro-batches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exprl.types import Advantages, Rollout


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """A prompt and a response of T tokens in a loss; `advantages` and `sampler_logprobs` are [T] or empty."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    advantages: tuple[float, ...] = ()
    sampler_logprobs: tuple[float, ...] = ()

    @classmethod
    def of(cls, rollout: Rollout, advantages: Advantages) -> TokenSequence:
        """A rollout with its per-token advantages."""
        return cls(
            prompt_ids=rollout.prompt.token_ids,
            response_ids=rollout.token_ids,
            advantages=tuple(advantages.per_token()),
            sampler_logprobs=rollout.sampler_logprobs,
        )

    @property
    def total_tokens(self) -> int:
        """Prompt and response tokens together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """B padded sequences of S tokens, and the N response tokens in them, flat.

    Attributes:
        input_ids: [B, S], right-padded.
        attention_mask: [B, S], 1 on real tokens.
        rows: [N] the sequence each response token belongs to.
        columns: [N] the position whose hidden state predicts it, one before its own.
        ids: [N] the sampled ids.
        advantages: [N].
        sampler_logprobs: [N].
    """

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    columns: Tensor
    ids: Tensor
    advantages: Tensor
    sampler_logprobs: Tensor


def split_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in micro-batches: sorted by length, so that padding is small, rows times longest within `budget`.

    A sequence longer than the budget goes alone.

    >>> split_by_tokens([5, 2, 3], budget=6)
    [[0], [2, 1]]
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def collate(sequences: Sequence[TokenSequence], *, pad_token_id: int, device: torch.device) -> MicroBatch:
    """Pad to the longest and flatten the response side."""
    width = max(sequence.total_tokens for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_token_id)
    attention_mask = torch.zeros((len(sequences), width), dtype=torch.long)
    rows, columns = [], []
    for row, sequence in enumerate(sequences):
        total = sequence.total_tokens
        input_ids[row, :total] = torch.tensor(sequence.prompt_ids + sequence.response_ids)
        attention_mask[row, :total] = 1
        rows.append(torch.full((len(sequence.response_ids),), row))
        columns.append(torch.arange(len(sequence.prompt_ids) - 1, total - 1))
    return MicroBatch(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        rows=torch.cat(rows).to(device),
        columns=torch.cat(columns).to(device),
        ids=torch.tensor([i for s in sequences for i in s.response_ids], device=device),
        advantages=torch.tensor([a for s in sequences for a in s.advantages], device=device),
        sampler_logprobs=torch.tensor([p for s in sequences for p in s.sampler_logprobs], device=device),
    )
