"""Prompts read into a model's state, ready for the first new token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exprl.models.incremental import advance, padded_left, positions_of, select_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """B prompts of up to W tokens, padded on the left.

    Attributes:
        cache: the model's state after the prompts.
        logits: [B, V] at each prompt's last token.
        mask: [B, W] bool, True where a token is real.
    """

    cache: Any
    logits: Tensor
    mask: Tensor

    def repeated(self, rows: Sequence[int]) -> Prefilled:
        """Row i becomes the old row `rows[i]`; the cache itself may be changed."""
        index = torch.tensor(list(rows), device=self.mask.device)
        return Prefilled(cache=select_rows(self.cache, index), logits=self.logits[index], mask=self.mask[index])


@torch.no_grad()
def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Prefilled:
    """Read B prompts, none empty, in one forward pass, padded where their lengths differ and the model can.

    `pad` may be any token id, it is masked. Raises `ModelError` for a model without a state to go on from.
    """
    ids, mask = padded_left([list(prompt) for prompt in prompts], pad, model.device)
    read = advance(model, ids, positions=positions_of(mask), mask=None if bool(mask.all()) else mask)
    return Prefilled(cache=read.cache, logits=read.logits, mask=mask)
