"""Prompts read into a key-value cache, ready for the first new token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from exprl.models.kv_cache import head_logits, new_cache, padded_left, positions_of, select_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """B prompts of up to W tokens, padded on the left.

    Attributes:
        cache: keys and values of the prompts.
        logits: [B, V] at each prompt's last token.
        mask: [B, W] bool, True where a token is real.
    """

    cache: DynamicCache
    logits: Tensor
    mask: Tensor

    def repeated(self, rows: Sequence[int]) -> Prefilled:
        """Row i becomes the old row `rows[i]`; the cache itself is changed."""
        index = torch.tensor(list(rows), device=self.mask.device)
        select_rows(self.cache, index)
        return Prefilled(cache=self.cache, logits=self.logits[index], mask=self.mask[index])


@torch.no_grad()
def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Prefilled:
    """Read B prompts, none empty, in one padded forward pass; `pad` may be any token id, it is masked."""
    ids, mask = padded_left([list(prompt) for prompt in prompts], pad, model.device)
    cache = new_cache(model)
    output = model(
        input_ids=ids,
        attention_mask=None if bool(mask.all()) else mask,
        position_ids=positions_of(mask),
        past_key_values=cache,
        use_cache=True,
        **head_logits(model),
    )
    return Prefilled(cache=cache, logits=output.logits[:, -1], mask=mask)
