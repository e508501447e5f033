"""A key-value cache whose appends do not copy what it already holds.

transformers' `DynamicLayer` concatenates at every token, which copies the whole cache once a step: for a small model
that is most of the time. `GrowingLayer` keeps spare room and writes in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROOM = 64  # spare positions beyond what an append needs, besides a quarter of the length


class GrowingLayer(DynamicLayer):
    """A `DynamicLayer` over a buffer that grows by a quarter; `keys` and `values` are views of its filled part.

    Selecting rows or cropping replaces `keys` and `values`; the next append sees that they are no longer views of the
    buffer and moves them into a new one, so every other method of `DynamicLayer` stays correct.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, H, S, D] keys and values; return all of them so far, [B, H, L + S, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        filled = self.get_seq_length()
        end = filled + key_states.shape[-2]
        self._key_buffer = _with_room(self._key_buffer, self.keys, key_states, filled, end)
        self._value_buffer = _with_room(self._value_buffer, self.values, value_states, filled, end)
        self._key_buffer[:, :, filled:end] = key_states
        self._value_buffer[:, :, filled:end] = value_states
        self.keys = self._key_buffer[:, :, :end]
        self.values = self._value_buffer[:, :, :end]
        return self.keys, self.values


def _with_room(buffer: Tensor | None, held: Tensor | None, new: Tensor, filled: int, end: int) -> Tensor:
    if buffer is not None and held is not None and buffer.shape[2] >= end and held.data_ptr() == buffer.data_ptr():
        return buffer
    batch, heads, _, width = new.shape
    grown = new.new_empty(batch, heads, end + end // 4 + _ROOM, width)
    if held is not None and filled:
        grown[:, :, :filled] = held
    return grown


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache with the layer kinds `model` needs (sliding windows included), growing in place where it can."""
    cache = DynamicCache(config=model.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep, drop or repeat rows of the batch in place: row i becomes the old row `rows[i]` ([B'] int64)."""
    cache.reorder_cache(cast(torch.LongTensor, rows))


def head_logits(model: PreTrainedModel) -> dict[str, int]:
    """Arguments that spare computing logits anywhere but at the last position, where the model can."""
    supports = getattr(model, "_supports_logits_to_keep", None)
    return {"logits_to_keep": 1} if supports is not None and supports() else {}


def padded_left(sequences: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [B, L] padded on the left, and their mask [B, L] (True where a token is real)."""
    width = max(len(ids) for ids in sequences)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in sequences], dtype=torch.int64)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in sequences])
    return ids.to(device), mask.to(device)


def positions_of(mask: Tensor) -> Tensor:
    """Position ids [B, L] for a left-padded mask [B, L]: the first real token is at 0."""
    return (mask.long().cumsum(-1) - 1).clamp_(min=0)
