"""The decode loop of one batch: a token a row and step, finished rows leaving the batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exprl.engines.base import Sampling
from exprl.engines.ends import Ends
from exprl.engines.prefill import Prefilled
from exprl.engines.sampling import draw, sampling_logprobs
from exprl.models.incremental import advance, select_rows
from exprl.types import FinishReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPACT_AT = 0.75  # rows leave when this share or less is unfinished: copying the cache at each end would cost more


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One finished row: which slot it filled, its T sampled ids and log-probs, and why it ended."""

    slot: int
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


class Decoding:
    """B prefilled rows decoded together; slot i starts as row i and keeps its number while finished rows leave.

    Args:
        model: in eval mode; its weights are read at every step.
        prefilled: the B prompts; its cache is used up.
        uniforms: [B, max_new_tokens] float64, the random numbers of each slot.
        sampling: temperature, truncation and length limit.
        ends: what ends a row.
    """

    def __init__(
        self, model: PreTrainedModel, prefilled: Prefilled, uniforms: Tensor, sampling: Sampling, ends: Ends
    ) -> None:
        self._model, self._sampling, self._ends = model, sampling, ends
        device = model.device
        self._uniforms = uniforms.to(device)
        self._tokens = torch.zeros(uniforms.shape, dtype=torch.int64, device=device)  # [B, max_new], by slot
        self._logprobs = torch.zeros(uniforms.shape, dtype=torch.float32, device=device)
        self._slots = list(range(len(uniforms)))  # the slot of each row still in the batch
        self._slot_index = torch.tensor(self._slots, device=device)
        self._open = set(self._slots)
        self._tails = [deque[int](maxlen=ends.tail) for _ in self._slots]
        self._step = 0
        self._cache, self._logits = prefilled.cache, prefilled.logits
        self._prompt_width = prefilled.mask.shape[1]
        self._padded = not bool(prefilled.mask.all())
        self._positions = prefilled.mask.sum(-1, keepdim=True)
        self._mask = torch.nn.functional.pad(prefilled.mask, (0, sampling.max_new_tokens), value=True)

    def run(self) -> Iterator[Decoded]:
        """Rows as they finish, every slot once."""
        while self._open:
            yield from self._advance()

    @torch.no_grad()
    def _advance(self) -> list[Decoded]:
        settings = self._sampling
        logprobs = sampling_logprobs(self._logits, settings.temperature, settings.top_p, settings.top_k)
        tokens = draw(logprobs, self._uniforms[self._slot_index, self._step])
        self._tokens[self._slot_index, self._step] = tokens
        self._logprobs[self._slot_index, self._step] = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self._step += 1
        finished = self._collect(tokens.tolist())
        if self._open:
            self._forward(self._compact(tokens))
        return finished

    def _collect(self, tokens: list[int]) -> list[Decoded]:
        """Close the rows that end at this step."""
        closing: dict[int, FinishReason] = {}
        for slot, token in zip(self._slots, tokens, strict=True):
            if slot in self._open and token in self._ends.token_ids:
                closing[slot] = "stop"
        if self._ends.tail:
            closing |= dict.fromkeys(self._met_stop(tokens, closing), "stop")
        if self._step == self._sampling.max_new_tokens:
            closing |= {slot: "length" for slot in self._open if slot not in closing}
        self._open -= closing.keys()
        return [self._decoded(slot, closing[slot]) for slot in sorted(closing)]

    def _met_stop(self, tokens: list[int], closing: Container[int]) -> list[int]:
        """The open rows whose text this step's token ends, those that close anyway aside."""
        grown = []
        for slot, token in zip(self._slots, tokens, strict=True):
            if slot in self._open and slot not in closing and self._ends.adds_text(token):
                self._tails[slot].append(token)
                grown.append(slot)
        ends = self._ends.ends_text([list(self._tails[slot]) for slot in grown]) if grown else []
        return [slot for slot, end in zip(grown, ends, strict=True) if end]

    def _decoded(self, slot: int, reason: FinishReason) -> Decoded:
        return Decoded(
            slot=slot,
            token_ids=self._tokens[slot, : self._step].tolist(),
            logprobs=self._logprobs[slot, : self._step].tolist(),
            finish_reason=reason,
        )

    def _compact(self, tokens: Tensor) -> Tensor:
        """Drop finished rows once they are many; returns the tokens [B'] of the rows that stay."""
        if len(self._open) > _COMPACT_AT * len(self._slots):
            return tokens
        rows = torch.tensor([r for r, slot in enumerate(self._slots) if slot in self._open], device=tokens.device)
        self._cache = select_rows(self._cache, rows)
        self._slots = [slot for slot in self._slots if slot in self._open]
        self._slot_index = self._slot_index[rows]
        self._positions, self._mask = self._positions[rows], self._mask[rows]
        self._padded = self._padded and not bool(self._mask.all())
        return tokens[rows]

    def _forward(self, tokens: Tensor) -> None:
        after = advance(
            self._model,
            tokens.unsqueeze(-1),
            positions=self._positions,
            mask=self._mask[:, : self._prompt_width + self._step] if self._padded else None,
            cache=self._cache,
        )
        self._positions = self._positions + 1
        self._logits, self._cache = after.logits, after.cache
