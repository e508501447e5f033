"""A policy's weights as vLLM takes them: as a stored checkpoint has them, tied ones under the names vLLM has.

transformers fuses what a checkpoint keeps apart (the experts of a layer, above all) and renames some of it; vLLM reads
checkpoints. And vLLM's families differ in tied weights: where there is a head beside the embedding it must be given
the weight too, since vLLM may keep a copy of it in another layout; where there is none its name is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def names_in(model: nn.Module) -> frozenset[str]:
    """The names of a vLLM model's parameters, tied ones under each of theirs, without vLLM's wrapping for adapters."""
    return frozenset(name.replace(".base_layer.", ".") for name, _ in model.named_parameters(remove_duplicate=False))


def renamed_in(model: nn.Module, names: Iterable[str]) -> dict[str, str | None]:
    """What a vLLM model calls the weights that a checkpoint calls `names`; None: it leaves that one out."""
    mapper: Any = getattr(model, "hf_to_vllm_mapper", None)
    return {name: mapper.map_name(name) if mapper is not None else name for name in names}


def unknown_aliases(policy: PreTrainedModel, llm: Any) -> frozenset[str]:
    """Second names of `policy`'s tied weights under which the running `llm` has nothing."""
    aliases = tuple(getattr(policy, "all_tied_weights_keys", None) or ())

    def unknown(model: nn.Module) -> frozenset[str]:
        known = names_in(model)
        return frozenset(name for name, there in renamed_in(model, aliases).items() if there not in known)

    found: list[frozenset[str]] = llm.apply_model(unknown)
    return frozenset.intersection(*found)


def as_stored(policy: PreTrainedModel, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """`weights` under the names and in the pieces in which `save_pretrained` stores them, a layer at a time."""
    for _, layer in groupby(weights, key=lambda pair: _layer_of(pair[0])):
        yield from revert_weight_conversion(policy, dict(layer)).items()


def _layer_of(name: str) -> str:
    """The name up to its first number; of what is in no layer, the whole."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: place + 1])


def repack_experts(model: nn.Module) -> None:
    """Have a vLLM model on a CPU lay out its experts' next weights as it did the first.

    vLLM pads and packs them where it makes the kernel that computes them, which it keeps when weights are replaced:
    those would stay as they came. On a GPU the kernel takes them as they come and, captured in CUDA graphs, must stay.
    """
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None
