"""Models whose weights lie in parts on several ranks (FSDP2): whole for a while, and how they become so."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from exprl.models.logits import backbone_of
from exprl.models.shared_prompts import shares_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GATHERED = "_exprl_gathered"


def shard(
    model: PreTrainedModel,
    mesh: Any,
    *,
    dtype: torch.dtype | None,
    offload: bool,
    forwards: Mapping[str, Callable[..., Any]],
) -> None:
    """Shard a transformers model in place over `mesh`: a group for each decoder layer, one for the rest.

    Args:
        model: on any device; every rank holds all of it.
        mesh: the data-parallel `DeviceMesh`.
        dtype: in which layers compute and weights travel; None: that of the weights. Gradients are summed in float32.
        offload: keep weights, gradients and optimizer state in CPU memory.
        forwards: functions of (model, ...) to be called as the methods of these names; the weights are gathered around
            each as around `model.forward`.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None),
        "offload_policy": CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if offload else OffloadPolicy(),
    }
    shares_prompts(model, backbone_of(model))  # this and its head are measured on whole weights
    for layer in decoder_layers(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    for name, function in forwards.items():
        setattr(model, name, types.MethodType(function, model))
        register_fsdp_forward_method(model, name)


def awaken(model: nn.Module, device: torch.device) -> None:
    """One forward pass through a sharded model, all ranks together: FSDP wants the first one through the root."""
    if is_sharded(model):
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device), use_cache=False)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks, which transformers names in `_no_split_modules`."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP manages the weights."""
    return bool(_groups(model))


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every rank holds all weights and can run the model as often as it likes, alone.

    Entering is a collective unless the weights are gathered already; a model that is not sharded is left as it is.
    """
    groups = _groups(model)
    outermost = bool(groups) and not getattr(model, _GATHERED, False)
    if outermost:
        setattr(model, _GATHERED, True)
        for group in groups:
            group.set_reshard_after_forward(False, recurse=False)
            group.unshard()
    try:
        yield
    finally:
        if outermost:
            setattr(model, _GATHERED, False)
            for group in groups:
                group.reshard()
                group.set_reshard_after_forward(group is not model, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded, a collective then."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def _groups(model: nn.Module) -> list[Any]:
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:  # a torch without distributed
        return []
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
