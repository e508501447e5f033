"""A forward pass of a Hugging Face model over a token tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exprl.engines.prefill import Prefilled
from exprl.errors import ModelError
from exprl.judges.backends.tree import TokenTree, build_tree
from exprl.models.attention import attends_fully
from exprl.models.incremental import advance, cache_of
from exprl.models.kv_cache import growing, holds_attention_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_KNOWN = "_exprl_trees"
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of log-probs; else 0.1
_SEQUENCES = ((3, 14, 15), (3, 14, 15, 9, 26, 5), (3, 14, 15, 9, 26, 5, 35, 8), (3, 14, 7, 9, 32))
"""Nested and branching, in lexicographic order but for the last, whose place in the tree follows no order of time."""


def understands_trees(model: PreTrainedModel) -> bool:
    """Whether the model attends by an arbitrary mask at arbitrary positions, asked of the model once.

    What it makes of a small tree, and of one more token after it, is compared with the sequences one at a time. A
    window of attention would show in longer trees only, so a model whose config names one is not asked.
    """
    if not attends_fully(model, ("sdpa", "eager")):
        return False
    known: bool | None = getattr(model, _KNOWN, None)
    if known is None:
        with torch.autocast(model.device.type, enabled=False):  # whose rounding would pass for another result
            known = _measure(model)
        setattr(model, _KNOWN, known)
    return known


@torch.no_grad()
def _measure(model: PreTrainedModel) -> bool:
    sequences = [list(sequence) for sequence in sorted(_SEQUENCES)]
    try:
        tree = build_tree(sequences)
        read = tree_prefill(model, tree)
        alone = [_alone(model, sequence) for sequence in sequences]
        token = torch.full((len(sequences), 1), 3, device=model.device)
        longer = torch.nn.functional.pad(read.mask, (0, 1), value=True)
        after = advance(model, token, positions=read.mask.sum(-1, keepdim=True), mask=longer, cache=read.cache).logits
        own = torch.stack([read.logits, after, tree_logits(model, tree)])
    # Anything may go wrong inside a model that is given a mask it does not expect; plain prompts are the way then.
    except Exception:  # noqa: BLE001
        return False
    expected = torch.stack([torch.cat(rows) for rows in ([first for first, _ in alone], [next_ for _, next_ in alone])])
    gap = own.float().log_softmax(-1) - expected[[0, 1, 0]].float().log_softmax(-1)
    return bool(gap.abs().max() <= _TOLERANCE.get(model.dtype, 0.1))


def _alone(model: PreTrainedModel, sequence: list[int]) -> tuple[Tensor, Tensor]:
    """[1, V] logits after a sequence, and after one token more, by the model's plain forward pass."""
    ids = torch.tensor([[*sequence, 3]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    return logits[:, -2], logits[:, -1]


def tree_logits(model: PreTrainedModel, tree: TokenTree) -> Tensor:
    """[B, V] logits at the end of each of the tree's B sequences."""
    logits: Tensor = _forward(model, tree, use_cache=False).logits
    return logits


def tree_prefill(model: PreTrainedModel, tree: TokenTree) -> Prefilled:
    """The B sequences prefilled: computed as a tree, then each given the keys and values along its path."""
    output = _forward(model, tree, use_cache=True)
    cache, logits = growing(cache_of(model, output)), output.logits
    if not holds_attention_alone(cache):
        raise ModelError(
            f"{type(model).__name__} keeps more than keys and values, which have no paths to be taken from."
        )
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
