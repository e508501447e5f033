"""A policy's weights as servers take them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from torch import Tensor

from exprl.engines.vllm_weights import as_stored
from exprl.models.lora import merged_weights, without_adapter
from exprl.models.sharding import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from exprl.models.base import LanguageModel


def policy_weights(language_model: LanguageModel, *, merged: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The weights under the names and in the pieces of a stored checkpoint, made when it is their turn.

    Sharded ones are gathered a layer at a time, a collective: every rank must go through all of them.

    Args:
        language_model: whose.
        merged: add an adapter to the weights that it changes; False: those of the base.
    """
    with ExitStack() as stack:
        if not merged or not language_model.adapter:
            stack.enter_context(without_adapter(language_model.model))
        pairs = ((name, whole(weight.detach())) for name, weight in merged_weights(language_model.model))
        yield from as_stored(language_model.model, pairs)


def tied_names(model: PreTrainedModel) -> frozenset[str]:
    """Second names of a model's tied weights."""
    return frozenset(getattr(model, "all_tied_weights_keys", None) or ())
