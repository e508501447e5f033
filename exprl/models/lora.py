"""Low-rank adapters on a model's linear layers: attached in place, switched off for a while, read, and merged.

The adapter is peft's, injected by transformers itself, so the model keeps its class and its `base_model`. It has no
dropout: the log-probs before and after an update must be those of one policy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils.peft_utils import check_peft_version

from exprl.checks.packages import check_adapters
from exprl.errors import ConfigError, one_line
from exprl.models.sharding import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "default"  # transformers' name for a model's one adapter
_BASE = "base_layer"


def check_installed() -> None:
    """Raise `ConfigError` where peft is missing, or is none that the installed transformers works with."""
    check_adapters()
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError as error:
        raise ConfigError(
            f"lora.rank: transformers {version('transformers')} needs peft {MIN_PEFT_VERSION} or newer, but "
            f"{version('peft')} is installed. pip install 'exprl[lora]' installs two that fit; or set lora.rank=0."
        ) from error


def attach(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: int,
    target_modules: Literal["all-linear"] | Sequence[str],
    seed: int = 0,
) -> None:
    """Freeze `model` and add a float32 adapter that changes nothing yet.

    Its first weights depend on `seed` alone; the global random state is left as it was.

    Raises:
        ConfigError: see `check_installed`; or `lora.target_modules` names what is no linear layer of this model, or
            what peft adapts in none like it.
    """
    check_installed()
    from peft import LoraConfig

    linear = _linear_layers(model)
    if not isinstance(target_modules, str):
        _check_targets(tuple(target_modules), linear)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
            task_type="CAUSAL_LM",
        )
        try:
            model.add_adapter(config)
        except ValueError as error:
            raise _refused(target_modules, linear, error) from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.train(model.training)  # the new modules are in training mode, whatever the model's


@contextmanager
def without_adapter(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the model computes as its base; afterwards each layer as it did before. Without adapter: no change."""
    # Not peft's own switch: that one also turns requires_grad off, which FSDP takes over for good when the first
    # forward pass of a sharded model happens inside.
    layers = [layer for _, layer in _adapted(model)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled


def has_adapter(model: torch.nn.Module) -> bool:
    """Whether an adapter is attached."""
    return next(_adapted(model), None) is not None


def adapter_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """The adapter's weights, A [rank, in] and B [out, rank] of each layer, under the names of peft's files."""
    return {
        f"base_model.model.{name}.{part}.weight": whole(getattr(layer, part)[_NAME].weight.detach())
        for name, layer in _adapted(model)
        for part in ("lora_A", "lora_B")
    }


def adapter_config(model: PreTrainedModel) -> dict[str, Any]:
    """What peft writes to adapter_config.json."""
    config: Any = model.peft_config[_NAME]
    plain: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=sorted))  # target_modules is a set
    return {**plain, "inference_mode": True}


def merged_weights(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights the model computes with, under their plain Hugging Face names.

    An adapted layer gives W + alpha / rank * B A in the dtype of W, made when it is its turn; inside `without_adapter`
    it gives W. All others are the model's own tensors, tied ones under each of their names.
    """
    layers = dict(_adapted(model))
    added = {f"{name}.{inner}" for name, layer in layers.items() for inner in layer.state_dict() if _is_added(inner)}
    for name, weight in model.state_dict().items():
        if name in added:
            continue
        owner, _, parameter = name.rpartition(f".{_BASE}.")
        if owner not in layers:
            yield name, whole(weight)
        elif parameter == "weight" and not layers[owner].disable_adapters:
            with torch.no_grad():
                yield f"{owner}.weight", (whole(weight) + whole(layers[owner].get_delta_weight(_NAME))).to(weight.dtype)
        else:
            yield f"{owner}.{parameter}", whole(weight)


def _is_added(name: str) -> bool:
    return not name.startswith(f"{_BASE}.")


def _adapted(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Each adapted layer with its name; none where no adapter was ever attached, with or without peft."""
    if not getattr(model, "_hf_peft_config_loaded", False):
        return
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """The names of the layers that could be adapted."""
    from transformers.pytorch_utils import Conv1D

    # The loss reads the head's weight itself and would pass an adapter by; embeddings may be the same weight. Mamba's
    # mixers, those with an x_proj, read that of dt_proj.
    unfit = {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    unfit |= {id(getattr(module, "dt_proj", None)) for module in model.modules() if hasattr(module, "x_proj")}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and id(module) not in unfit
    ]


def _check_targets(targets: tuple[str, ...], linear: list[str]) -> None:
    """Each target must end the name of a layer that can be adapted."""
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ConfigError(
                f"lora.target_modules: {target!r} names no linear layer inside this model (embeddings, the head and "
                f"Mamba's dt_proj cannot be adapted). Choose among {', '.join(_ends(linear))}, or all-linear."
            )


def _refused(targets: str | Sequence[str], linear: list[str], error: ValueError) -> ConfigError:
    """What peft adapts in no such model, which its message quotes, and what is left."""
    given = targets if isinstance(targets, str) else f"[{','.join(targets)}]"
    left = [end for end in _ends(linear) if repr(end) not in str(error)]
    return ConfigError(
        f"lora.target_modules: peft cannot adapt {given} of this model. Name layers that it can, for example "
        f"lora.target_modules=[{','.join(left)}], or set lora.rank=0. ({one_line(error)})"
    )


def _ends(names: list[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})
