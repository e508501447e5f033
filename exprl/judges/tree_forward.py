"""A forward pass of a Hugging Face model over a token tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exprl.engines.prefill import Prefilled
from exprl.judges.tree import TokenTree
from exprl.models.kv_cache import new_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def understands_trees(model: PreTrainedModel) -> bool:
    """Whether the model attends by an arbitrary mask: full attention in every layer, by torch's own kernels."""
    config: Any = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None)
    full = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    return full and model.config._attn_implementation in ("sdpa", "eager")


def tree_logits(model: PreTrainedModel, tree: TokenTree) -> Tensor:
    """[B, V] logits at the end of each of the tree's B sequences."""
    logits: Tensor = _forward(model, tree, use_cache=False).logits
    return logits


def tree_prefill(model: PreTrainedModel, tree: TokenTree) -> Prefilled:
    """The B sequences prefilled: computed as a tree, then each given the keys and values along its path."""
    cache = new_cache(model)
    logits = _forward(model, tree, use_cache=True, past_key_values=cache).logits
    width = max(len(path) for path in tree.paths)
    index = torch.zeros(len(tree.paths), width, dtype=torch.int64)
    mask = torch.zeros(len(tree.paths), width, dtype=torch.bool)
    for row, path in enumerate(tree.paths):
        index[row, width - len(path) :] = torch.from_numpy(path)
        mask[row, width - len(path) :] = True
    index, mask = index.to(model.device), mask.to(model.device)
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys = layer.keys[0][:, index].transpose(0, 1).contiguous()
        layer.values = layer.values[0][:, index].transpose(0, 1).contiguous()
    return Prefilled(cache=cache, logits=logits, mask=mask)


def _forward(model: PreTrainedModel, tree: TokenTree, **options: Any) -> Any:
    device = model.device
    leaves = torch.tensor([path[-1] for path in tree.paths], device=device)
    supports = getattr(model, "_supports_logits_to_keep", None)
    at_leaves = supports is not None and supports()
    output = model(
        input_ids=torch.from_numpy(tree.token_ids)[None].to(device),
        attention_mask=_attention_mask(model, tree),
        position_ids=torch.from_numpy(tree.positions)[None].to(device),
        **({"logits_to_keep": leaves} if at_leaves else {}),
        **options,
    )
    output.logits = output.logits[0] if at_leaves else output.logits[0, leaves]
    return output


def _attention_mask(model: PreTrainedModel, tree: TokenTree) -> Tensor:
    """[1, 1, S, S]: boolean for torch's fused attention, added to the scores for the eager one."""
    allowed = torch.from_numpy(tree.mask)[None, None].to(model.device)
    if model.config._attn_implementation == "sdpa":
        return allowed
    return torch.zeros_like(allowed, dtype=model.dtype).masked_fill_(~allowed, torch.finfo(model.dtype).min)
