"""A policy's adapter in a vLLM engine, passed in memory; the base weights stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks vLLM has room for; an adapter takes the next one up."""

_ID = 1


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a vLLM engine is started with so that it can hold an adapter with this `adapter_config`."""
    rank = next((room for room in RANKS if room >= config["r"]), RANKS[-1])
    # With a single slot vLLM's CPU kernels give requests without adapter the one there is.
    return {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 2, "max_lora_rank": rank}


def request(version: int) -> Any:
    """What a request names to be computed with the adapter.

    Each version has a name of its own: what the prefix cache holds of another one, or of the base, is told apart.
    """
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"policy-{version}", _ID, "memory")


def put(llm: Any, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Replace the engine's adapter by `tensors`, named as in peft's files.

    Raises:
        ValueError: an adapter of a kind that vLLM cannot compute.
    """
    # vLLM scales B in place, and on a CPU that would be the trainer's own memory.
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    llm.collective_rpc(_put, args=(copies, dict(config)))


def _put(worker: Any, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = worker.model_runner.lora_manager
    adapters = manager._adapter_manager
    helper = PEFTHelper.from_dict(config)
    helper.validate_legal(manager.lora_config)
    mapper = getattr(adapters.model, "hf_to_vllm_mapper", None)
    adapter = LoRAModel.from_lora_tensors(
        lora_model_id=_ID,
        tensors=tensors,
        peft_helper=helper,
        device="cpu",
        dtype=manager.lora_config.lora_dtype,
        model_vocab_size=manager.vocab_size,
        weights_mapper=mapper.get_rename_mapper() if mapper is not None else None,
    )
    adapter.is_3d_lora_weight = False
    adapters.remove_adapter(_ID)
    adapters.add_adapter(adapter)
    adapters.activate_adapter(_ID)
