"""Attention of one new token a row where query heads share keys and values, without repeating those for each head."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from exprl.models.sdpa import sdpa_by


def grouped_attention() -> AbstractContextManager[None]:
    """Inside, transformers' `sdpa` computes the heads of a group as so many queries of one head, where it can.

    With a mask transformers copies all keys and values once for each head of a group, at every token and layer. Results
    are the same up to rounding, so other threads may meet this too.
    """
    return sdpa_by(_grouped)


def _grouped(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """See `sdpa_attention_forward`: query [B, H, S, D], key and value [B, G, L, D], to [B, S, H, D]."""
    batch, heads, length, _ = query.shape
    groups = key.shape[1]
    alike = attention_mask is None or attention_mask.shape[1:3] == (1, 1)
    fits = length == 1 and groups < heads and heads % groups == 0 and alike and query.device.type == "cpu"
    if not fits or any(options.get(name) is not None for name in _UNUSUAL):
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return result
    per_group = query.reshape(batch, groups, heads // groups, -1)
    attended = scaled_dot_product_attention(
        per_group, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return attended.reshape(batch, 1, heads, -1), None


_UNUSUAL = ("position_bias", "cache")
"""What changes keys or scores inside; None where it is not used."""
