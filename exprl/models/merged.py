"""The weights of the usual decoder, as few products as there can be: what a step of sampling reads.

Llama, Mistral, Qwen2, Qwen3 and what is built like them have the same layer: RMSNorm, attention with rotary positions,
RMSNorm, a gated MLP. Which models are like that is read from their modules here, and measured in `exprl.models.steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from exprl.kernels import onednn
from exprl.models.attention import attends_fully
from exprl.models.linear import FastLinear
from exprl.models.logits import Affine, backbone_of, head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NORMS = {"input_layernorm", "post_attention_layernorm"}
_HEAD_NORMS = {"self_attn.q_norm", "self_attn.k_norm"}
_PRODUCTS = {f"self_attn.{name}_proj" for name in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@dataclass(frozen=True)
class Product:
    """[..., N] x [..., K] @ weight.T + bias, of one or more linear layers on the same x."""

    weight: Tensor
    bias: Tensor | None
    by_onednn: bool

    def __call__(self, x: Tensor) -> Tensor:
        """For x [..., K]."""
        return (onednn.product if self.by_onednn else linear)(x, self.weight, self.bias)

    @classmethod
    def of(cls, layers: Sequence[nn.Linear], rows: int) -> Product:
        """In the precision of autocast, and the order in which oneDNN reads `rows` rows fastest, where that gains."""
        weight = _joined([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        bias = _joined(biases) if biases else None
        if onednn.gains(weight, weight):
            return cls(onednn.packed(weight, rows), bias, by_onednn=True)
        return cls(weight, bias, by_onednn=False)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another along the first dimension, as a product reads them here."""
    own = [part.detach() for part in parts]
    whole = torch.cat(own) if len(own) > 1 else own[0]
    precision = autocast_precision(whole.device)
    return whole if precision is None else whole.to(precision)


def autocast_precision(device: torch.device) -> torch.dtype | None:
    """In which products are computed here whatever their operands are; None: in that of their operands."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


@dataclass(frozen=True)
class Norm:
    """RMSNorm over the last dimension."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """For x [..., D]."""
        return rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, self.epsilon)

    @classmethod
    def of(cls, module: nn.Module) -> Norm:
        """Of a module that calls it one of two names."""
        epsilon: Any = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        weight: Any = module.weight
        return cls(weight.detach(), float(epsilon))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer; `query_norm` and `key_norm` where it has them (Qwen3)."""

    before_attention: Norm
    queries_keys_values: Product
    query_norm: Norm | None
    key_norm: Norm | None
    scaling: float
    attended: Product
    before_mlp: Norm
    gate_up: Product
    activation: Callable[[Tensor], Tensor]
    down: Product

    @classmethod
    def of(cls, layer: Any, rows: int) -> Layer:
        """Of a transformers decoder layer."""
        attention, mlp = layer.self_attn, layer.mlp
        normed = hasattr(attention, "q_norm")
        return cls(
            before_attention=Norm.of(layer.input_layernorm),
            queries_keys_values=Product.of([attention.q_proj, attention.k_proj, attention.v_proj], rows),
            query_norm=Norm.of(attention.q_norm) if normed else None,
            key_norm=Norm.of(attention.k_norm) if normed else None,
            scaling=float(attention.scaling),
            attended=Product.of([attention.o_proj], rows),
            before_mlp=Norm.of(layer.post_attention_layernorm),
            gate_up=Product.of([mlp.gate_proj, mlp.up_proj], rows),
            activation=mlp.act_fn,
            down=Product.of([mlp.down_proj], rows),
        )


@dataclass(frozen=True, kw_only=True)
class MergedModel:
    """All layers, and what is before and behind them; `form` is None where logits are what the head gives."""

    embedding: nn.Module
    rotary: Callable[..., tuple[Tensor, Tensor]]
    layers: tuple[Layer, ...]
    norm: Norm
    head: Product
    form: Affine | None

    @classmethod
    def of(cls, model: PreTrainedModel, rows: int) -> MergedModel:
        """Of a model that `is_usual`; takes about the memory of its weights once more."""
        backbone: Any = backbone_of(model)
        form, head = head_of(model).affine, model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return cls(
            embedding=backbone.embed_tokens,
            rotary=backbone.rotary_emb,
            layers=tuple(Layer.of(layer, rows) for layer in backbone.layers),
            norm=Norm.of(backbone.norm),
            head=Product.of([head], rows),
            form=None if form == Affine() else form,
        )


def is_usual(model: PreTrainedModel) -> bool:
    """Whether the model's modules are those of the usual decoder, plain float32 weights in one place, and nothing else.

    What the modules compute is another question: families scale, clip or skip under these names too. On a CPU bfloat16
    is left to the model: a step has more to read than to call there.
    """
    device = model.device
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and autocast_precision(device) is not None):
        return False
    if not attends_fully(model, ("sdpa",)) or head_of(model).affine is None:
        return False
    backbone, head = backbone_of(model), model.get_output_embeddings()
    names = {name for name, _ in backbone.named_children()}
    plain = all(_is_plain(weight, device) for weight in model.parameters())
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    if names != {"embed_tokens", "layers", "norm", "rotary_emb"} or not plain or hooked or not _is_linear(head):
        return False
    layers: Any = backbone.layers
    return all(_is_usual_layer(layer) for layer in layers)


def _is_usual_layer(layer: nn.Module) -> bool:
    holders = {name.rpartition(".")[0] for name, _ in layer.named_parameters()}
    modules = dict(layer.named_modules())
    return (
        holders in (_NORMS | _PRODUCTS, _NORMS | _PRODUCTS | _HEAD_NORMS)
        and all(_is_linear(modules[name]) for name in _PRODUCTS)
        and len({_has_bias(modules[f"self_attn.{name}_proj"]) for name in "qkv"}) == 1
        and len({_has_bias(modules[f"mlp.{name}_proj"]) for name in ("gate", "up")}) == 1
    )


def _is_plain(weight: Tensor, device: torch.device) -> bool:
    return type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device == device


def _is_linear(module: nn.Module | None) -> bool:
    return type(module) in (nn.Linear, FastLinear)


def _has_bias(module: Any) -> bool:
    return module.bias is not None
