"""One token more of each row: by the model's own forward pass, or for the usual decoder in a third of its calls.

A step of sampling does little in each call, and what lies between the calls runs on one core. `MergedSteps` makes as
few as the usual decoder allows, and holds keys transposed, which their product with a query or two reads faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from exprl.models.grouped import grouped_attention
from exprl.models.incremental import advance, padded_left, positions_of, reading_of, select_rows
from exprl.models.kv_cache import place_rows, room_for, takes_rows, trim
from exprl.models.merged import Layer, MergedModel, Norm, autocast_precision, is_usual

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KNOWN = "_exprl_merges"
_TOLERANCE = 1e-3  # of the largest logit


class Steps(Protocol):
    """The state of B rows, and what continues them."""

    @property
    def takes_rows(self) -> bool:
        """Whether `place` and `trim` can be used."""

    @property
    def compact_at(self) -> float:
        """The share of rows still open at which `select` is worth what it costs."""

    def select(self, rows: Tensor) -> None:
        """Let row i be the old row `rows[i]`."""

    def place(self, rows: Tensor, cache: Any) -> None:
        """Let these rows [N] be those of a model's own cache, their last positions at the same place."""

    def trim(self, count: int) -> None:
        """Forget the first `count` positions, which no row needs."""

    def advance(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Logits [B, V] after one more token of each row, [B, 1] at positions [B, 1].

        `mask` [B, L] is True on real tokens, of all L so far; None where nothing is padded.
        """


class ModelSteps:
    """See `Steps`; by any model."""

    compact_at = 0.75  # copying the cache at each end would cost more

    def __init__(self, model: PreTrainedModel, cache: Any) -> None:
        self._model, self._cache = model, cache

    @property
    def takes_rows(self) -> bool:
        """Whether keys and values are all there is."""
        return takes_rows(self._cache)

    def select(self, rows: Tensor) -> None:
        """See `Steps`."""
        self._cache = select_rows(self._cache, rows)

    def place(self, rows: Tensor, cache: Any) -> None:
        """See `Steps`."""
        place_rows(self._cache, rows, cache)

    def trim(self, count: int) -> None:
        """See `Steps`."""
        trim(self._cache, count)

    def advance(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """See `Steps`."""
        with grouped_attention():
            after = advance(self._model, tokens, positions=positions, mask=mask, cache=self._cache)
        self._cache = after.cache
        return after.logits


class Merged:
    """A model's `MergedModel`, made anew when its weights have changed."""

    def __init__(self, model: PreTrainedModel, rows: int) -> None:
        self._model, self._rows = model, rows
        self._weights = tuple(model.parameters())
        self.recordable: bool | None = None  # a recording of its steps gives what they give; None: not tried
        self._merge()

    @property
    def stale(self) -> bool:
        """Whether weights, or the precision of products here, are others than when `current` was asked last."""
        return self._state != self._state_now()

    def current(self) -> MergedModel:
        """Of the weights as they are, in the precision of products here."""
        if self.stale:
            del self._merged  # before there is another: its memory is that of the weights
            self._merge()
        return self._merged

    def _merge(self) -> None:
        self._merged, self._state = MergedModel.of(self._model, self._rows), self._state_now()

    def _state_now(self) -> tuple[Any, ...]:
        return autocast_precision(self._model.device), [(one.data_ptr(), one._version) for one in self._weights]


class MergedSteps:
    """See `Steps`; by the merged weights.

    Keys are [layers, B, G, D, M], values [layers, B, G, M, D], of which `length` positions are filled.

    Args:
        merged: the weights.
        cache: a model's own, which `takes_rows`; copied.
    """

    takes_rows = True
    compact_at = ModelSteps.compact_at

    def __init__(self, merged: Merged, cache: Any) -> None:
        self._merged = merged
        self._keys = torch.stack([layer.keys.transpose(-1, -2) for layer in cache.layers])
        self._values = torch.stack([layer.values for layer in cache.layers])
        self._length = self._values.shape[3]

    def select(self, rows: Tensor) -> None:
        """See `Steps`."""
        self._keys = self._keys[..., : self._length].index_select(1, rows)
        self._values = self._values[..., : self._length, :].index_select(1, rows)

    def place(self, rows: Tensor, cache: Any) -> None:
        """See `Steps`."""
        width = cache.layers[0].keys.shape[-2]
        missing = max(0, width - self._length)
        if missing:
            self._keys, self._values = pad(self._keys, (missing, 0)), pad(self._values, (0, 0, missing, 0))
            self._length += missing
        places = slice(self._length - width, self._length)
        for layer, keys, values in zip(cache.layers, self._keys, self._values, strict=True):
            keys[rows, :, :, places] = layer.keys.transpose(-1, -2).to(keys.dtype)
            values[rows, :, places] = layer.values.to(values.dtype)

    def trim(self, count: int) -> None:
        """See `Steps`."""
        self._keys, self._values = self._keys[..., count:], self._values[..., count:, :]
        self._length -= count

    def advance(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """See `Steps`."""
        end = self._extend()
        bias = None if mask is None else bias_of(mask, self._keys.shape[2])
        keys, values = self._keys[..., :end], self._values[..., :end, :]
        return step(self._merged.current(), tokens, positions, keys, values, bias, end - 1)

    def _extend(self) -> int:
        """Make room for one position more, and return how many there are then."""
        place, end = self._length, self._length + 1
        if end > self._values.shape[3]:
            room = room_for(end) - place
            self._keys = pad(self._keys[..., :place], (0, room))
            self._values = pad(self._values[..., :place, :], (0, 0, 0, room))
        self._length = end
        return end


def step(
    model: MergedModel,
    tokens: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    place: int | Tensor,
) -> Tensor:
    """Logits [B, V] after tokens [B, 1] at positions [B, 1], whose keys and values are written at `place`.

    Args:
        model: the weights.
        tokens: the new ones.
        positions: theirs.
        keys: [layers, B, G, D, M].
        values: [layers, B, G, M, D].
        bias: [B * G, 1, M], added to scores; None where every position counts.
        place: in the M positions; a tensor [1] where it is not known beforehand.
    """
    x = model.embedding(tokens[:, 0])  # [B, width]
    cosines, sines = model.rotary(x, position_ids=positions)  # [B, 1, D]
    sines = torch.cat([-sines[..., : sines.shape[-1] // 2], sines[..., sines.shape[-1] // 2 :]], dim=-1)
    every_keys, every_values = keys.flatten(1, 2).unbind(0), values.flatten(1, 2).unbind(0)  # [B * G, ...] of a layer
    for layer, own_keys, own_values in zip(model.layers, every_keys, every_values, strict=True):
        x = x + layer.attended(_attend(layer, x, cosines, sines, own_keys, own_values, bias, place))
        gates, ups = layer.gate_up(layer.before_mlp(x)).chunk(2, dim=-1)
        x = x + layer.down(layer.activation(gates) * ups)
    logits = model.head(model.norm(x))
    return logits if model.form is None else model.form.of(logits)


def bias_of(mask: Tensor, groups: int) -> Tensor:
    """[B * G, 1, M] to be added to the scores of rows with `mask` [B, M]."""
    bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)
    return bias[:, None, None].expand(-1, groups, -1, -1).flatten(0, 1)


def _attend(
    layer: Layer,
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    place: int | Tensor,
) -> Tensor:
    """[B, H * D] of x [B, width], whose own keys and values are written into those of its row, [B * G, ...]."""
    batch, (rows, width) = len(x), keys.shape[:2]
    groups = rows // batch
    heads = layer.queries_keys_values(layer.before_attention(x)).view(batch, -1, width)  # [B, H + 2 G, D]
    count = heads.shape[1] - 2 * groups
    turned = _rotated(_normed(heads[:, :-groups], count, layer.query_norm, layer.key_norm), cosines, sines)
    _write(keys, 2, turned[:, count:].reshape(rows, width), place)
    _write(values, 1, heads[:, -groups:].reshape(rows, width), place)
    queries = turned[:, :count].reshape(rows, -1, width)  # [B * G, H / G, D]
    start = queries.new_empty(1) if bias is None else bias
    scores = torch.baddbmm(start, queries, keys, beta=0 if bias is None else 1, alpha=layer.scaling)
    return torch.bmm(scores.softmax(-1), values).view(batch, -1)


def _write(into: Tensor, dimension: int, new: Tensor, place: int | Tensor) -> None:
    """Put `new` at one place of a dimension."""
    if isinstance(place, int):
        into.select(dimension, place).copy_(new)
    else:
        into.index_copy_(dimension, place, new.unsqueeze(dimension).to(into.dtype))


def _normed(heads: Tensor, count: int, query_norm: Norm | None, key_norm: Norm | None) -> Tensor:
    """Of [B, H + G, D] the first `count` heads and the others normed, where a layer does that."""
    if query_norm is None or key_norm is None:
        return heads
    return torch.cat([query_norm(heads[:, :count]), key_norm(heads[:, count:])], dim=1)


def _rotated(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Heads [B, N, D] turned by cosines and sines [B, 1, D], the first half of the sines negated."""
    swapped = heads.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return torch.addcmul(heads * cosines, swapped, sines)


# ------------------------------------------------------------------ which models


def merged(model: PreTrainedModel, rows: int) -> Merged | None:
    """The model's weights for steps of about `rows` rows, whole weights in place; None: it makes its steps itself.

    Whether `MergedSteps` gives the model's own logits is measured once in each precision, on two rows of different
    lengths: it must come as close to what the model gives in float32 as the model itself does here.
    """
    if not (is_usual(model) and reading_of(model).pads):
        return None
    own, precision = Merged(model, rows), autocast_precision(model.device)
    known: dict[torch.dtype | None, bool] = getattr(model, _KNOWN, {})
    if precision not in known:
        setattr(model, _KNOWN, known := {**known, precision: _measure(model, own)})
    return own if known[precision] else None


@torch.no_grad()
def _measure(model: PreTrainedModel, own: Merged) -> bool:
    with torch.autocast(model.device.type, enabled=False):
        exact = _logits(model, lambda cache: ModelSteps(model, cache))
    usual = _logits(model, lambda cache: ModelSteps(model, cache))
    try:
        found = _logits(model, lambda cache: MergedSteps(own, cache))
    except (RuntimeError, TypeError, ValueError):  # of other shapes than they seemed
        return False
    if exact is None or usual is None or found is None:
        return False
    allowed = _TOLERANCE * exact.abs().max() + 2 * (usual - exact).abs().max()
    return bool((found - exact).abs().max() <= allowed)


def _logits(model: PreTrainedModel, make: Callable[[Any], Steps]) -> Tensor | None:
    """[2, 2, V] float32 of two steps of two rows; None for a model that keeps more than keys and values."""
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    rows = [[(7 * place + 3) % vocabulary for place in range(length)] for length in (7, 4)]
    ids, mask = padded_left(rows, 0, model.device)
    read = advance(model, ids, positions=positions_of(mask), mask=mask)
    if not takes_rows(read.cache):
        return None
    steps, found = make(read.cache), []
    for token in (5, 11):
        positions, mask = mask.sum(-1, keepdim=True), pad(mask, (0, 1), value=True)
        tokens = torch.full((2, 1), token % vocabulary, device=model.device)
        found.append(steps.advance(tokens, positions, mask).float())
    return torch.stack(found)
