"""A key-value cache whose appends do not copy what it already holds.

transformers' `DynamicLayer` concatenates at every token, which copies the whole cache once a step: for a small model
that is most of the time. `GrowingLayer` keeps spare room and writes in place.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache, DynamicLayer

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

    @classmethod
    def of(cls, layer: DynamicLayer) -> GrowingLayer:
        """A layer that holds what `layer` does."""
        made = cls()
        vars(made).update(vars(layer))
        return made

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

    def place(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Let rows [N] hold these [N, H, W, D] as their last W positions; rows become wider on the left if need be.

        Their precision may be another than the rows': under autocast a step of the model leaves bfloat16 values, and
        its first pass the same ones as float32, which transformers has joined to nothing in float32.
        """
        width = keys.shape[-2]
        assert self.keys is not None
        assert self.values is not None
        missing = max(0, width - self.keys.shape[-2])
        if missing:
            self.keys = pad(self.keys, (0, 0, missing, 0))
            self.values = pad(self.values, (0, 0, missing, 0))
        self.keys[rows, :, -width:] = keys.to(self.keys.dtype)
        self.values[rows, :, -width:] = values.to(self.values.dtype)

    def trim(self, count: int) -> None:
        """Forget the first `count` positions of every row."""
        assert self.keys is not None
        assert self.values is not None
        self.keys, self.values = self.keys[:, :, count:], self.values[:, :, count:]


def _with_room(buffer: Tensor | None, held: Tensor | None, new: Tensor, filled: int, end: int) -> Tensor:
    if buffer is not None and held is not None and buffer.shape[2] >= end and held.data_ptr() == buffer.data_ptr():
        return buffer
    batch, heads, _, width = new.shape
    grown = new.new_empty(batch, heads, room_for(end), width)
    if held is not None and filled:
        grown[:, :, :filled] = held
    return grown


def room_for(length: int) -> int:
    """Positions that a buffer which must hold `length` is given."""
    return length + length // 4 + _ROOM


def growing(cache: Any) -> Any:
    """The same state, its plain attention layers growing in place from now on."""
    if isinstance(cache, DynamicCache):
        cache.layers = [GrowingLayer.of(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def takes_rows(cache: Any) -> bool:
    """Whether `place_rows` and `trim` can be used: every layer keeps all keys and values, and nothing else is kept."""
    return type(cache) is DynamicCache and all(type(layer) is GrowingLayer for layer in cache.layers)


def place_rows(cache: Any, rows: Tensor, others: Any) -> None:
    """Let the rows [N] of `cache` become the N rows of `others`, their last positions at the same place."""
    for layer, other in zip(cache.layers, others.layers, strict=True):
        layer.place(rows, other.keys, other.values)


def trim(cache: Any, count: int) -> None:
    """Forget the first `count` positions, which no row needs."""
    for layer in cache.layers:
        layer.trim(count)


def holds_attention_alone(cache: Any) -> bool:
    """Whether keys and values are all that a model keeps: nothing recurrent, nothing of a kind unknown here."""
    return isinstance(cache, DynamicCache) and all(
        isinstance(layer, DynamicLayer) and not hasattr(layer, "update_recurrent_state") for layer in cache.layers
    )
