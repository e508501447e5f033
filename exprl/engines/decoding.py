"""The decode loop: a token a row and step, waiting rows taking the place of finished ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from exprl.engines.base import Sampling
from exprl.engines.ends import Ends
from exprl.engines.prefill import Prefilled
from exprl.engines.sampling import draw, sampling_logprobs
from exprl.models.steps import ModelSteps, Steps
from exprl.types import FinishReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REFILL_AT = 0.125  # the share of finished rows at which others come: prompts are read some at a time
_TRIM_AT = 0.25  # the share of columns in which no row has a token at which they go, which copies the cache


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One finished row: which slot it filled, its T sampled ids and log-probs, and why it ended."""

    slot: int
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """N rows to decode: their prompts, and the random numbers of each, [N, max_new_tokens] float64."""

    prefilled: Prefilled
    uniforms: Tensor


Waiting = Callable[[int], Arrivals | None]
"""Gives the next rows that wait, at most so many; None when there are no more."""


def nobody(_: int) -> None:
    """No row waits."""


class Decoding:
    """Rows decoded together. Slots are numbered as rows arrive, and keep their number.

    Args:
        model: in eval mode; its weights are read at every step.
        first: the rows to begin with; their cache is used up.
        sampling: temperature, truncation and length limit.
        ends: what ends a row.
        waiting: asked for more when rows have finished. They come beside those that are still decoded where the model
            keeps keys and values alone, and all at once after the last one elsewhere.
        continuing: what makes the steps after prompts that a model has read; None: the model itself.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        first: Arrivals,
        sampling: Sampling,
        ends: Ends,
        waiting: Waiting = nobody,
        *,
        continuing: Callable[[Any], Steps] | None = None,
    ) -> None:
        self._device, self._sampling, self._ends, self._waiting = model.device, sampling, ends, waiting
        self._continuing = continuing or partial(ModelSteps, model)
        self._exhausted = waiting is nobody
        self._arrived = 0
        self._begin(first)

    def run(self) -> Iterator[Decoded]:
        """Rows as they finish, every slot once."""
        while self._open:
            yield from self._advance()

    # ------------------------------------------------------------------ which rows there are

    def _begin(self, first: Arrivals) -> None:
        """These rows and no others."""
        read, device = first.prefilled, self._device
        self._steps, self._logits, self._mask = self._continuing(read.cache), read.logits, read.mask
        self._positions = read.mask.sum(-1, keepdim=True)
        self._uniforms = first.uniforms.to(device)
        self._tokens = torch.zeros(self._uniforms.shape, dtype=torch.int64, device=device)  # [B, max_new], by row
        self._logprobs = torch.zeros(self._uniforms.shape, dtype=torch.float32, device=device)
        count = len(self._uniforms)
        self._lengths = torch.zeros(count, dtype=torch.int64, device=device)  # tokens of each row so far
        self._slots: list[int | None] = self._numbers(count)  # of each row; None: it has finished
        self._sampled = [0] * count  # as `_lengths`
        self._tails = [deque[int](maxlen=self._ends.tail) for _ in range(count)]
        self._padded = not bool(read.mask.all())

    def _numbers(self, count: int) -> list[int | None]:
        self._arrived += count
        return list(range(self._arrived - count, self._arrived))

    @property
    def _open(self) -> int:
        return len(self._slots) - self._slots.count(None)

    def _refill(self) -> list[int]:
        """Let waiting rows take the place of finished ones, once those are many; returns the new rows."""
        finished = [row for row, slot in enumerate(self._slots) if slot is None]
        everyone = len(finished) == len(self._slots)
        if self._exhausted or len(finished) < max(1, _REFILL_AT * len(self._slots)):
            return []
        if not (everyone or self._steps.takes_rows):
            return []
        arrivals = self._waiting(len(finished))
        if arrivals is None:
            self._exhausted = True
            return []
        if everyone:
            self._begin(arrivals)
            return list(range(len(self._slots)))
        rows = finished[: len(arrivals.uniforms)]
        self._admit(rows, arrivals)
        return rows

    def _admit(self, rows: list[int], arrivals: Arrivals) -> None:
        """Put arrivals in the place of finished rows, their prompts ending at the column where all rows are now."""
        read, index = arrivals.prefilled, torch.tensor(rows, device=self._mask.device)
        self._steps.place(index, read.cache)
        width = read.mask.shape[1]
        self._mask = pad(self._mask, (max(0, width - self._mask.shape[1]), 0), value=False)
        self._mask[index] = False
        self._mask[index, -width:] = read.mask
        self._logits[index] = read.logits
        self._positions[index] = read.mask.sum(-1, keepdim=True)
        self._uniforms[index] = arrivals.uniforms.to(self._uniforms.device)
        self._lengths[index] = 0
        for row, slot in zip(rows, self._numbers(len(rows)), strict=True):
            self._slots[row], self._sampled[row] = slot, 0
            self._tails[row].clear()
        self._trim()

    def _trim(self) -> None:
        """Drop the columns on the left in which no row has a token, once they are many."""
        still = torch.tensor([slot is not None for slot in self._slots], device=self._mask.device)
        empty = int(self._mask[still].any(0).int().argmax())
        if empty >= _TRIM_AT * self._mask.shape[1]:
            self._steps.trim(empty)
            self._mask = self._mask[:, empty:]
        self._padded = not bool(self._mask[still].all())

    def _compact(self) -> None:
        """Drop finished rows once they are many and none waits."""
        if not self._exhausted or self._open > self._steps.compact_at * len(self._slots):
            return
        kept = [row for row, slot in enumerate(self._slots) if slot is not None]
        rows = torch.tensor(kept, device=self._mask.device)
        self._steps.select(rows)
        self._mask, self._positions, self._lengths = self._mask[rows], self._positions[rows], self._lengths[rows]
        self._tokens, self._logprobs = self._tokens[rows], self._logprobs[rows]
        self._uniforms = self._uniforms[rows]
        self._slots, self._sampled = [self._slots[row] for row in kept], [self._sampled[row] for row in kept]
        self._tails = [self._tails[row] for row in kept]
        self._padded = self._padded and not bool(self._mask.all())

    # ------------------------------------------------------------------ one step

    @torch.no_grad()
    def _advance(self) -> list[Decoded]:
        finished = self._sample(list(range(len(self._slots))))
        while rows := self._refill():
            finished += self._sample(rows)
        if self._open:
            self._compact()
            self._forward(self._tokens.gather(1, (self._lengths - 1).unsqueeze(-1)))
        return finished

    def _sample(self, rows: list[int]) -> list[Decoded]:
        """Draw a token for each of these rows, finished ones among them left as they are, and close those that end."""
        rows = [row for row in rows if self._slots[row] is not None]
        everyone = len(rows) == len(self._slots)
        index = torch.tensor(rows, device=self._mask.device)
        lengths = self._lengths[index]
        settings, logits = self._sampling, self._logits if everyone else self._logits[index]
        logprobs = sampling_logprobs(logits, settings.temperature, settings.top_p, settings.top_k)
        tokens = draw(logprobs, self._uniforms[index, lengths])
        self._tokens[index, lengths] = tokens
        self._logprobs[index, lengths] = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self._lengths[index] = lengths + 1
        for row in rows:
            self._sampled[row] += 1
        return self._collect(rows, tokens.tolist())

    def _collect(self, rows: Sequence[int], tokens: Sequence[int]) -> list[Decoded]:
        """Close the rows that end with these tokens."""
        closing: dict[int, FinishReason] = {}
        for row, token in zip(rows, tokens, strict=True):
            if token in self._ends.token_ids:
                closing[row] = "stop"
        if self._ends.tail:
            closing |= dict.fromkeys(self._met_stop(rows, tokens, closing), "stop")
        limit = self._sampling.max_new_tokens
        closing |= {row: "length" for row in rows if self._sampled[row] == limit and row not in closing}
        decoded = [self._decoded(row, reason) for row, reason in closing.items()]
        for row in closing:
            self._slots[row] = None
        return sorted(decoded, key=lambda one: one.slot)

    def _met_stop(self, rows: Sequence[int], tokens: Sequence[int], closing: Container[int]) -> list[int]:
        """The rows whose text this step's token ends, those that close anyway aside."""
        grown = []
        for row, token in zip(rows, tokens, strict=True):
            if row not in closing and self._ends.adds_text(token):
                self._tails[row].append(token)
                grown.append(row)
        ends = self._ends.ends_text([list(self._tails[row]) for row in grown]) if grown else []
        return [row for row, end in zip(grown, ends, strict=True) if end]

    def _decoded(self, row: int, reason: FinishReason) -> Decoded:
        slot, length = self._slots[row], self._sampled[row]
        assert slot is not None
        return Decoded(
            slot=slot,
            token_ids=self._tokens[row, :length].tolist(),
            logprobs=self._logprobs[row, :length].tolist(),
            finish_reason=reason,
        )

    def _forward(self, tokens: Tensor) -> None:
        """Logits after one more token of each row, [B, 1]; a finished row repeats its last one."""
        self._mask = pad(self._mask, (0, 1), value=True)
        self._logits = self._steps.advance(tokens, self._positions, self._mask if self._padded else None)
        self._positions = self._positions + 1
