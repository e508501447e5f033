"""Rollouts with advantages as micro-batches of tensors, packed end to end or padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exprl.models.shared_prompts import SharedPrompts, shared_prompts
from exprl.types import Advantages, Rollout

_WORTH_SHARING = 0.9
"""Share of a padded micro-batch's places below which its distinct tokens are computed alone: spreading them for
attention takes a few percent of a layer's time."""


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """A prompt and a response of T tokens in a loss; `advantages` and `sampler_logprobs` are [T] or empty.

    Of another rank's rollout, response and log-probs are arrays.
    """

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
    def ids(self) -> tuple[int, ...]:
        """Prompt and response."""
        return (*self.prompt_ids, *self.response_ids)

    @property
    def total_tokens(self) -> int:
        """Prompt and response tokens together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """B rows of S tokens, and the N response tokens in them, flat.

    There is no attention mask: in a causal model no token sees the padding to its right, and a mask would keep
    attention from its fast kernels and cost an [S, S] tensor, which 16K tokens would not forgive.

    Attributes:
        input_ids: [B, S]; one row of all sequences end to end when packed, else right-padded.
        position_ids: [1, S], starting again at 0 with each packed sequence, by which transformers keeps them apart;
            None when padded.
        rows: [N] the row of each response token.
        columns: [N] the position whose hidden state predicts it, one before its own.
        ids: [N] the sampled ids.
        advantages: [N].
        sampler_logprobs: [N]; None where no engine sampled the responses.
        lengths: response tokens of each sequence, in the order of the N tokens.
        shared: the rows with each prompt once and without padding, where that leaves much less to compute.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    rows: Tensor
    columns: Tensor
    ids: Tensor
    advantages: Tensor
    sampler_logprobs: Tensor | None
    lengths: tuple[int, ...]
    shared: SharedPrompts | None = None


def collate(
    sequences: Sequence[TokenSequence],
    *,
    pad_token_id: int,
    device: torch.device,
    packed: bool = False,
    sharing: bool = False,
) -> MicroBatch:
    """Lay the sequences end to end in one row, or pad them to the longest, and flatten the response side.

    With `sharing`, padded rows also come with the prompts of neighbours once, where that is worth it.
    """
    sampled = any(len(s.sampler_logprobs) for s in sequences)
    layout = _end_to_end(sequences) if packed else _padded(sequences, pad_token_id)
    placed: dict[str, Any] = {name: None if tensor is None else tensor.to(device) for name, tensor in layout.items()}
    return MicroBatch(
        **placed,
        ids=_joined([s.response_ids for s in sequences], np.int64).to(device),
        advantages=_joined([s.advantages for s in sequences], np.float32).to(device),
        sampler_logprobs=_joined([s.sampler_logprobs for s in sequences], np.float32).to(device) if sampled else None,
        lengths=tuple(len(s.response_ids) for s in sequences),
        shared=_shared(sequences, placed["input_ids"]) if sharing and not packed else None,
    )


def prompts_together(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """The same sequences, those of a prompt as neighbours."""
    order: dict[tuple[int, ...], list[TokenSequence]] = {}
    for sequence in sequences:
        order.setdefault(sequence.prompt_ids, []).append(sequence)
    return [sequence for alike in order.values() for sequence in alike]


def _shared(sequences: Sequence[TokenSequence], input_ids: Tensor) -> SharedPrompts | None:
    distinct = {sequence.prompt_ids for sequence in sequences}
    tokens = sum(map(len, distinct)) + sum(len(sequence.response_ids) for sequence in sequences)
    if tokens > _WORTH_SHARING * input_ids.numel():
        return None
    prompts, responses = zip(*((s.prompt_ids, len(s.response_ids)) for s in sequences), strict=True)
    return shared_prompts(input_ids, prompts, responses)


def _end_to_end(sequences: Sequence[TokenSequence]) -> dict[str, Tensor | None]:
    columns, start = [], 0
    for sequence in sequences:
        end = start + sequence.total_tokens
        columns.append(torch.arange(start + len(sequence.prompt_ids) - 1, end - 1))
        start = end
    flat = torch.cat(columns)
    return {
        "input_ids": _joined([ids for s in sequences for ids in (s.prompt_ids, s.response_ids)], np.int64)[None],
        "position_ids": torch.cat([torch.arange(sequence.total_tokens) for sequence in sequences])[None],
        "rows": torch.zeros_like(flat),
        "columns": flat,
    }


def _joined(rows: Sequence[Sequence[float]], dtype: type[np.number[Any]]) -> Tensor:
    """The rows, tuples or arrays, one after the other."""
    return torch.from_numpy(np.concatenate([np.asarray(row, dtype=dtype) for row in rows]))


def _padded(sequences: Sequence[TokenSequence], pad_token_id: int) -> dict[str, Tensor | None]:
    width = max(sequence.total_tokens for sequence in sequences)
    input_ids = torch.full((len(sequences), width), pad_token_id)
    rows, columns = [], []
    for row, sequence in enumerate(sequences):
        total = sequence.total_tokens
        input_ids[row, :total] = _joined([sequence.prompt_ids, sequence.response_ids], np.int64)
        rows.append(torch.full((len(sequence.response_ids),), row))
        columns.append(torch.arange(len(sequence.prompt_ids) - 1, total - 1))
    return {
        "input_ids": input_ids,
        "position_ids": None,
        "rows": torch.cat(rows),
        "columns": torch.cat(columns),
    }
