"""Rows that begin with the same prompt, computed with each prompt's tokens once.

Everything but attention looks at one token at a time, so a model may be given each distinct token once, all in one row.
Attention alone is given the rows as they would be without this: tokens are spread over them before it and gathered
again after it, so its kernels need no mask and it costs what it always does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from exprl.kernels.once import differentiable_once
from exprl.models.attention import attends_fully
from exprl.models.modes import evaluating
from exprl.models.sdpa import SDPA, sdpa_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ARGUMENT = "exprl_shared_prompts"  # under which transformers passes the layout on to attention
_KNOWN = "_exprl_shares_prompts"
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest hidden state; else 0.05


@dataclass(frozen=True)
class Repeated:
    """A prompt of `length` tokens, `token` the first of them, that begins the rows from `first` up to `last`."""

    first: int
    last: int
    length: int
    token: int


@dataclass(frozen=True, kw_only=True)
class SharedPrompts:
    """S distinct tokens of B rows of W places, padded on the right.

    Attributes:
        input_ids: [1, S], row after row, each prompt where it is first met.
        position_ids: [1, S] each token's place in its row.
        spread: [B * W] which of the S tokens stands at each place; any where padding is.
        kept: [S] the first place of each token.
        others: [B * W - S] the other places: padding, and prompts again.
        repeated: the prompts of several rows.
        rows: B.
    """

    input_ids: Tensor
    position_ids: Tensor
    spread: Tensor
    kept: Tensor
    others: Tensor
    repeated: tuple[Repeated, ...]
    rows: int


def shared_prompts(input_ids: Tensor, prompts: Sequence[Sequence[int]], responses: Sequence[int]) -> SharedPrompts:
    """The layout of rows of which neighbours may have the same prompt.

    Args:
        input_ids: [B, W] prompts and responses, padded on the right.
        prompts: the B prompts.
        responses: the B numbers of response tokens.
    """
    rows, width = input_ids.shape
    spread = torch.zeros(rows, width, dtype=torch.int64)
    first = torch.zeros(rows, width, dtype=torch.bool)  # where a token stands first
    repeated: list[Repeated] = []
    tokens = begin = 0
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        length, end = len(prompt), len(prompt) + response
        again = row > 0 and prompts[row - 1] == prompt
        if again:
            repeated[-1] = Repeated(repeated[-1].first, row + 1, length, repeated[-1].token)
        else:
            repeated.append(Repeated(row, row + 1, length, tokens))
            tokens += length
        begin = repeated[-1].token
        spread[row, :length] = torch.arange(begin, begin + length)
        spread[row, length:end] = torch.arange(tokens, tokens + response)
        first[row, length if again else 0 : end] = True
        tokens += response
    kept = first.flatten().nonzero()[:, 0]
    return SharedPrompts(
        input_ids=input_ids.flatten()[kept.to(input_ids.device)][None],
        position_ids=(kept % width)[None].to(input_ids.device),
        spread=spread.flatten().to(input_ids.device),
        kept=kept.to(input_ids.device),
        others=(~first).flatten().nonzero()[:, 0].to(input_ids.device),
        repeated=tuple(one for one in repeated if one.last - one.first > 1),
        rows=rows,
    )


def shared_hidden(backbone: nn.Module, shared: SharedPrompts) -> Tensor:
    """[S, D] last hidden states of the distinct tokens, by a model that `shares_prompts`.

    A backward pass that computes activations again needs `sharing_attention` around it too.
    """
    # Four dimensions, so that transformers makes no mask of its own, and a shape no scores have, so that attention
    # which does not know of the layout fails instead of mixing rows.
    mask = torch.ones((1, 1, 2, 2), dtype=torch.bool, device=shared.input_ids.device)
    layout = {_ARGUMENT: shared, "position_ids": shared.position_ids, "attention_mask": mask}
    with sharing_attention():
        outputs = backbone(input_ids=shared.input_ids, use_cache=False, **layout)
    hidden: Tensor = outputs.last_hidden_state[0]
    return hidden


# ------------------------------------------------------------------ whether a model can


def shares_prompts(model: PreTrainedModel, backbone: nn.Module) -> bool:
    """Whether the model computes `SharedPrompts` as it computes the rows; asked of it once, whole weights in place.

    A window of attention would show in longer rows only, so a model whose config names one is not asked.
    """
    known: bool | None = getattr(model, _KNOWN, None)
    if known is None:
        known = attends_fully(model, (SDPA,)) and _measure(model, backbone)
        setattr(model, _KNOWN, known)
    return known


_PROMPTS, _RESPONSES = ((3, 14, 15), (3, 14, 15), (9, 2)), ((9, 26, 5, 35, 8), (9, 7), (3, 2, 3, 8))


@torch.no_grad()
def _measure(model: PreTrainedModel, backbone: nn.Module) -> bool:
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    width = max(len(prompt) + len(response) for prompt, response in zip(_PROMPTS, _RESPONSES, strict=True))
    ids = torch.zeros((len(_PROMPTS), width), dtype=torch.int64, device=model.device)
    for row, (prompt, response) in enumerate(zip(_PROMPTS, _RESPONSES, strict=True)):
        ids[row, : len(prompt) + len(response)] = torch.tensor([*prompt, *response]) % vocabulary
    shared = shared_prompts(ids, _PROMPTS, [len(response) for response in _RESPONSES])
    try:
        with evaluating(model), torch.autocast(model.device.type, enabled=False):
            expected = backbone(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[shared.kept].float()
            own = shared_hidden(backbone, shared).float()
    # Anything may go wrong inside a model that is given a layout it does not know; padded rows are the way then.
    except Exception:  # noqa: BLE001
        return False
    allowed = _TOLERANCE.get(model.dtype, 0.05) * expected.abs().max()
    return own.shape == expected.shape and bool((own - expected).abs().max() <= allowed)


# ------------------------------------------------------------------ attention


def sharing_attention() -> AbstractContextManager[None]:
    """Inside, transformers' `sdpa` knows of `SharedPrompts`; without one it is what it always is."""
    return sdpa_by(_by_rows)


def _by_rows(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """See `sdpa_attention_forward`: query [1, H, S, D], key and value [1, G, S, D], to [1, S, H, D]."""
    shared: SharedPrompts | None = options.pop(_ARGUMENT, None)
    if shared is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return result
    queries, keys, values = (_rows(part, shared) for part in (query, key, value))
    attended, _ = sdpa_attention_forward(module, queries, keys, values, None, **options)
    tokens: Tensor = _Gathered.apply(attended, shared)  # type: ignore[no-untyped-call]
    return tokens.unsqueeze(0), None


def _rows(part: Tensor, shared: SharedPrompts) -> Tensor:
    """[1, H, S, D] to [B, H, W, D]."""
    rows: Tensor = _Spread.apply(part.transpose(1, 2).squeeze(0), shared)  # type: ignore[no-untyped-call]
    return rows.transpose(1, 2)


class _Spread(torch.autograd.Function):
    """[S, H, D] to the rows [B, W, H, D]; padding has copies of some token."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, shared: SharedPrompts) -> Tensor:
        ctx.shared = shared
        places = tokens.index_select(0, shared.spread)
        return places.view(shared.rows, -1, *places.shape[1:])

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, rows: Tensor) -> tuple[Tensor, None]:
        shared = ctx.shared
        tokens = rows.flatten(0, 1).index_select(0, shared.kept)
        for one in shared.repeated:
            torch.sum(rows[one.first : one.last, : one.length], 0, out=tokens[one.token : one.token + one.length])
        return tokens, None


class _Gathered(torch.autograd.Function):
    """The rows [B, W, H, D] to [S, H, D], of a prompt those of its first row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, shared: SharedPrompts) -> Tensor:
        ctx.shared = shared
        return rows.flatten(0, 1).index_select(0, shared.kept)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, tokens: Tensor) -> tuple[Tensor, None]:
        shared = ctx.shared
        rows = tokens.index_select(0, shared.spread).index_fill_(0, shared.others, 0.0)
        return rows.unflatten(0, (shared.rows, -1)), None
