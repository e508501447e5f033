"""Options that need something of the machine, checked before any work."""

from __future__ import annotations

import torch

from exprl.component import Choice
from exprl.errors import ConfigError
from exprl.experiment import TrainerConfig, UpdateConfig
from exprl.kernels import backends


def check_accelerator(options: TrainerConfig) -> None:
    """Raise `ConfigError` for a device that PyTorch does not find."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    found["gpu"] = any(found.values())
    if not found.get(options.accelerator, True):
        raise ConfigError(
            f"trainer.accelerator: {options.accelerator}, but PyTorch ({torch.__version__}) finds none here. "
            "Choose auto or cpu, or install a PyTorch that is built for it."
        )


def wants_gpu(options: TrainerConfig) -> bool:
    """Whether the run computes on CUDA."""
    return options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def gpu_count(options: TrainerConfig) -> int:
    """The GPUs here that the run could use."""
    return torch.cuda.device_count() if wants_gpu(options) else 0


def device_of(options: TrainerConfig) -> torch.device:
    """The kind of device that the policy trains on."""
    return torch.device("cuda" if wants_gpu(options) else "cpu")


def check_kernels(options: UpdateConfig, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """Raise `ConfigError` where the chosen kernels cannot run on `device`, or not on a policy of `dtype` there."""
    obstacle = backends.triton_obstacle(device, dtype) if options.kernels == "triton" else None
    if obstacle is not None:
        raise ConfigError(
            f"update.kernels: triton cannot run here: {obstacle}. Set update.kernels=auto, eager or compile."
        )


def check_attention(model: Choice, device: torch.device) -> None:
    """Raise `ConfigError` where the attention that the policy's options name cannot train on `device`."""
    if getattr(model.config, "attn_implementation", None) == "flex_attention" and device.type == "cpu":
        raise ConfigError(
            "model.attn_implementation: flex_attention has no backward pass on a CPU. Set "
            "model.attn_implementation=sdpa, or train on a GPU."
        )
