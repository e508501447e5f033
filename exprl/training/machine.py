"""Options that need something of the machine, checked before any work."""

from __future__ import annotations

import torch

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


def check_kernels(options: UpdateConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Raise `ConfigError` where the chosen kernels cannot run on a policy of `dtype` on `device`."""
    try:
        backends.choose(options.kernels, device, dtype, tokens=1)
    except ValueError as error:
        raise ConfigError(f"update.kernels: {str(error).removeprefix('backend: ')}") from error
