"""How a model's decoder layers run while it is updated: activations computed again, forward compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


@contextmanager
def checkpointing(model: PreTrainedModel, *, on: bool) -> Iterator[None]:
    """Inside, activations of the decoder layers are computed again in backward instead of kept, if `on`.

    transformers does so for a layer in training mode; what is inside the layer stays in eval mode, without dropout.
    """
    layers = decoder_layers(model) if on else []
    if layers:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


@contextmanager
def compiled(model: PreTrainedModel, *, on: bool) -> Iterator[None]:
    """Inside, forward and backward of the decoder layers are compiled by Inductor, if `on`.

    One compilation serves all layers and lengths, and one more a batch of one row. Outside, as in sampling, the layers
    are as they were: keys and values of earlier tokens would be compiled for again.
    """
    layers = decoder_layers(model) if on else []
    own = [vars(layer).get("forward") for layer in layers]  # set by what moves weights between devices
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    try:
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that repeat, those whose activations transformers can compute again."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
