"""A model run a few tokens at a time, whatever its family calls the state that it keeps between them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from exprl.errors import ModelError
from exprl.models.kv_cache import growing, holds_attention_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CACHES = ("cache", "past_key_values", "cache_params", "state")
"""Names under which families take and return their state; newer versions of transformers call the second the first."""

_KNOWN = "_exprl_reading"  # where a model carries what was found out of it
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # mean difference of log-probs; else 0.1


@dataclass(frozen=True)
class Reading:
    """How a model is run a few tokens at a time.

    Attributes:
        given_positions: it is told each token's position; False: it counts itself, some families from elsewhere than 0.
        pads: rows of different lengths go together, the shorter ones padded on the left. Recurrent models carry padding
            into their state, and some families count positions from the first column.
    """

    given_positions: bool
    pads: bool


@dataclass(frozen=True)
class Advanced:
    """After a forward pass: logits [B, V] of the next token, and the state to go on from."""

    logits: Tensor
    cache: Any


def advance(
    model: PreTrainedModel, ids: Tensor, *, positions: Tensor, mask: Tensor | None = None, cache: Any = None
) -> Advanced:
    """Run B rows of S more tokens.

    Args:
        model: in eval mode, without gradient.
        ids: [B, S] the tokens.
        positions: [B, S] each token's place in its row.
        mask: [B, L] True on real tokens, of all L so far; None where nothing is padded.
        cache: the state before; None: these are the first tokens.

    Raises:
        ModelError: the model keeps no state that this project could pass on.
    """
    return _run(model, ids, positions if reading_of(model).given_positions else None, mask, cache)


def reading_of(model: PreTrainedModel) -> Reading:
    """Asked of the model once, whole weights in place; raises `ModelError` as `advance` does."""
    known: Reading | None = getattr(model, _KNOWN, None)
    if known is None:
        with torch.autocast(model.device.type, enabled=False):  # whose rounding would pass for another result
            known = _measure(model)
        setattr(model, _KNOWN, known)
    return known


def cache_of(model: PreTrainedModel, output: Any) -> Any:
    """The state a forward pass has left; raises `ModelError` where there is none that could be passed on."""
    name = _cache_name(model)
    state = getattr(output, name, None) if name is not None else None
    if state is None:
        raise ModelError(
            f"{type(model).__name__} keeps no state between tokens that rollout.name=transformers could pass on (it "
            f"knows {', '.join(_CACHES)}). Choose another model, or rollout.name=vllm where vLLM knows it."
        )
    return state


def _run(model: PreTrainedModel, ids: Tensor, positions: Tensor | None, mask: Tensor | None, cache: Any) -> Advanced:
    takes, name = _arguments(type(model).forward), _cache_name(model)
    given = {"position_ids": positions, "attention_mask": mask, **head_logits(model)}
    options = {key: value for key, value in given.items() if key in takes and value is not None}
    if name is not None and cache is not None:
        options[name] = cache
    output = model(input_ids=ids, use_cache=True, **options)
    after = cache_of(model, output)
    return Advanced(logits=output.logits[:, -1], cache=growing(after) if cache is None else after)


@lru_cache(maxsize=8)
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """What a family's forward pass takes by name."""
    return frozenset(inspect.signature(forward).parameters)


def _cache_name(model: PreTrainedModel) -> str | None:
    takes = _arguments(type(model).forward)
    return next((name for name in _CACHES if name in takes), None)


@torch.no_grad()
def _measure(model: PreTrainedModel) -> Reading:
    """A short row alone, read as the plain forward pass reads it; then beside a longer one."""
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    long, short = ([(7 * place + 3) % vocabulary for place in range(length)] for length in (7, 4))
    ids = torch.tensor([[*short, short[-1]]], device=model.device)
    plain = model(input_ids=ids, use_cache=False).logits[0, -2:].float().log_softmax(-1)
    told, cache = _short_row(model, [short], given=True)
    given = _alike(model, told, plain) or not _alike(model, _short_row(model, [short], given=False)[0], plain)
    if not (given and holds_attention_alone(cache) and "attention_mask" in _arguments(type(model).forward)):
        return Reading(given_positions=given, pads=False)
    try:
        padded, _ = _short_row(model, [short, long], given=True)
    except (RuntimeError, ValueError, IndexError):
        return Reading(given_positions=given, pads=False)
    return Reading(given_positions=given, pads=_alike(model, padded, plain))


def _short_row(model: PreTrainedModel, rows: list[list[int]], *, given: bool) -> tuple[Tensor, Any]:
    """[2, V] log-probs of row 0 at its end and one token further, beside the others, and the state."""
    ids, mask = padded_left(rows, 0, model.device)
    padded = not bool(mask.all())
    first = _run(model, ids, positions_of(mask) if given else None, mask if padded else None, None)
    longer = torch.nn.functional.pad(mask, (0, 1), value=True)
    positions = mask.sum(-1, keepdim=True) if given else None
    second = _run(model, ids[:, -1:], positions, longer if padded else None, first.cache)
    return torch.stack([first.logits[0], second.logits[0]]).float().log_softmax(-1), second.cache


def _alike(model: PreTrainedModel, logprobs: Tensor, others: Tensor) -> bool:
    return bool((logprobs - others).abs().mean() <= _TOLERANCE.get(model.dtype, 0.1))


def select_rows(cache: Any, rows: Tensor) -> Any:
    """The state with row i being the old row `rows[i]` ([B'] int64); a transformers `Cache` is changed in place."""
    if "batch_select_indices" in vars(type(cache)):  # a family's own, for what it keeps beside the layers (MiniMax)
        cache.batch_select_indices(rows)
        return cache
    if hasattr(cache, "reorder_cache"):
        cache.reorder_cache(cast(torch.LongTensor, rows))
        return cache
    return _selected(cache, rows)


def _selected(state: Any, rows: Tensor) -> Any:
    """In states of other kinds the batch is the first dimension of every tensor."""
    if isinstance(state, Tensor):
        return state.index_select(0, rows) if state.dim() else state
    if isinstance(state, (list, tuple)):
        return type(state)(_selected(part, rows) for part in state)
    if isinstance(state, dict):
        return {key: _selected(part, rows) for key, part in state.items()}
    for key, part in vars(state).items() if hasattr(state, "__dict__") else ():
        setattr(state, key, _selected(part, rows))
    return state


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
